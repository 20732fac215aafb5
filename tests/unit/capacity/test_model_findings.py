"""What is concluded from a model's facts about an instance that serves it."""

import json
import re

import pytest
from ansible_collections.kepler.vllm.plugins.filter.kepler_capacity import (
    capacity_plan,
    model_findings,
    model_keys,
    with_memory_limits,
)
from ansible_collections.kepler.vllm.plugins.plugin_utils import profiles
from known_models import FALCON_7B, LLAMA_7B, LLAMA_8B, MIXTRAL, QWEN2_0_5B, QWEN2_7B
from rendered import PROFILE, ROOT

WHERE = "vllm_service_instances[0]"


def judge(config, device="kepler", faults=(), tensors=(), **keys):
    instance = {"name": "demo", "model": "/m", "dtype": "float32", **keys}
    models = {"/m": {"config": config, "tensors": list(tensors), "faults": list(faults)}}
    found = model_findings(models, [instance], PROFILE["gpu"], device)
    assert all(all(item.values()) for item in found)
    return found


def quantized(**said):
    """Llama 7B as GPTQ."""
    own = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, **said}
    return {**LLAMA_7B, "quantization_config": own}


@pytest.mark.parametrize(
    ("config", "keys"),
    [(LLAMA_7B, {}), (LLAMA_7B, {"dtype": "half", "tensor_parallel_size": 2, "gpus": [0, 1]}),
     (quantized(), {"tensor_parallel_size": 1, "extra_args": {"max-num-seqs": 8}}),
     (quantized(), {"tensor_parallel_size": 2, "dtype": "half"}), (quantized(group_size=64), {"dtype": "half"}),
     (quantized(desc_act=True), {"tensor_parallel_size": 1, "dtype": "half"}),
     (QWEN2_0_5B, {"tensor_parallel_size": 2}), (LLAMA_7B, {"max_model_len": 4096}),
     (LLAMA_8B, {"max_model_len": 2048, "extra_args": {"max-num-seqs": 16}})],
)
def test_what_fits_has_no_findings(config, keys):
    assert judge(config, **keys) == []


def test_parts_without_safetensors_are_a_warning():
    config = {**LLAMA_7B, "vision_config": {"hidden_size": 1152}, "architectures": ["LlavaForConditionalGeneration"]}
    (found,) = judge(config)
    assert found["severity"] == "warning"
    assert "vision_config" in found["found"]
    assert judge(config, tensors=RECORDED) == []
    assert [item["severity"] for item in judge({**config, "audio_config": {"a": 1}})] == ["warning"] * 2


def test_a_model_that_was_not_read_is_not_judged():
    assert model_findings({}, [{"model": "Qwen/Qwen3-1.7B"}], PROFILE["gpu"]) == []


def test_models_of_the_hub_are_told_apart_by_their_revision():
    hub = {"model": "owner/name"}
    instances = [{"model": "/m"}, hub, {**hub, "revision": "a" * 40}, {"model": "/m"}]
    assert model_keys(instances) == ["/m", "owner/name@main", "owner/name@" + "a" * 40]
    refused = {"config": {**LLAMA_7B, "quantization_config": {"quant_method": "fp8"}}, "tensors": [], "faults": []}
    (found,) = model_findings({"owner/name@" + "a" * 40: refused}, instances, PROFILE["gpu"])
    assert found["variable"] == "vllm_service_instances[2].model"


RECORDED = [{"name": "a.weight", "dtype": "F16", "shape": [1024, 1024], "count": 1024}]


