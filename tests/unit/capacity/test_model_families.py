"""What is read of a config, and the parameters that follow from it."""

import pytest
from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint.engine import UNSUPPORTED_TYPES, judge
from ansible_collections.kepler.vllm.plugins.plugin_utils import capacity
from ansible_collections.kepler.vllm.plugins.plugin_utils.model_families import (
    FAMILIES,
    CapacityError,
    UnknownModelError,
    read,
    tensors_of,
)
from known_models import (
    DEEPSEEK_V2_LITE,
    FALCON_7B,
    GEMMA3_4B,
    GPT2,
    LLAMA_7B,
    LLAMA_8B,
    MIXTRAL,
    PARAMETERS,
    QWEN2_7B,
)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_that_were_published(name):
    config, published = PARAMETERS[name]
    assert sum(tensor.elements for tensor in tensors_of(read(config))) == published


@pytest.mark.parametrize(
    ("config", "kv_heads"), [(LLAMA_7B, 32), (LLAMA_8B, 8), (FALCON_7B, 1), (MIXTRAL, 8), (GPT2, 12)]
)
def test_heads_of_keys_and_values(config, kv_heads):
    assert read(config).kv_heads == kv_heads


@pytest.mark.parametrize(
    ("scaling", "positions"),
    [
        (None, 4096),
        ({"type": "linear", "factor": 2.0}, 8192),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
        ({"type": "longrope", "factor": 32.0, "short_factor": [1.0], "long_factor": [2.0]}, 4096),
    ],
)
def test_positions_follow_the_scaling(scaling, positions):
    assert read({**LLAMA_7B, "rope_scaling": scaling}).positions == positions


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "default", "rope_theta": 1e6}, 4096),
        ({"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "rope_theta": 1e6}, 8192),
        ({"rope_type": "yarn", "factor": 2.0}, 8192),
    ],
)
def test_positions_follow_the_rope_parameters_of_transformers_5(rope, positions):
    assert read({**LLAMA_7B, "rope_parameters": rope}).positions == positions


def test_what_the_engine_would_not_understand_is_named():
    with pytest.raises(CapacityError, match="attention_factor"):
        read({**LLAMA_7B, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 2.0}})


def test_the_table_of_angles():
    assert read(LLAMA_7B).rotary == 4096 * 128
    assert read(GPT2).rotary == 0
    assert read({**LLAMA_7B, "partial_rotary_factor": 0.25}).rotary == 4096 * 32


def test_a_config_without_positions_sets_no_bound():
    assert read(FALCON_7B).positions is None


def test_a_window_counts_where_it_is_used():
    assert not read(QWEN2_7B).window
    assert not read({**QWEN2_7B, "use_sliding_window": True}).window
    assert read({**LLAMA_7B, "sliding_window": 4096}).window


