"""Weights, cache and activations of a GPU, and the plan that follows."""

import json
import re
from dataclasses import replace
from functools import partial

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.kepler.vllm.plugins.filter.kepler_capacity import capacity_plan, capacity_table
from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint.limits import WHOLE_ROW
from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint.quantization import Quantization, Scheme
from ansible_collections.kepler.vllm.plugins.plugin_utils import capacity
from ansible_collections.kepler.vllm.plugins.plugin_utils.capacity import GIB, MIB, STORAGES, need
from ansible_collections.kepler.vllm.plugins.plugin_utils.model_families import read, tensors_of
from known_models import (
    FALCON_7B,
    GEMMA3_4B,
    GPT2,
    LLAMA_7B,
    LLAMA_8B,
    LLAMA_13B,
    MIXTRAL,
    PARAMETERS,
    QWEN2_0_5B,
    QWEN2_7B,
)
from rendered import PROFILE, ROOT, profiles

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
VOLTA = profiles.profiles(ROOT / "profiles")["volta"]
FP32, FP16, INT4 = (STORAGES[name] for name in ("fp32", "fp16", "int4"))
Options = partial(capacity.Options, **capacity.figures_of(PROFILE["gpu"]))
planned = partial(capacity_plan, profile=PROFILE)
WHOLE = Options(gpu_memory_utilization=0.9)


def weights(config, gpus, storage=FP32):
    model = read(config)
    return capacity.weight_bytes(model, tensors_of(model), gpus, storage)


def test_one_die_has_all_parameters_and_the_table_of_angles():
    assert weights(LLAMA_7B, 1) == 4 * 6738415616 + 4 * 4096 * 128


def test_a_vocabulary_is_padded():
    assert weights(GPT2, 1) == 4 * (124439808 + (50304 - 50257) * 768)


def test_norms_stand_on_every_die():
    whole, half = weights(LLAMA_7B, 1) - 4 * 4096 * 128, weights(LLAMA_7B, 2) - 4 * 4096 * 128
    assert 2 * half - whole == 4 * 65 * 4096


def test_keys_and_values_are_doubled_if_gpus_exceed_heads():
    """Qwen2.5-7B has 4 heads of 128: on 8 gpus each has one whole."""
    model = read(QWEN2_7B)
    by_name = {tensor.name.split(".*.")[-1]: tensor for tensor in tensors_of(model)}
    key, query = by_name["self_attn.k_proj.weight"], by_name["self_attn.q_proj.weight"]
    assert capacity.share(key, model, 8) == key.elements / 4
    assert capacity.share(query, model, 8) == query.elements / 8
    assert capacity.share(by_name["self_attn.k_proj.bias"], model, 2) == 28 * 256
    # Fused: 71 heads of queries and one of keys and of values.
    falcon = read({**FALCON_7B, "num_attention_heads": 72, "hidden_size": 4608})
    fused = next(tensor for tensor in tensors_of(falcon) if "query_key_value" in tensor.name)
    assert capacity.share(fused, falcon, 4) == 32 * (18 + 2) * 64 * 4608


def test_routers_and_biases_behind_the_sum_stand_on_every_die():
    gpt2, mixtral = read(GPT2), read(MIXTRAL)
    for model, name in ((mixtral, "block_sparse_moe.gate.weight"), (gpt2, "attn.c_proj.bias"), (gpt2, "wpe.weight")):
        tensor = next(tensor for tensor in tensors_of(model) if tensor.name.endswith(name))
        assert capacity.share(tensor, model, 4) == tensor.elements