@pytest.mark.parametrize(
    ("config", "tensors", "keys", "limit"),
    [
        # 4 for the server, four ranks of 2 and of 4 pinned, 26 GiB of float32.
        (LLAMA_7B, [], {}, 4 + 4 * 6 + 4 * 26), (LLAMA_7B, RECORDED, {}, 4 + 4 * 6 + 5),
        (LLAMA_7B, RECORDED, {"dtype": "half"}, 4 + 4 * 6 + 3),
        # Nobody knows how much what it sees with takes.
        ({**LLAMA_7B, "vision_config": {"a": 1}}, [], {}, None),
        ({**LLAMA_7B, "vision_config": {"a": 1}}, RECORDED, {}, 4 + 4 * 6 + 5),
        (LLAMA_7B, RECORDED, {"tensor_parallel_size": 1, "gpus": [0]}, 4 + 6 + 5),
        (LLAMA_7B, RECORDED, {"extra_args": {"swap-space": 0.5}}, 4 + 4 * 2.5 + 5),
        (LLAMA_7B, [], {"extra_args": {"hf-overrides": '{"num_hidden_layers": 16}'}}, 4 + 4 * 6 + 4 * 13.5),
        (LLAMA_7B, RECORDED, {"memory_max": "48G"}, 48), (LLAMA_7B, RECORDED, {"device": "cpu"}, None),
        ({"model_type": "unknown"}, [], {}, None), (None, [], {}, None),
    ],
)  # fmt: skip
def test_memory_of_a_unit_is_limited_by_its_model(config, tensors, keys, limit):
    keys = dict(keys)
    device = keys.pop("device", "kepler")
    models = {"/m": {"config": config, "tensors": tensors, "faults": []}}
    instances = [{"name": "demo", "model": "/m", "dtype": "float32", **keys}, {"name": "other", "model": "/n"}]
    known, unknown = with_memory_limits(instances, models, device)
    found = known.pop("memory_max", None)
    assert unknown == instances[1]
    assert known == {key: value for key, value in instances[0].items() if key != "memory_max"}
    assert found is None if limit is None else int(found.removesuffix("G")) == pytest.approx(limit, abs=3)


def test_the_second_instance_is_named():
    models = {"/m": {"config": None, "tensors": [], "faults": [{"file": "/m/a", "found": "b", "expected": "c"}]}}
    (found,) = model_findings(models, [{"model": "x/y"}, {"model": "/m"}], PROFILE["gpu"])
    assert found["variable"] == "vllm_service_instances[1].model"
    assert found["found"] == "b in /m/a"


@pytest.mark.parametrize(
    ("config", "size", "named", "sizes"),
    [(QWEN2_0_5B, 4, "14 attention heads", "one of 1, 2"), (LLAMA_7B, 3, "32 attention heads", "one of 1, 2, 4"),
     (FALCON_7B, 2, "71 attention heads", "one of 1"), (QWEN2_7B, 3, "4 heads of keys and values", "one of 1, 2, 4")],
)
def test_heads_that_do_not_divide(config, size, named, sizes):
    (found,) = judge(config, tensor_parallel_size=size)
    assert found["variable"] == f"{WHERE}.tensor_parallel_size"
    assert named in found["found"]
    assert found["expected"] == sizes


@pytest.mark.parametrize(
    ("config", "size", "named", "sizes"),
    [({**quantized(group_size=32), "intermediate_size": 11040}, 4, "11040 columns (2760 a GPU: no multiple of 32)",
      "one of 1"),
     (quantized(desc_act=True), 2, "act-order", "one of 1")],
)
@pytest.mark.parametrize("device", ["kepler", "cpu"])
def test_columns_that_cannot_be_split(config, size, named, sizes, device):
    (found,) = judge(config, device, tensor_parallel_size=size)
    assert found["variable"] == f"{WHERE}.tensor_parallel_size"
    assert named in found["found"]
    assert found["expected"] == sizes


def speculating(draft, said=None, **keys):
    """Findings about Llama 8B in half on four GPUs, whose tokens a draft model of that config proposes."""
    said = {"model": "/d", "num_speculative_tokens": 4, **(said or {})}
    instance = {"name": "demo", "model": "/m", "dtype": "half",
                "extra_args": {"speculative-config": json.dumps(said), "max-num-seqs": 4}, **keys}
    facts = {"/m": LLAMA_8B, "/d": draft}
    models = {name: {"config": config, "tensors": [], "faults": []} for name, config in facts.items()}
    return model_findings(models, [instance], PROFILE["gpu"]), with_memory_limits([instance], models, "kepler")[0]