def test_the_language_part_of_a_config_counts():
    nested = {"architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {}, "text_config": LLAMA_7B}
    assert read(nested).hidden == 4096


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")


@pytest.mark.parametrize(
    ("config", "kind", "sizes", "positions"),
    [
        (GEMMA3_4B, "gemma3_text", (2560, 34, 8, 4, 256, 10240, 262208), 131072),
        # Without its own type, and without any part.
        ({"model_type": "gemma3", "text_config": {"hidden_size": 3840, "num_attention_heads": 16, "head_dim": None}},
         "gemma3_text", (3840, 26, 16, 4, 240, 9216, 262208), 131072),
        ({"model_type": "paligemma", "vision_config": {}}, "gemma", (3072, 28, 16, 16, 256, 24576, 256000), 8192),
        # Llava 1.5: sizes of the outer config are not the language model's.
        ({"model_type": "llava", "hidden_size": 1024,
          "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064}},
         "llama", (4096, 32, 32, 32, 128, 11008, 32064), 4096),
        ({"model_type": "llava_next", "text_config": {"model_type": "mistral", "vocab_size": 32064}},
         "mistral", (4096, 32, 32, 8, 128, 14336, 32064), 131072),
        ({"model_type": "internvl_chat", "llm_config": {"model_type": "qwen2", "hidden_size": 896,
                                                        "num_attention_heads": 14, "num_key_value_heads": 2}},
         "qwen2", (896, 32, 14, 2, 64, 22016, 151936), 32768),
        ({"model_type": "any", "llm_config": {key: LLAMA_7B[key] for key in (*SIZES, "vocab_size")}},
         "any", (4096, 32, 32, 32, 128, 11008, 32000), None),
    ],
)
def test_what_a_part_leaves_out_is_what_its_class_has(config, kind, sizes, positions):
    model = read(config)
    assert model.model_type == kind
    assert (model.hidden, model.layers, model.heads, model.kv_heads, model.head_size, model.intermediate,
            model.vocabulary) == sizes
    assert model.positions == positions


@pytest.mark.parametrize("part", [{"hidden_size": 64}, {"model_type": "novelty", "hidden_size": 64}])
def test_a_part_of_an_unknown_class_needs_its_sizes(part):
    with pytest.raises(UnknownModelError, match="num_attention_heads"):
        read({"model_type": "any", "text_config": part})


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": "4096"}, {"num_attention_heads": 0}, {"vocab_size": True}, {"num_hidden_layers": 2.5},
     {"num_key_value_heads": -1}, {"rope_scaling": {"type": "linear", "factor": "x"}}, {"hidden_size": 10**400},
     {"max_position_embeddings": 10**30}, {"num_hidden_layers": 10**9},
     {"rope_scaling": {"type": "linear", "factor": float("nan")}},
     {"rope_scaling": {"type": "linear", "factor": 1e308}}],
)
def test_a_wrong_value_is_named(change):
    with pytest.raises(CapacityError) as raised:
        read({**LLAMA_7B, **change})
    assert next(iter(change)) in raised.value.found
    assert not isinstance(raised.value, UnknownModelError)


@pytest.mark.parametrize("share", [1e308, -1, float("nan"), 10**400])
def test_rotated_share_beyond_a_head_is_refused(share):
    with pytest.raises(CapacityError, match="rotated share"):
        read({**LLAMA_7B, "partial_rotary_factor": share})


@pytest.mark.parametrize(("kind", "architecture", "key"), [
    ("qwen3_moe", "Qwen3MoeForCausalLM", "mlp_only_layers"),
    ("deepseek_v2", "DeepseekV2ForCausalLM", "first_k_dense_replace"),
])
def test_layers_without_experts_are_checked(kind, architecture, key):
    sizes = {"num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
             "kv_lora_rank": 64, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 64}
    config = {**LLAMA_7B, **sizes, "model_type": kind, "architectures": [architecture]}
    for value in ("x", 5.5, {"a": 1}):
        with pytest.raises(CapacityError, match=key):
            tensors_of(read({**config, key: value}))


@pytest.mark.parametrize("config", [{}, {"model_type": "bert"}, {**LLAMA_7B, "hidden_size": None}])
def test_what_is_no_language_model_is_told_from_a_mistake(config):
    with pytest.raises(UnknownModelError, match="hidden_size"):
        read(config)


@pytest.mark.parametrize("config", [None, [], "llama"])
def test_a_config_that_is_no_mapping(config):
    with pytest.raises(CapacityError, match="mapping"):
        read(config)


def test_an_unknown_type_needs_the_sizes_of_its_tensors():
    model = read({**LLAMA_7B, "model_type": "novelty"})
    with pytest.raises(UnknownModelError, match="novelty"):
        tensors_of(model)
    recorded = [{"name": "a.*.q_proj.weight", "shape": [4, 5], "count": 3}]
    assert sum(tensor.elements for tensor in tensors_of(model, recorded)) == 60 + 32000 * 4096


def test_what_the_engine_does_not_load_is_not_counted():
    recorded = [
        {"name": name, "shape": [10, 10], "count": 1}
        for name in ("lm_head.weight", "h.*.attn.bias", "h.*.attn.masked_bias", "layers.*.rotary_emb.inv_freq",
                     "h.*.attn.c_attn.bias", "wte.weight")
    ]
    kept = [tensor.name for tensor in tensors_of(read(GPT2), recorded)]
    assert kept == ["h.*.attn.c_attn.bias", "wte.weight"]