# Llama 7B by hand: embedding and head, norms and the table of angles, and the matrices of the layers.
EMBEDDINGS, FLOAT32 = 2 * 32000 * 4096, 65 * 4096 + 4096 * 128
MATRICES = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        (STORAGES["fp32"], 4 * (MATRICES + EMBEDDINGS + FLOAT32)),
        (STORAGES["fp16"], 2 * (MATRICES + EMBEDDINGS) + 4 * FLOAT32),
        # A scale and a zero point for 128 columns, 2 bytes each.
        (STORAGES["int8"], MATRICES + MATRICES // 128 * 4 + 2 * EMBEDDINGS + 4 * FLOAT32),
        (STORAGES["int4"], MATRICES // 2 + MATRICES // 128 * 4 + 2 * EMBEDDINGS + 4 * FLOAT32),
        # Of the checkpoint: symmetric, so without zero points; 32 columns, and embeddings in float32.
        (capacity.storage_of("float32", Quantization("gptq", Scheme(4, 32), zeros=False)),
         MATRICES // 2 + MATRICES // 32 * 2 + 4 * EMBEDDINGS + 4 * FLOAT32),
        # Whole rows: 4 of 4,096 in attention, 2 · 11,008 and 4,096 in the feed-forward layer.
        (capacity.storage_of("half", Quantization("gptq", Scheme(8, WHOLE_ROW), zeros=True)),
         MATRICES + 32 * (5 * 4096 + 2 * 11008) * 4 + 2 * EMBEDDINGS + 4 * FLOAT32),
    ],
)
def test_weights_by_hand(storage, expected):
    assert weights(LLAMA_7B, 1, storage) == expected


def test_rows_that_are_one_group_keep_their_scale_on_every_die():
    """Over four gpus: a quarter of the rows of queries, keys, values, gate and up; all rows of o and down."""
    storage = capacity.storage_of("half", Quantization("gptq", Scheme(4, WHOLE_ROW), zeros=False))
    scales = 32 * ((3 * 4096 + 2 * 11008) // 4 + 2 * 4096) * 2
    assert weights(LLAMA_7B, 4, storage) == MATRICES // 8 + scales + EMBEDDINGS // 2 + 4 * FLOAT32


def test_a_matrix_that_the_checkpoint_left_as_it_was():
    model = read({**LLAMA_7B, "quantization_config": GPTQ})
    recorded = [{"name": "model.layers.*.mlp.up_proj.qweight", "shape": [512, 11008], "count": 30},
                {"name": "model.layers.*.mlp.up_proj.weight", "shape": [11008, 4096], "count": 2}]
    up = 11008 * 4096
    head = 32000 * 4096
    for dtype, size in (("half", 2), ("float32", 4)):
        storage = capacity.storage_of(dtype, model.quantization)
        planned = capacity.weight_bytes(model, tensors_of(model, recorded), 1, storage)
        assert planned == 30 * (up // 2 + up // 128 * 2) + 2 * up * size + head * size + 4 * 4096 * 128


@pytest.mark.parametrize(
    ("said", "gpus", "named"),
    [
        ({}, 2, None), ({}, 4, None), ({}, 8, None),
        ({}, 16, r"mlp\.down_proj's 11008 columns \(688 a GPU: no multiple of 32\)"),
        ({"group_size": 64}, 4, None), ({"group_size": -1}, 4, None),
        ({"group_size": -1}, 8, None), ({"group_size": -1}, 32, r"344 a GPU: no multiple of 32"),
        ({"desc_act": True}, 1, None), ({"desc_act": True}, 2, "act-order"),
        ({"desc_act": True, "group_size": -1}, 2, None),
    ],
)
def test_groups_over_gpus(said, gpus, named):
    model = read({**LLAMA_7B, "quantization_config": {**GPTQ, **said}})
    faults = capacity.size_faults(model, gpus, tensors_of(model), capacity.storage_of("half", model.quantization))
    assert len(faults) == (1 if named else 0)
    assert not named or re.search(named, faults[0])


def test_whole_groups_are_asked_of_one_die_too():
    falcon = read({**FALCON_7B, "quantization_config": GPTQ})
    faults = capacity.size_faults(falcon, 1, tensors_of(falcon), capacity.storage_of("half", falcon.quantization))
    assert any("4544 columns in groups of 128 (32 or 64 would do)" in fault for fault in faults)


def test_a_group_on_two_gpus_has_a_scale_on_each():
    """Llama 7B's down_proj over four gpus: 2,752 columns, 43 pieces of 64 and not 21.5 groups of 128."""
    storage = capacity.storage_of("half", read({**LLAMA_7B, "quantization_config": GPTQ}).quantization)
    model = read({**LLAMA_7B, "quantization_config": GPTQ})
    (down,) = (tensor for tensor in tensors_of(model) if "down_proj" in tensor.name)
    rows = 4096 * 32
    assert capacity.held_bytes(down, model, 2, storage) == rows * (5504 / 2 + 43 * storage.beside)
    assert capacity.held_bytes(down, model, 4, storage) == rows * (2752 / 2 + 43 * storage.beside)


def test_experts_take_every_storage_but_act_order():
    model = read(MIXTRAL)
    for storage in (FP32, FP16, INT4):
        assert capacity.model_faults(model, 4, storage) == []
    ((found, expected),) = capacity.model_faults(model, 1, replace(INT4, act_order=True))
    assert "act-order" in found
    assert "without act-order" in expected
    assert capacity.model_faults(read(LLAMA_7B), 1, replace(INT4, act_order=True)) == []
    numbers = 32 * 8 * 3 * 4096 * 14336 / 4
    experts = [tensor for tensor in tensors_of(model) if ".experts." in tensor.name]
    for storage, size in ((FP32, 4), (FP16, 2), (INT4, (4 + 32 / 128) / 8)):
        assert sum(capacity.held_bytes(tensor, model, 4, storage) for tensor in experts) == numbers * size


@pytest.mark.parametrize(
    ("config", "gpus", "size"),
    [(LLAMA_7B, 1, 2 * 32 * 4096 * 4), (LLAMA_7B, 4, 2 * 32 * 1024 * 4), (LLAMA_8B, 1, 2 * 32 * 1024 * 4),
     (QWEN2_7B, 4, 2 * 28 * 128 * 4), (QWEN2_7B, 8, 2 * 28 * 128 * 4), (FALCON_7B, 1, 2 * 32 * 64 * 4)],
)
def test_cache_of_a_token(config, gpus, size):
    assert capacity.token_bytes(read(config), gpus, FP32) == size
    assert capacity.token_bytes(read(config), gpus, FP16) == capacity.token_bytes(read(config), gpus, INT4) == size // 2


@pytest.mark.parametrize(
    ("length", "options", "tokens"),
    [
        (100, Options(), 2048),
        (4, Options(), 1024),
        (8192, Options(), 8192),
        (32768, Options(), 32768),
        (40000, Options(), 2048),
        (40000, Options(enable_chunked_prefill=False), 40000),
        (40000, Options(adapters=1, adapter_rank=8), 40000),
        (40000, Options(beside=1), 40000),
        (8192, Options(enable_chunked_prefill=True), 2048),
        (8192, Options(max_num_batched_tokens=9000), 9000),
    ],
)
def test_tokens_of_the_measuring_batch(length, options, tokens):
    """SchedulerConfig and EngineArgs of vLLM 0.9.2, V0."""
    assert options.batched_tokens(read(LLAMA_8B), length) == tokens


@pytest.mark.parametrize(("config", "length", "tokens"), [
    ({**LLAMA_8B, "model_type": "mistral", "sliding_window": 4096}, 40000, 40000),
    # A window in some layers only; images, which have room of their own.
    ({**LLAMA_8B, "model_type": "cohere2", "sliding_window": 4096}, 40000, 2048),
    (GEMMA3_4B, 40000, 40000), (GEMMA3_4B, 2048, 5120),
])
def test_windows_and_images_keep_long_prefills_whole(config, length, tokens):
    assert Options().batched_tokens(read(config), length) == tokens


def test_the_peak_of_the_activations():
    """Counted by hand, for 4,096 tokens in 256 sequences and in 8."""
    model = read(LLAMA_7B)
    fixed = 4096 * 64 + 8320 * 1024
    attention = 4096 * (2 * 4096 + 2 * 4096 + 2 * 4096) + 2 * (128 + 256) * 32 * 4096
    assert capacity.activation_bytes(model, 1, 4096, Options()) == 4 * attention + fixed
    feed_forward = 4096 * (3 * 4096 + 3 * 11008)
    assert capacity.activation_bytes(model, 1, 4096, Options(max_num_seqs=8)) == 4 * feed_forward + fixed
    # A large vocabulary: sorting the logits of 256 sequences needs the most.
    sampler = 36 * 256 * 128256 + 4 * (2048 + 256) * 4096
    assert capacity.activation_bytes(read(LLAMA_8B), 1, 2048, Options()) == sampler + 2048 * 64 + 8320 * 1024


def test_gate_and_up_are_held_where_the_model_still_names_them():
    """Qwen 2's layer against Llama's of the same shape: while it multiplies by down, and over gpus in the sum too."""
    def of(kind, gpus):
        model = read({**LLAMA_7B, "model_type": kind})
        return capacity.activation_bytes(model, gpus, 4096, Options(max_num_seqs=8)) - 4096 * 64 - 8320 * 1024

    assert of("llama", 1) == 4 * 4096 * (3 * 4096 + 3 * 11008)
    assert of("qwen2", 1) == 4 * 4096 * (4 * 4096 + 3 * 11008)
    assert of("llama", 4) == 4 * 4096 * (5 * 4096 + 2752)
    assert of("qwen2", 4) == 4 * 4096 * (5 * 4096 + 3 * 2752)


def test_activations_are_float32_and_products_take_a_tile():
    """By hand, of Qwen 2's 7 B for 2,048 tokens: gate, up and their product, then 64 MiB of down beside them."""
    model, options = read(QWEN2_7B), Options(max_num_seqs=4)
    tokens, hidden, inner = 2048, 3584, 18944
    fixed = tokens * 64 + 8320 * 1024
    held = 4 * tokens * (4 * hidden + 3 * inner)
    assert capacity.activation_bytes(model, 1, tokens, options, FP32) == held + fixed
    for storage in (FP16, INT4):
        assert capacity.activation_bytes(model, 1, tokens, options, storage) == held + 64 * MIB + fixed
    # Its columns in their own order: the input of down once more.
    scattered = capacity.storage_of("half", Quantization("gptq", Scheme(4, 128, act_order=True), zeros=False))
    found = capacity.activation_bytes(model, 1, tokens, options, scattered)
    assert found == held + 4 * tokens * inner + 64 * MIB + fixed


def test_a_small_matrix_is_a_small_tile():
    model = read(QWEN2_0_5B)
    found = capacity.activation_bytes(model, 1, 64, Options(max_num_seqs=1, max_num_batched_tokens=64), FP16)
    tokens, hidden, inner = 64, 896, 4864
    assert 2 * inner * hidden < 16 * MIB
    layer = tokens * (3 * hidden + 2 * inner) + 2 * inner * hidden
    assert found == 4 * layer + tokens * 64 + 8320 * 1024


def test_more_gpus_have_smaller_activations_but_for_the_sampler():
    model = read(LLAMA_7B)
    assert capacity.activation_bytes(model, 4, 4096, Options()) < capacity.activation_bytes(model, 1, 4096, Options())
    large = read(LLAMA_8B)
    assert capacity.activation_bytes(large, 4, 2048, Options()) == capacity.activation_bytes(large, 1, 2048, Options())


def test_experts_take_their_rows_in_parts():
    model = read(MIXTRAL)
    few, many = (capacity.activation_bytes(model, 1, length, Options(max_num_seqs=1)) for length in (2048, 32768))
    assert few < many < 16 * few


@pytest.mark.parametrize(
    ("name", "gpus"),
    [(name, gpus) for name in PARAMETERS for gpus in (1, 2, 4)
     if not capacity.size_faults(read(PARAMETERS[name][0]), gpus)],
)
@pytest.mark.parametrize("storage", [FP32, INT4])
def test_no_longer_context_fits_than_the_longest(name, gpus, storage):
    model = read(PARAMETERS[name][0])
    tensors = tensors_of(model)
    longest = capacity.longest_context(model, tensors, gpus, WHOLE, storage)
    limit = model.positions or capacity.CHUNKED_ABOVE
    assert 0 <= longest <= limit
    for length in {longest + 1, longest + 16, (longest + limit) // 2, limit} - set(range(longest + 1)):
        if length <= limit:
            assert not need(model, tensors, gpus, length, WHOLE, storage).fits
    if longest:
        assert need(model, tensors, gpus, longest, WHOLE, storage).fits


def test_what_fits_is_what_the_engine_would_start():
    model = read(QWEN2_0_5B)
    at = need(model, tensors_of(model), 1, 4096, WHOLE, FP32)
    assert at.weights + at.activations + at.outside + at.cache == int(11441 * MIB * 0.9)
    assert at.blocks * 16 == at.tokens >= 4096
    assert at.fits
    assert at.needed < int(11441 * MIB * 0.9)
    assert not need(model, tensors_of(model), 1, at.tokens * 16, WHOLE, FP32).fits


def test_what_is_known_to_lie_outside_counts():
    model = read(QWEN2_0_5B)
    one = need(model, tensors_of(model), 1, 4096, Options(outside=0), FP32)
    two = need(model, tensors_of(model), 1, 4096, Options(outside=GIB), FP32)
    assert one.cache - two.cache == GIB


def test_a_seven_billion_model_needs_three_gpus_and_gets_four():
    model = read(LLAMA_7B)
    assert capacity.gpus_needed(model, tensors_of(model), 2048, WHOLE, FP32) == 4
    assert capacity.sizes_that_divide(model, 8) == [1, 2, 4, 8]
    assert capacity.sizes_that_divide(read(QWEN2_7B), 8) == [1, 2, 4]
    assert capacity.sizes_that_divide(read(QWEN2_0_5B), 8) == [1, 2]
    assert capacity.size_faults(read(QWEN2_0_5B), 4) == ["14 attention heads"]


def test_no_number_of_gpus_holds_every_model():
    model = read({**LLAMA_13B, "num_hidden_layers": 4000})
    assert capacity.gpus_needed(model, tensors_of(model), 2048, WHOLE, FP32) is None


def test_token_reads_chosen_experts_and_one_embedding_row():
    model = read(MIXTRAL)
    read_of = capacity.read_bytes(model, tensors_of(model), 1, FP32)
    # The card's 12.9 billion active parameters, less the embedding of 131 million.
    assert read_of / 4 == pytest.approx(12.88e9 - 0.131e9, rel=1e-3)
    tied = read(QWEN2_0_5B)
    assert capacity.read_bytes(tied, tensors_of(tied), 1, FP32) == 4 * 494032768


def facts(config, tensors=(), faults=()):
    return {"config": config, "tensors": list(tensors), "faults": list(faults)}


def rows(made):
    return {(row["dies"], row["storage"]): row for row in made["layouts"]}


def test_a_plan_of_seven_billion_parameters():
    made = planned(facts(LLAMA_7B))
    assert json.loads(json.dumps(made)) == made
    assert len(made["layouts"]) == 12
    by = rows(made)
    assert [gpus for gpus in (1, 2, 4) if by[gpus, "fp32"]["fits"]] == [4]
    assert [gpus for gpus in (1, 2, 4) if by[gpus, "fp16"]["fits"]] == [2, 4]
    assert [gpus for gpus in (1, 2, 4) if by[gpus, "int4"]["fits"]] == [1, 2, 4]
    assert by[4, "fp32"]["longest"] == 4096
    assert by[4, "fp32"]["tokens_per_second"] == pytest.approx(150e9 * 4 / (4 * (6738415616 - 131072000)), rel=1e-3)
    assert by[4, "fp32"]["served"]
    assert by[2, "fp16"]["served"]
    assert not by[1, "int4"]["served"]
    assert by[1, "int4"]["checkpoint"] == "a checkpoint in 4 bits, groups of 128"
    assert made["conclusion"] == [
        f"Served in fp32 on 4 GPU(s), fp16 on 2 or 4 GPU(s); in fp16 on 4: {by[4, 'fp16']['sequences']} sequence(s) of "
        "4096 tokens, or one of up to 4096."
    ]


def test_decoding_is_as_fast_as_the_weights_are_small():
    by = rows(planned(facts(LLAMA_13B)))
    for storage, times in (("fp16", 2), ("int8", 3.9), ("int4", 7.3)):
        faster = by[2, storage]["tokens_per_second"] / by[2, "fp32"]["tokens_per_second"]
        assert faster == pytest.approx(times, rel=0.02)


def test_thirteen_billion_parameters_on_four_gpus():
    """With 8 sequences of 4,096 tokens at most: half starts and holds four of them whole, four bits all eight."""
    by = rows(planned(facts(LLAMA_13B), context=4096, max_num_seqs=8))
    assert [by[4, name]["sequences"] for name in ("fp32", "fp16", "int8", "int4")] == [0, 4, 7, 8]
    assert [by[4, name]["fits"] for name in ("fp32", "fp16", "int8", "int4")] == [False, True, True, True]


def test_a_model_that_fits_nowhere_is_told_so():
    made = planned(facts({**LLAMA_13B, "num_hidden_layers": 60}))
    assert not any(row["fits"] and row["served"] for row in made["layouts"])
    said = " ".join(made["conclusion"])
    assert "fits no layout of 1, 2, 4 GPUs" in said
    assert "In fp16 it would take 8 GPUs" in said
    assert "Another checkpoint of it would fit: int8 on 4 GPU(s), int4 on 2 or 4 GPU(s)." in said
    assert "10.06 GiB" in said
    nowhere = planned(facts({**LLAMA_13B, "num_hidden_layers": 400}))
    assert "No other storage" in " ".join(nowhere["conclusion"])


def test_a_mixture_is_planned_in_every_storage():
    small = {**MIXTRAL, "num_hidden_layers": 4}
    made = planned(facts(small))
    assert [row["faults"] for row in rows(made).values()] == [[]] * len(rows(made))
    assert "fp32 on 4 GPU(s)" in made["conclusion"][0]
    assert "fp16 on" in made["conclusion"][0]
    whole = " ".join(planned(facts(MIXTRAL))["conclusion"])
    assert "Another checkpoint of it would fit: int4 on 4 GPU(s)." in whole
    ordered = {**GPTQ, "desc_act": True}
    said = " ".join(planned(facts({**small, "quantization_config": ordered}))["conclusion"])
    assert "experts in GPTQ with act-order (desc_act) cannot be split or served" in said


@pytest.mark.parametrize(
    ("config", "named"),
    [(GEMMA3_4B, "vision_config"), ({**LLAMA_7B, "audio_config": {"a": 1}, "vision_config": {"b": 2}},
                                    "vision_config, audio_config")],
)
def test_what_config_json_alone_does_not_count_is_named(config, named):
    """The language model of Gemma 3 4B has 3.88 billion parameters on its card."""
    made = planned(facts(config))
    assert f"Not counted: the weights of {named}." in "".join(capacity_table(made))
    assert made["parameters"] == {"gemma3": 3880263168}.get(config["model_type"], 6738415616)
    recorded = [{"name": "a.weight", "shape": [8, 8], "count": 1, "dtype": "F16"}]
    assert planned({**facts(config), "tensors": recorded})["uncounted"] == []


def test_heads_that_cannot_be_split_are_named_in_the_table():
    lines = capacity_table(planned(facts(QWEN2_0_5B)))
    assert sum("14 attention heads" in line for line in lines) == 4
    assert any(line.startswith("   2    fp32") for line in lines)


def test_a_quantized_checkpoint_is_planned_as_it_is():
    made = planned(facts({**LLAMA_7B, "quantization_config": {**GPTQ, "group_size": 64}}))
    by = rows(made)
    assert len(by) == 12
    assert {storage for (_, storage), row in by.items() if row["served"]} == {"int4"}
    assert by[4, "int4"]["fits"]
    assert by[1, "int4"]["weights"] == MATRICES // 2 + MATRICES // 64 * 2 + 2 * EMBEDDINGS + 4 * FLOAT32
    assert by[4, "fp16"]["checkpoint"] == "an unquantized checkpoint"
    assert "Served in int4 on 1 or 2 or 4" in made["conclusion"][0]
    assert any("takes an unquantized checkpoint" in line for line in capacity_table(made))


@pytest.mark.parametrize("said", [{"quant_method": "fp8"}, {**GPTQ, "bits": 3}, {"quant_method": "bitsandbytes"}])
def test_a_checkpoint_that_is_refused_is_planned_as_its_model(said):
    tensors = [{"name": "model.layers.*.mlp.up_proj.qweight", "dtype": "I32", "shape": [10, 10], "count": 7}]
    made = planned(facts({**LLAMA_7B, "quantization_config": said}, tensors))
    assert (made["parameters"], made["counted"]) == (6738415616, "config")
    assert not any(row["served"] for row in made["layouts"])
    lines = capacity_table(made)
    assert any(line.startswith("Refused at start: ") for line in lines)
    assert any(line.startswith("Expected: ") for line in lines)
    assert not any("Served" in line or "takes a" in line for line in lines)


def test_sizes_of_files_go_before_the_formula():
    tensors = [{"name": "model.layers.*.mlp.up_proj.weight", "dtype": "F16", "shape": [10, 10], "count": 7}]
    made = planned(facts({**LLAMA_7B, "tie_word_embeddings": True}, tensors))
    assert (made["parameters"], made["counted"]) == (700, "safetensors")


def test_a_gguf_file_is_planned_by_the_types_of_its_tensors():
    """By hand: Q4_K in 4 bits, a scale and a zero for 32 columns; Q6_K and the tables as dtype says; more than 4 bits
    as an unquantized matrix, fewer as the most."""
    def layer(part, dtype, count):
        return {"name": f"model.layers.*.{part}.weight", "dtype": dtype, "shape": [4096, 4096], "count": count}

    tensors = [
        {"name": "model.embed_tokens.weight", "dtype": "Q6_K", "shape": [32000, 4096], "count": 1},
        layer("self_attn.q_proj", "Q4_K", 30), layer("self_attn.v_proj", "Q6_K", 2), layer("mlp.up_proj", "Q5_0", 1),
        {"name": "model.norm.weight", "dtype": "F32", "shape": [4096], "count": 1},
    ]
    config = {**LLAMA_7B, "tie_word_embeddings": True}
    model = read(config, tensors)
    assert (model.quantization.method, model.quantization.main) == ("gguf", Scheme(4, 32))
    square = 4096 * 4096
    for dtype, size in (("half", 2), ("float32", 4)):
        storage = capacity.storage_of(dtype, model.quantization)
        assert capacity.weight_bytes(model, tensors_of(model, tensors), 1, storage) == (
            size * 32000 * 4096 + 30 * square * 5 // 8 + 3 * size * square + 4 * (4096 + 4096 * 128)
        )
    made = planned(facts(config, tensors))
    assert made["counted"] == "a GGUF file"
    assert {row["storage"] for row in made["layouts"] if row["served"]} == {"int4"}
    only = [layer("mlp.up_proj", "Q8_0", 5), layer("self_attn.q_proj", "Q4_0", 2)]
    found = read(config, only).quantization
    assert (found.main, found.zeros) == (Scheme(8, 32), False)
    assert not any(tensor.plain for tensor in tensors_of(read(config, only), only))
    assert read(config, [layer("mlp.up_proj", "F16", 5)]).quantization is None


def test_a_model_is_planned_before_its_weights_are_there():
    absent = {"file": "/m", "found": "no weights", "expected": "weights"}
    assert planned(facts(LLAMA_7B, faults=[absent]))["counted"] == "config"


@pytest.mark.parametrize(
    ("asked", "variable"),
    [
        ({"context": "x"}, "plan_context"), ({"context": "0"}, "plan_context"), ({"context": 2.5}, "plan_context"),
        ({"context": 5000}, "plan_context"), ({"max_num_seqs": "-1"}, "plan_max_num_seqs"),
        ({"utilization": "1.5"}, "plan_utilization"), ({"utilization": []}, "plan_utilization"),
    ],
)
def test_what_is_asked_wrongly_is_named(asked, variable):
    with pytest.raises(AnsibleFilterError, match=variable) as raised:
        planned(facts(LLAMA_7B), **asked)
    assert "expected" in str(raised.value)


def test_what_is_asked_counts():
    made = planned(facts(LLAMA_7B), context="1024", max_num_seqs="8", utilization="0.8")
    assert (made["context"], made["max_num_seqs"], made["gpu_memory_utilization"]) == (1024, 8, 0.8)
    assert rows(made)[4, "fp32"]["sequences"] <= 8


@pytest.mark.parametrize("config", [None, {}, {**LLAMA_7B, "hidden_size": "x"}, {**LLAMA_7B, "model_type": "odd"}])
def test_a_config_that_cannot_be_planned_is_no_traceback(config):
    with pytest.raises(AnsibleFilterError, match=r"plan_model: found .* expected"):
        planned(facts(config))


def test_a_truncated_file_is_no_plan():
    fault = {"file": "/m/model.safetensors", "found": "10 bytes", "expected": "20 bytes"}
    with pytest.raises(AnsibleFilterError, match=r"found 10 bytes in /m/model\.safetensors"):
        planned(facts(LLAMA_7B, faults=[fault]))


def test_options_of_an_instance():
    made = capacity.options_of({
        "gpu_memory_utilization": 0.5,
        "extra_args": {
            "max-num-seqs": 8, "max-num-batched-tokens": "x", "enable-chunked-prefill": True, "block-size": 32,
        },
    }, PROFILE["gpu"])
    assert made == Options(
        max_num_seqs=8, enable_chunked_prefill=True, block_size=32, gpu_memory_utilization=0.5
    )
    assert capacity.options_of({}, PROFILE["gpu"]) == Options()


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"enable-chunked-prefill": False}, Options(enable_chunked_prefill=False)),
        ({"no-enable-chunked-prefill": True}, Options(enable_chunked_prefill=False)),
        ({"enable-chunked-prefill": True}, Options(enable_chunked_prefill=True)),
        ({"max-num-seqs": "8"}, Options(max_num_seqs=8)),
    ],
)
def test_both_spellings_of_an_option(extra, expected):
    assert capacity.options_of({"extra_args": extra}, PROFILE["gpu"]) == expected


LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 32768, "tie_word_embeddings": False,
}  # fmt: skip
SEVERAL_HOSTS = (ROOT / "docs" / "several-hosts.md").read_text()
QUANTIZED_70B = {**LLAMA_70B, "quantization_config": GPTQ}


def test_a_stage_has_its_layers_and_its_part_of_the_cache():
    made = planned(facts(QUANTIZED_70B), context=4096, max_num_seqs=32, hosts=2)
    one, two = (
        next(row for row in made["layouts"] if (row["hosts"], row["dies"], row["storage"]) == (hosts, 4, "int4"))
        for hosts in (1, 2)
    )
    # Half of the layers, and one of the two tables; the norms and the angles are small.
    table = 128256 * 8192 * 2 // 4
    assert two["weights"] == pytest.approx((one["weights"] - 2 * table) / 2 + table, rel=0.01)
    assert two["token"] * 2 == one["token"]
    # Two batches are in flight, each with half of the blocks.
    assert two["sequences"] == 2 * (two["blocks"] // 2 * 16 // 4096)
    assert (one["fits"], two["fits"]) == (False, True)
    # A stream passes one stage after the other.
    assert two["tokens_per_second"] == one["tokens_per_second"]
    lines = capacity_table(made)
    assert lines[2].startswith("hosts GPUs storage")
    assert any(line.startswith("    2    4    int4") for line in lines)
    assert made["conclusion"][0].startswith("Served in int4 on 4 GPU(s) of each of 2 hosts")


@pytest.mark.parametrize(("storage", "row"), [("int4", "4 bits | none"), ("int8", "8 bits | none")])
def test_plan_over_hosts_is_that_of_the_document(storage, row):
    made = planned(facts(LLAMA_70B), context=4096, max_num_seqs=32, hosts=2)
    (found,) = (one for one in made["layouts"] if (one["hosts"], one["storage"]) == (2, storage))
    assert f"| Llama 3 70B | {row} | {found['longest']:,} / {found['sequences']} |" in SEVERAL_HOSTS


def test_plan_of_one_host_names_the_hosts_that_would_do():
    made = planned(facts(QUANTIZED_70B), context=4096, max_num_seqs=32)
    assert "In int4 it fits 4 GPU(s) of each of 2 hosts: plan_hosts=2 shows it." in made["conclusion"]
    assert not any("hosts" in line for line in capacity_table(made)[:3])


def test_more_stages_than_layers_cannot_be_planned():
    made = planned(facts({**LLAMA_7B, "num_hidden_layers": 3}), hosts=4)
    assert [row["faults"] for row in made["layouts"] if row["hosts"] == 4] == [["3 layers over 4 hosts"]] * 4


@pytest.mark.parametrize("engine", ["stock", "port"])
def test_batches_of_a_released_engine_share_the_cache(engine):
    """A V0 engine parts the blocks between the batches in flight; V1 has one pool for all."""
    made = capacity_plan(facts(LLAMA_13B), profile=VOLTA, engine=engine, context=4096, max_num_seqs=32, hosts=2)
    (row,) = (row for row in made["layouts"] if (row["hosts"], row["storage"]) == (2, "fp16"))
    parts = {"stock": 1, "port": 2}[engine]
    assert row["sequences"] == parts * min(32, row["blocks"] // parts * 16 // 4096)
    assert "GPU(s) of each of 2 hosts" in made["conclusion"][0]


@pytest.mark.parametrize(("hosts", "message"), [
    ("none", 'plan_hosts: found "none"; expected an integer of 1 to 16'), ("17", 'plan_hosts: found "17"'),
])  # fmt: skip
def test_hosts_that_cannot_be_planned_are_refused(hosts, message):
    with pytest.raises(AnsibleFilterError, match=message):
        planned(facts(LLAMA_7B), hosts=hosts)