# Of Llama 3.2's 1 B shape: 1.24 billion numbers.
DRAFT = {**LLAMA_8B, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
         "tie_word_embeddings": True}


@pytest.mark.parametrize(("draft", "found", "expected"), [
    ({**DRAFT, "vocab_size": 32000}, "a vocabulary of 32000 tokens", "that of the model, 128256"),
    ({**DRAFT, "model_type": "eagle"}, "EAGLE layers", "a language model of its own"),
    ({"model_type": "medusa"}, "Medusa heads", "a language model of its own"),
    ({**DRAFT, "model_type": ["llama"]}, "the model_type ['llama']", "a type that the locked vLLM"),
    ({**DRAFT, "model_type": "mamba"}, "the model type mamba", "a decoder with plain attention"),
])  # fmt: skip
def test_models_that_cannot_draft(draft, found, expected):
    (item,) = speculating(draft)[0]
    assert item["variable"] == f"{WHERE}.extra_args.speculative-config.model"
    assert item["found"].startswith(found)
    assert item["expected"].startswith(expected)


def test_gguf_file_alone_cannot_draft():
    """As the start refuses it: the engine would have to make its config and tokenizer."""
    facts = {"/m": LLAMA_8B, "/d": DRAFT}
    models = {
        name: {"config": config, "tensors": [], "faults": [], "alone": name == "/d"} for name, config in facts.items()
    }
    instance = {"name": "demo", "model": "/m", "dtype": "half", "max_model_len": 512, "extra_args": {
        "speculative-config": json.dumps({"model": "/d", "num_speculative_tokens": 4}), "max-num-seqs": 4}}
    assert "a GGUF file alone" in [item["found"] for item in model_findings(models, [instance], PROFILE["gpu"])]


def test_gguf_file_alone_is_served_by_several_hosts():
    models = {"/m": {"config": LLAMA_8B, "tensors": [], "faults": [], "alone": True}}
    instance = {"name": "demo", "model": "/m", "dtype": "half", "max_model_len": 512, "hosts": ["a", "b"], "link": "x"}
    assert not [item for item in model_findings(models, [instance], PROFILE["gpu"]) if "GGUF" in item["found"]]


def test_more_hosts_than_layers_are_refused():
    hosts = [f"host-{number}" for number in range(4)]
    shallow = {**LLAMA_7B, "num_hidden_layers": 3}
    (found,) = judge(shallow, hosts=hosts)
    assert (found["severity"], found["variable"]) == ("error", f"{WHERE}.hosts")
    assert (found["found"], found["expected"]) == ("4 hosts and a model of 3 layers", "at most 3 hosts")
    assert judge(shallow, hosts=hosts[:3]) == []


def test_model_that_fits_no_host_fits_two():
    """14 GiB of numbers in float16 on one GPU of each: half of the layers, and a half of a stage's cache."""
    keys = {"dtype": "half", "max_model_len": 2048, "gpus": [0], "tensor_parallel_size": 1}
    (alone,) = judge(LLAMA_7B, **keys)
    assert alone["severity"] == "error"
    assert judge(LLAMA_7B, hosts=["a", "b"], **keys) == []
    assert judge(LLAMA_7B, hosts=["a", "b"], **{**keys, "max_model_len": 4096, "gpu_memory_utilization": 0.75})


def test_a_draft_model_is_counted_on_its_gpu():
    """2.3 GiB in half beside the model's, the check of 15 rows, and 32 KiB of cache a token; the host takes both."""
    findings, limited = speculating(DRAFT, max_model_len=8192)
    assert findings == []
    small = {"max_model_len": 8192, "gpu_memory_utilization": 0.25}
    (drafted,) = speculating(DRAFT, **small)[0]
    (alone,) = judge(LLAMA_8B, dtype="half", extra_args={"max-num-seqs": 4}, **small)
    sizes = [
        [float(re.search(f"{part} ([\\d.]+) GiB", item["found"])[1]) for part in ("weights", "one sequence")]
        for item in (drafted, alone)
    ]
    assert sizes[0][0] - sizes[1][0] == pytest.approx(2.3 + 15 * 128256 * 48 / 2**30, abs=0.1)
    assert sizes[0][1] - sizes[1][1] == pytest.approx(8192 * 2 * 16 * 8 * 64 * 2 / 2**30, abs=0.02)
    # 4 for the server, four ranks of 2 and of 4 pinned, and what each reads of files that nobody measured.
    assert int(limited["memory_max"].removesuffix("G")) == pytest.approx(4 + 4 * 6 + 4 * (15 + 2.3), abs=3)


