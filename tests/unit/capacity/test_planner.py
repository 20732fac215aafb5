"""Weights, cache and activations of a die, and the plan that follows."""

import json

import pytest
from ansible.errors import AnsibleFilterError
from kepler_capacity import capacity_plan, capacity_table
from kepler_controller import capacity
from kepler_controller.capacity import GIB, MIB, STORAGES, Options, need
from kepler_controller.model_families import read, tensors_of
from known_models import FALCON_7B, GPT2, LLAMA_7B, LLAMA_8B, LLAMA_13B, MIXTRAL, PARAMETERS, QWEN2_0_5B, QWEN2_7B

FP32, FP16, INT4 = (STORAGES[name] for name in ("fp32", "fp16", "int4"))
WHOLE = Options(gpu_memory_utilization=0.9)


def weights(config, dies, storage=FP32):
    model = read(config)
    return capacity.weight_bytes(model, tensors_of(model), dies, storage)


def test_one_die_has_all_parameters_and_the_table_of_angles():
    assert weights(LLAMA_7B, 1) == 4 * 6738415616 + 4 * 4096 * 128
    assert weights(LLAMA_7B, 1, FP16) == 2 * 6738415616 + 4 * 4096 * 128


def test_a_vocabulary_is_padded():
    assert weights(GPT2, 1) == 4 * (124439808 + (50304 - 50257) * 768)


def test_norms_stand_on_every_die():
    whole, half = weights(LLAMA_7B, 1) - 4 * 4096 * 128, weights(LLAMA_7B, 2) - 4 * 4096 * 128
    assert 2 * half - whole == 4 * 65 * 4096


def test_keys_and_values_are_doubled_where_there_are_more_dies_than_heads():
    """Qwen2.5-7B has 4 heads of 128: on 8 dies each has one whole."""
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


def test_four_bits_are_for_the_matrices_of_the_layers():
    embeddings = 2 * 32000 * 4096
    matrices = 6738415616 - embeddings - 65 * 4096
    expected = matrices * (0.5 + 2.5 / 128) + 2 * (embeddings + 65 * 4096) + 4 * 4096 * 128
    assert weights(LLAMA_7B, 1, INT4) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    ("config", "dies", "size"),
    [(LLAMA_7B, 1, 2 * 32 * 4096 * 4), (LLAMA_7B, 4, 2 * 32 * 1024 * 4), (LLAMA_8B, 1, 2 * 32 * 1024 * 4),
     (QWEN2_7B, 4, 2 * 28 * 128 * 4), (QWEN2_7B, 8, 2 * 28 * 128 * 4), (FALCON_7B, 1, 2 * 32 * 64 * 4)],
)
def test_cache_of_a_token(config, dies, size):
    assert capacity.token_bytes(read(config), dies, FP32) == size
    assert capacity.token_bytes(read(config), dies, INT4) == size // 2


@pytest.mark.parametrize(
    ("length", "options", "tokens"),
    [
        (100, Options(), 2048),
        (4, Options(), 1024),
        (8192, Options(), 8192),
        (32768, Options(), 32768),
        (40000, Options(), 2048),
        (40000, Options(enable_chunked_prefill=False), 40000),
        (8192, Options(enable_chunked_prefill=True), 2048),
        (8192, Options(max_num_batched_tokens=9000), 9000),
    ],
)
def test_tokens_of_the_measuring_batch(length, options, tokens):
    """SchedulerConfig and EngineArgs of vLLM 0.9.2, V0."""
    assert options.batched_tokens(read(LLAMA_8B), length) == tokens


def test_a_window_keeps_long_prefills_whole():
    model = read({**LLAMA_8B, "model_type": "mistral", "sliding_window": 4096})
    assert Options().batched_tokens(model, 40000) == 40000


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


def test_more_dies_have_smaller_activations_but_for_the_sampler():
    model = read(LLAMA_7B)
    assert capacity.activation_bytes(model, 4, 4096, Options()) < capacity.activation_bytes(model, 1, 4096, Options())
    large = read(LLAMA_8B)
    assert capacity.activation_bytes(large, 4, 2048, Options()) == capacity.activation_bytes(large, 1, 2048, Options())


def test_experts_take_their_rows_in_parts():
    model = read(MIXTRAL)
    few, many = (capacity.activation_bytes(model, 1, length, Options(max_num_seqs=1)) for length in (2048, 32768))
    assert few < many < 16 * few