def test_an_untied_head_is_kept_though_no_file_holds_it():
    recorded = [{"name": "model.embed_tokens.weight", "shape": [32000, 4096], "count": 1}]
    assert [tensor.name for tensor in tensors_of(read(LLAMA_7B), recorded)] == [
        "model.embed_tokens.weight", "lm_head.weight"
    ]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 3, "group_size": 128}}, "AWQ with bits 3"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized with fp8"),
        ({"quantization_config": {"bits": 4}}, "unnamed"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"model_type": "kimi_vl"}, "latent"),
        ({"model_type": "mamba2"}, "Triton"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
    ],
)
def test_what_the_port_refuses(change, named):
    ((found, expected),) = judge({**LLAMA_7B, **change})
    assert named in found
    assert expected
    if "quantized" in found:
        assert "GPTQ" in expected


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
AWQ = {**GPTQ, "quant_method": "awq"}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {
    "targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}}}}
UP = "model.layers.*.mlp.up_proj"


@pytest.mark.parametrize(
    ("said", "words", "others"),
    [
        (GPTQ, ("qweight", [512, 11008]), ("qzeros", "scales", "g_idx")),
        ({**GPTQ, "bits": 8}, ("qweight", [1024, 11008]), ("qzeros", "scales", "g_idx")),
        (AWQ, ("qweight", [4096, 1376]), ("qzeros", "scales")),
        (COMPRESSED, ("weight_packed", [11008, 1024]), ("weight_scale", "weight_shape", "weight_zero_point")),
    ],
)
def test_words_of_codes_are_matrices(said, words, others):
    """Up's matrix has 11,008 rows of 4,096 columns however it is packed."""
    name, shape = words
    recorded = [
        {"name": f"{UP}.{name}", "shape": shape, "count": 32},
        *({"name": f"{UP}.{other}", "shape": [32, 11008], "count": 32} for other in others),
        {"name": "lm_head.weight", "shape": [32000, 4096], "count": 1},
        {"name": "model.norm.weight", "shape": [4096], "count": 1},
    ]
    up, head, norm = tensors_of(read({**LLAMA_7B, "quantization_config": said}), recorded)
    assert (up.name, up.shape, up.count, up.plain) == (f"{UP}.weight", (11008, 4096), 32, False)
    assert (head.plain, norm.plain) == (True, False)


@pytest.mark.parametrize(
    ("said", "name", "shape", "named"),
    [(GPTQ, "weight", [8, 8], "no quantized matrix"), (None, "qweight", [8, 8], "no way they are quantized"),
     (GPTQ, "qweight", [8], "shape")],
)
def test_files_and_config_of_different_checkpoints(said, name, shape, named):
    recorded = [{"name": f"{UP}.{name}", "shape": shape, "count": 32}]
    with pytest.raises(CapacityError, match=named):
        tensors_of(read({**LLAMA_7B, "quantization_config": said}), recorded)


@pytest.mark.parametrize("name", ["mlp.gate.qweight", "block_sparse_moe.gate.weight_packed", "mlp.gate_proj.qweight"])
def test_quantized_router_is_refused_by_its_tensors(name):
    recorded = [{"name": f"model.layers.*.{name}", "shape": [8, 8], "dtype": "I32", "count": 32}]
    found = judge({**LLAMA_7B, "quantization_config": GPTQ}, recorded)
    assert [what for what, _ in found] == ([f"a quantized router (model.layers.*.{name})"] if ".gate." in name else [])


def test_nothing_else_is_refused():
    for said in (GPTQ, AWQ, COMPRESSED):
        assert judge({**LLAMA_7B, "quantization_config": said}) == []
    assert judge(LLAMA_7B) == []
    assert not set(UNSUPPORTED_TYPES) & set(FAMILIES)


def test_latent_attention_is_counted_head_by_head():
    """15.7 billion parameters by its card; the cache as upstream pads it."""
    model = read(DEEPSEEK_V2_LITE)
    assert round(sum(tensor.elements for tensor in tensors_of(model)) / 1e9, 2) == 15.71
    assert judge(DEEPSEEK_V2_LITE) == []
    assert capacity.token_bytes(model, 4, capacity.STORAGES["fp16"]) == 2 * 27 * (16 // 4) * 192 * 2
    whole, split = (capacity.weight_bytes(model, tensors_of(model), gpus, capacity.STORAGES["fp16"]) for gpus in (1, 2))
    # Projections into the latent space, routers and norms lie whole on both.
    assert whole / 2 < split < whole / 2 * 1.01