def test_half_is_offered_where_it_fits():
    (found,) = judge(LLAMA_7B, gpus=[0, 1], tensor_parallel_size=2)
    assert found["next_step"].startswith("Set dtype to half, or spread it over 4 GPUs")
    assert judge(LLAMA_7B, gpus=[0, 1], tensor_parallel_size=2, dtype="half") == []
    (found,) = judge(LLAMA_7B, gpus=[0], tensor_parallel_size=1)
    assert "half" not in found["next_step"]
    assert "half" not in judge(LLAMA_7B, gpus=[0], tensor_parallel_size=1, dtype="half")[0]["next_step"]


def test_quantized_model_is_counted_in_its_own_bytes():
    """4 bits of 13 B are 6.7 GiB in half; with float32 embeddings 0.6 more, and a cache of twice the size."""
    big = {**quantized(), "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
           "num_attention_heads": 40, "num_key_value_heads": 40}
    few = {"extra_args": {"max-num-seqs": 8}, "tensor_parallel_size": 1}
    (half,) = judge(big, dtype="half", **few)
    assert "weights 6.71 GiB" in half["found"]
    (single,) = judge(big, **few)
    assert "weights 7.32 GiB" in single["found"]
    longest = int(re.search(r"which holds (\d+) tokens", half["expected"])[1])
    assert judge(big, dtype="half", max_model_len=longest, **few) == []
    assert int(re.search(r"which holds (\d+) tokens", single["expected"])[1]) < longest / 2


def test_experts_in_fewer_bits():
    few = {"extra_args": {"max-num-seqs": 8}, "max_model_len": 1024, "gpus": [0], "tensor_parallel_size": 1}
    config = {**MIXTRAL, "num_hidden_layers": 2}
    assert judge(config, dtype="half", **few) == []
    config["quantization_config"] = {**quantized()["quantization_config"], "desc_act": False}
    assert judge(config, **few) == []
    config["quantization_config"]["desc_act"] = True
    (found,) = judge(config, **few)
    assert found["variable"] == f"{WHERE}.model"
    assert "experts in GPTQ with act-order" in found["found"]
    assert "without act-order" in found["expected"]


def test_files_of_another_checkpoint_than_the_config_says():
    words = [{"name": "model.layers.*.mlp.up_proj.qweight", "dtype": "I32", "shape": [512, 11008], "count": 32}]
    (found,) = judge(LLAMA_7B, tensors=words)
    assert "no way they are quantized" in found["found"]
    whole = [{"name": "model.layers.*.mlp.up_proj.weight", "dtype": "F16", "shape": [11008, 4096], "count": 32}]
    (found,) = judge(quantized(), tensors=whole, tensor_parallel_size=1)
    assert "no quantized matrix" in found["found"]


def test_too_long_a_context_names_the_longest_that_fits():
    """In float32 four gpus hold 8 billion parameters and some cache."""
    (found,) = judge(LLAMA_8B)
    assert found["variable"] == f"{WHERE}.max_model_len"
    assert "131072 tokens, the model's own length" in found["found"]
    assert "10.06 GiB" in found["expected"]
    longest = int(re.search(r"[Ss]et max_model_len to (\d+) at most", found["next_step"])[1])
    assert judge(LLAMA_8B, max_model_len=longest) == []
    (found,) = judge(LLAMA_8B, max_model_len=longest + 1)
    assert f"holds {longest} tokens" in found["expected"]