@pytest.mark.parametrize(
    ("name", "dies"),
    [(name, dies) for name in PARAMETERS for dies in (1, 2, 4)
     if not capacity.size_faults(read(PARAMETERS[name][0]), dies)],
)
@pytest.mark.parametrize("storage", [FP32, INT4])
def test_no_longer_context_fits_than_the_longest(name, dies, storage):
    model = read(PARAMETERS[name][0])
    tensors = tensors_of(model)
    longest = capacity.longest_context(model, tensors, dies, WHOLE, storage)
    limit = model.positions or capacity.CHUNKED_ABOVE
    assert 0 <= longest <= limit
    for length in {longest + 1, longest + 16, (longest + limit) // 2, limit} - set(range(longest + 1)):
        if length <= limit:
            assert not need(model, tensors, dies, length, WHOLE, storage).fits
    if longest:
        assert need(model, tensors, dies, longest, WHOLE, storage).fits


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


def test_a_seven_billion_model_needs_three_dies_and_gets_four():
    model = read(LLAMA_7B)
    assert capacity.dies_needed(model, tensors_of(model), 2048, WHOLE, FP32) == 4
    assert capacity.sizes_that_divide(model, 8) == [1, 2, 4, 8]
    assert capacity.sizes_that_divide(read(QWEN2_7B), 8) == [1, 2, 4]
    assert capacity.sizes_that_divide(read(QWEN2_0_5B), 8) == [1, 2]
    assert capacity.size_faults(read(QWEN2_0_5B), 4) == ["14 attention heads"]


def test_no_number_of_dies_holds_every_model():
    model = read({**LLAMA_13B, "num_hidden_layers": 4000})
    assert capacity.dies_needed(model, tensors_of(model), 2048, WHOLE, FP32) is None


def test_a_token_reads_the_chosen_experts_and_one_row_of_the_embedding():
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
    made = capacity_plan(facts(LLAMA_7B))
    assert json.loads(json.dumps(made)) == made
    assert len(made["layouts"]) == 12
    by = rows(made)
    assert [dies for dies in (1, 2, 4) if by[dies, "fp32"]["fits"]] == [4]
    assert by[4, "fp32"]["longest"] == 4096
    assert by[4, "fp32"]["tokens_per_second"] == pytest.approx(150e9 * 4 / (4 * (6738415616 - 131072000)), rel=1e-3)
    assert by[4, "fp32"]["served"]
    assert not by[4, "int4"]["served"]
    assert "Served today in fp32 on 4" in made["verdict"][0]


def test_a_model_that_fits_nowhere_is_told_so():
    made = capacity_plan(facts(LLAMA_13B))
    assert not any(row["fits"] and row["served"] for row in made["layouts"])
    said = " ".join(made["verdict"])
    assert "fits no layout that is served today" in said
    assert "would take 8 dies" in said
    assert "fp16 on 4" in said
    assert "10.06 GiB" in said
    nowhere = capacity_plan(facts({**LLAMA_13B, "num_hidden_layers": 400}))
    assert "no other storage" in " ".join(nowhere["verdict"])


def test_heads_that_cannot_be_split_are_named_in_the_table():
    lines = capacity_table(capacity_plan(facts(QWEN2_0_5B)))
    assert sum("14 attention heads" in line for line in lines) == 4
    assert any(line.startswith("   2    fp32") for line in lines)


def test_a_quantized_checkpoint_is_planned_and_said_to_be_refused():
    lines = capacity_table(capacity_plan(facts({**LLAMA_7B, "quantization_config": {"quant_method": "gptq"}})))
    assert any("gptq" in line and "Refused" in line for line in lines)


def test_sizes_of_files_go_before_the_formula():
    tensors = [{"name": "model.layers.*.mlp.up_proj.weight", "dtype": "F16", "shape": [10, 10], "count": 7}]
    made = capacity_plan(facts({**LLAMA_7B, "tie_word_embeddings": True}, tensors))
    assert (made["parameters"], made["counted"]) == (700, "safetensors")


def test_a_model_is_planned_before_its_weights_are_there():
    absent = {"file": "/m", "found": "no weights", "expected": "weights"}
    assert capacity_plan(facts(LLAMA_7B, faults=[absent]))["counted"] == "config"


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
        capacity_plan(facts(LLAMA_7B), **asked)
    assert "expected" in str(raised.value)


def test_what_is_asked_counts():
    made = capacity_plan(facts(LLAMA_7B), context="1024", max_num_seqs="8", utilization="0.8")
    assert (made["context"], made["max_num_seqs"], made["gpu_memory_utilization"]) == (1024, 8, 0.8)
    assert rows(made)[4, "fp32"]["sequences"] <= 8


@pytest.mark.parametrize("config", [None, {}, {**LLAMA_7B, "hidden_size": "x"}, {**LLAMA_7B, "model_type": "odd"}])
def test_a_config_that_cannot_be_planned_is_no_traceback(config):
    with pytest.raises(AnsibleFilterError, match=r"plan_model: found .* expected"):
        capacity_plan(facts(config))


def test_a_truncated_file_is_no_plan():
    fault = {"file": "/m/model.safetensors", "found": "10 bytes", "expected": "20 bytes"}
    with pytest.raises(AnsibleFilterError, match=r"found 10 bytes in /m/model\.safetensors"):
        capacity_plan(facts(LLAMA_7B, faults=[fault]))


def test_options_of_an_instance():
    made = capacity.options_of({
        "gpu_memory_utilization": 0.5,
        "extra_args": {
            "max-num-seqs": 8, "max-num-batched-tokens": "x", "enable-chunked-prefill": True, "block-size": 32,
        },
    })
    assert made == Options(
        max_num_seqs=8, enable_chunked_prefill=True, block_size=32, gpu_memory_utilization=0.5
    )
    assert capacity.options_of({}) == Options()