def test_weights_that_do_not_fit_name_how_many_gpus_would_do():
    (found,) = judge(LLAMA_7B, gpus=[0, 1], tensor_parallel_size=2)
    assert found["variable"] == f"{WHERE}.model"
    assert "weights 12.5" in found["found"]
    assert "spread it over 4 GPUs" in found["next_step"]
    (found,) = judge(MIXTRAL)
    assert "Spread it over 32 GPUs" in found["next_step"]


def test_less_memory_holds_less():
    (found,) = judge(LLAMA_7B, gpu_memory_utilization=0.5)
    assert "50%" in found["expected"]
    assert judge(LLAMA_7B, gpu_memory_utilization=0.9) == []


def test_fewer_sequences_are_offered_where_they_help():
    (found,) = judge(LLAMA_8B)
    assert "lower max-num-seqs" in found["next_step"]
    (found,) = judge(LLAMA_8B, max_model_len=131072, extra_args={"max-num-seqs": 1})
    assert "max-num-seqs" not in found["next_step"]


def test_memory_is_judged_on_k80_gpus_alone():
    assert judge(MIXTRAL, device="cpu") == []
    (found,) = judge(QWEN2_0_5B, device="verify")
    assert found["variable"] == f"{WHERE}.tensor_parallel_size"


def test_more_positions_than_the_model_has():
    (found,) = judge(LLAMA_7B, max_model_len=4097)
    assert found["variable"] == f"{WHERE}.max_model_len"
    assert "4096" in found["expected"]


@pytest.mark.parametrize(
    ("change", "named"),
    [({"quantization_config": {"quant_method": "fp8"}}, "fp8"), ({"model_type": "mamba"}, "Triton"),
     ({"is_encoder_decoder": True}, "encoder-decoder"), ({"head_dim": 100}, "heads of size 100"),
     ({"head_dim": 1024}, "heads of size 1024")],
)
def test_what_the_port_does_not_serve(change, named):
    (found,) = judge({**LLAMA_7B, **change})
    assert found["variable"] == f"{WHERE}.model"
    assert found["severity"] == "error"
    assert named in found["found"]


def test_experts_of_odd_sizes():
    (found,) = judge({**MIXTRAL, "intermediate_size": 14344}, device="cpu")
    assert "multiples of 4" in found["expected"]


def test_an_unknown_model_is_a_warning():
    """One that the engine knows and the planner does not."""
    (found,) = judge({**LLAMA_7B, "model_type": "persimmon"})
    assert found["severity"] == "warning"
    assert "persimmon" in found["found"]
    recorded = [{"name": "x.weight", "dtype": "F16", "shape": [1 << 20, 1 << 14], "count": 1}]
    (found,) = judge({**LLAMA_7B, "model_type": "persimmon"}, tensors=recorded)
    assert found["severity"] == "error"


@pytest.mark.parametrize("change", [
    {"model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"]}, {"architectures": ["Olmo3ForCausalLM"]},
    {"architectures": ["LlamaForSequenceClassification"]}, {"architectures": []}, {"model_type": None},
])
def test_what_the_engine_does_not_know_is_an_error(change):
    (found,) = judge({**LLAMA_7B, **change})
    assert found["severity"] == "error"
    assert str(next(iter(change.values())) or next(iter(change))).strip("[]'") in found["found"]


def test_a_models_own_code_needs_trust():
    config = {**LLAMA_7B, "model_type": "novelty", "auto_map": {"AutoConfig": "c.C", "AutoModel": "m.M"}}
    (found,) = judge(config)
    assert "auto_map" in found["found"]
    assert "trust-remote-code: true" in found["expected"]
    assert [item["severity"] for item in judge(config, extra_args={"trust-remote-code": True})] == ["warning"]

def test_a_wrong_config_is_an_error():
    (found,) = judge({**LLAMA_7B, "hidden_size": "4096"})
    assert found["severity"] == "error"
    assert "hidden_size '4096'" in found["found"]


def test_damaged_files_come_with_the_other_findings():
    fault = {"file": "/m/model.safetensors", "found": "10 bytes", "expected": "20 bytes"}
    assert [item["variable"] for item in judge(QWEN2_0_5B, faults=[fault])] == [
        f"{WHERE}.model", f"{WHERE}.tensor_parallel_size"
    ]


YARN = '{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}'


@pytest.mark.parametrize(
    ("config", "extra", "positions"),
    [
        (LLAMA_7B, {"rope-scaling": YARN}, 8192),
        (LLAMA_7B, {"hf-overrides": f'{{"rope_scaling": {YARN}}}'}, 8192),
        (LLAMA_7B, {"hf-overrides": '{"max_position_embeddings": 1024}'}, 1024),
        (LLAMA_7B, {"rope-theta": 1e6}, 4096),
        ({**LLAMA_7B, "rope_parameters": {"rope_type": "linear", "factor": 8.0}}, {"rope-scaling": YARN}, 8192),
    ],
)
def test_positions_are_those_that_the_options_make(config, extra, positions):
    assert judge(config, device="cpu", max_model_len=positions, extra_args=extra) == []
    (found,) = judge(config, device="cpu", max_model_len=positions + 1, extra_args=extra)
    assert f"at most {positions}" in found["expected"]


def test_positions_end_with_the_window_that_is_off():
    config, off = {**LLAMA_7B, "model_type": "mistral", "sliding_window": 1024}, {"disable-sliding-window": True}
    assert judge(config, device="cpu", max_model_len=1025) == []
    assert judge(config, device="cpu", max_model_len=1024, extra_args=off) == []
    (found,) = judge(config, device="cpu", max_model_len=1025, extra_args=off)
    assert "at most 1024" in found["expected"]


@pytest.mark.parametrize(
    ("extra", "least"),
    [
        ({"max-num-batched-tokens": 2047}, 2048), ({"max-num-batched-tokens": 2048}, None),
        ({"max-num-batched-tokens": 1024, "enable-chunked-prefill": True}, None),
        ({"max-num-batched-tokens": 255, "enable-chunked-prefill": True}, 256),
        ({"max-num-batched-tokens": 255, "enable-chunked-prefill": True, "max-num-seqs": 255}, None),
        ({"max-num-seqs": 2049}, 2049),
    ],
)
def test_a_batch_holds_a_prompt_or_a_token_of_each_sequence(extra, least):
    found = judge(LLAMA_7B, device="cpu", max_model_len=2048, extra_args=extra)
    assert [item["expected"].split(",")[0] for item in found] == ([f"at least {least}"] if least else [])


def test_an_architecture_may_be_put_in_place_of_an_unknown_one():
    config = {**LLAMA_7B, "architectures": ["OwnForCausalLM"]}
    assert judge(config, device="cpu")
    assert judge(config, device="cpu", extra_args={"hf-overrides": '{"architectures": ["LlamaForCausalLM"]}'}) == []


ADAPTER = {"r": 16, "lora_alpha": 32}
LAYER = "base_model.model.model.layers.7.self_attn.q_proj.lora_"


def judge_adapter(config=ADAPTER, shapes=((16, 4096), (4096, 16)), base=LLAMA_7B, faults=(), **keys):
    """Findings about an instance of a base with one adapter."""
    instance = {"name": "demo", "model": "/m", "dtype": "half", "adapters": {"own": "/a"}, **keys}
    tensors = {f"{LAYER}{half}.weight": list(shape) for half, shape in zip("AB", shapes, strict=True)}
    adapters = {"/a": {"config": config, "tensors": tensors, "faults": list(faults)}}
    return model_findings({"/m": {"config": base, "tensors": [], "faults": []}}, [instance], PROFILE["gpu"],
                          adapters=adapters)


def test_adapter_of_another_base_is_warned_of():
    """Its shapes fit: nothing else would tell."""
    (found,) = judge_adapter({**ADAPTER, "base_model_name_or_path": "owner/other"})
    assert (found["severity"], found["found"]) == ("warning", "/a: an adapter of owner/other")


@pytest.mark.parametrize("base", [LLAMA_7B, quantized()])
def test_an_adapter_of_its_base_has_no_findings(base):
    assert judge_adapter(base=base) == []
    assert model_findings({"/m": {"config": base, "tensors": [], "faults": []}},
                          [{"model": "/m", "dtype": "half", "adapters": {"own": "/a"}}], PROFILE["gpu"]) == []


@pytest.mark.parametrize(("changes", "variable", "named"), [
    ({"config": {**ADAPTER, "use_dora": True}}, "adapters.own", "/a: use_dora"),
    ({"extra_args": {"max-lora-rank": 8}}, "adapters.own", "/a: rank 16"),
    ({"shapes": ((16, 2048), (2048, 16))}, "adapters.own", "model.layers.7.self_attn.q_proj of shapes [16, 2048]"),
    ({"base": {**LLAMA_7B, "num_hidden_layers": 7}}, "adapters.own", "/a: an adapter of model.layers.7.self_attn"),
    ({"faults": [{"file": "/a/x", "found": "nothing", "expected": "it"}]}, "adapters.own", "/a: nothing in /a/x"),
    ({"base": FALCON_7B, "tensor_parallel_size": 1}, "adapters", "adapters of the model type falcon"),
])
def test_an_adapter_that_does_not_fit_is_named(changes, variable, named):
    (found,) = judge_adapter(**changes)
    assert found["variable"] == f"{WHERE}.{variable}"
    assert named in found["found"]


def test_adapters_are_counted_with_the_weights():
    """4,096 adapters of rank 512 are beyond any GPU; and what a host's memory needs for one more."""
    (found,) = judge_adapter(extra_args={"max-loras": 4096, "max-lora-rank": 512})
    assert "a GPU on 4 (weights" in found["found"]
    facts = {"/m": {"config": LLAMA_7B, "tensors": [], "faults": []}}
    instance = {"name": "demo", "model": "/m", "dtype": "float32"}
    named = {f"a{number}": f"/a{number}" for number in range(64)}
    known = {path: {"config": {"r": 64}, "tensors": {}, "faults": []} for path in named.values()}
    limits = [
        with_memory_limits([{**instance, "adapters": own}], facts, "kepler", known)[0]["memory_max"]
        for own in ({}, named)
    ]
    # 4 bytes · rank 64 of 64 adapters on 4 ranks; 32 layers of matrices with so many rows and columns.
    more = 64 * 4 * 64 * 4 * 32 * (4 * 8192 + 3 * 15104) / 2**30
    assert 0 <= int(limits[1][:-1]) - int(limits[0][:-1]) - int(more) <= 1


VOLTA = profiles.profiles(ROOT / "profiles")["volta"]
AWQ = {**LLAMA_7B, "quantization_config": {
    "quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}}
FP8 = {**LLAMA_7B, "quantization_config": {"quant_method": "fp8"}}
MAMBA = {"model_type": "jamba", "architectures": ["JambaForCausalLM"], "hidden_size": 64}


@pytest.mark.parametrize(("config", "engine", "other"), [
    (AWQ, "stock", "port"), (FP8, "stock", None), (MAMBA, "port", "stock"), (FP8, "port", None),
])  # fmt: skip
def test_an_engine_that_does_not_refuse_it_is_named(config, engine, other):
    """Only one that the host can have."""
    facts = {"config": config, "tensors": [], "faults": []}
    instance = {"name": "a", "model": "/m", "engine": engine, "dtype": "half", "tensor_parallel_size": 1}
    for engines in (VOLTA["serve"]["engines"], [engine]):
        (found,) = model_findings({"/m": facts}, [instance], VOLTA["gpu"], "cpu", engines=engines)
        named = len(engines) > 1 and other
        assert (f"Set engine to {other}" in found["next_step"]) == bool(named)
    plan = capacity_plan(facts, VOLTA, engine=engine) if config is not MAMBA else {"conclusion": [], "refused": ["x"]}
    assert plan["refused"]
    assert any("-e plan_engine=port" in line for line in plan["conclusion"]) == (config is AWQ)
