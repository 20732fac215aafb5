"""Configs of transformers 5 with the keys of transformers 4, and keys that are refused."""

import copy

import pytest
from module_utils.checkpoint.config import translate
from module_utils.checkpoint.errors import UnsupportedConfigError

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
PLAIN = {"rope_type": "default", "rope_theta": 1000000.0}
WINDOWS = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64, "num_hidden_layers": 4}


def of(model_type, rope=None, **more):
    config = dict({"model_type": model_type}, **more)
    return config if rope is None else dict(config, rope_parameters=rope)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (of("qwen3", PLAIN), {"rope_theta": 1000000.0, "rope_scaling": None}),
        (of("qwen3", {"rope_theta": 5000000}), {"rope_theta": 5000000, "rope_scaling": None}),
        (of("llama", dict(LLAMA3, rope_theta=500000.0)), {"rope_theta": 500000.0, "rope_scaling": LLAMA3}),
        (of("qwen2", dict(YARN, rope_theta=1e6)), {"rope_theta": 1e6, "rope_scaling": YARN}),
        (of("qwen3", {"rope_type": "yarn", "factor": 2.0}, max_position_embeddings=4096),
         {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4096}}),
        (of("llama", {"type": "linear", "factor": 2.0, "rope_theta": 1e4}),
         {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        (of("llama", {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 512},
            max_position_embeddings=512), {"rope_scaling": None}),
        # Of no effect within the positions, of which the engine would scale all.
        ({"model_type": "internlm2", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, {"rope_scaling": None}),
        # The first layers, as many as the number says, have no window.
        (dict(WINDOWS, max_window_layers=4), {"use_sliding_window": False}), (WINDOWS, {"use_sliding_window": False}),
        (of("gpt_neox", dict(PLAIN, partial_rotary_factor=0.25)),
         {"rope_theta": 1e6, "rotary_emb_base": 1e6, "rotary_pct": 0.25}),
        (of("stablelm", dict(PLAIN, partial_rotary_factor=0.5)), {"partial_rotary_factor": 0.5}),
        (of("gemma3_text", {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                            "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0}}),
         {"rope_theta": 1e6, "rope_local_base_freq": 20000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        (of("qwen3", {"full_attention": PLAIN, "sliding_attention": PLAIN}), {"rope_theta": 1e6}),
        (of("phi3", {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0], "rope_theta": 1e4,
                     "original_max_position_embeddings": 128, "partial_rotary_factor": 0.75, "factor": 4.0},
            max_position_embeddings=512, original_max_position_embeddings=128),
         {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
          "original_max_position_embeddings": 128, "partial_rotary_factor": 0.75}),
        (of("qwen3", PLAIN, rope_theta=1000000), {"rope_theta": 1000000}),
        (of("llama", dict(LLAMA3, rope_theta=5e5), rope_scaling=LLAMA3, rope_theta=5e5), {"rope_scaling": LLAMA3}),
        (of("llama", dtype="bfloat16"), {"torch_dtype": "bfloat16"}),
        (of("llama", dtype="float32", torch_dtype="float16"), {"torch_dtype": "float16"}),
        (of("gemma3_text", layer_types=["sliding_attention", "full_attention"] * 2), {"sliding_window_pattern": 2}),
        (of("gemma3_text", layer_types=["full_attention"] * 3), {"sliding_window_pattern": 1}),
        (of("cohere2", layer_types=[*["sliding_attention"] * 3, "full_attention"] * 2), {"sliding_window_pattern": 4}),
        (of("cohere2", layer_types=["sliding_attention"] * 3), {"sliding_window_pattern": 4}),
        (of("gemma2", layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=4096),
         {"sliding_window": 4096}),
        (of("mistral", layer_types=["full_attention"] * 2, sliding_window=4096), {"sliding_window": None}),
        (of("mistral", layer_types=["sliding_attention"] * 2, sliding_window=4096), {"sliding_window": 4096}),
        # The engine wants the key, transformers takes the positions.
        (of("qwen2", rope_scaling={"type": "yarn", "factor": 4.0}, max_position_embeddings=4096),
         {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}}),
        # transformers 4 ends by a name that torch does not have.
        (of("llama", torch_dtype="torch.bfloat16"), {"torch_dtype": None}),
        (of("llama", dtype={"": "bfloat16", "vision_config": "float32"}), {"torch_dtype": None}),
        (of("llama", torch_dtype="auto"), {"torch_dtype": None}), (of("llama", dtype=["bf16"]), {"torch_dtype": None}),
        (of("deepseek_v3", mlp_layer_types=["dense", "sparse", "sparse"]), {"first_k_dense_replace": 1}),
        (of("deepseek_v2", mlp_layer_types=["sparse"] * 2), {"first_k_dense_replace": 0}),
        (of("qwen3_moe", mlp_layer_types=["sparse", "dense", "sparse"]), {"mlp_only_layers": [1]}),
        (of("mixtral", mlp_layer_types=["sparse"] * 2), {"model_type": "mixtral"}),
    ],
)
def test_config_gets_keys_of_transformers_4(config, expected):
    before = copy.deepcopy(config)
    got = translate(config)
    assert {key: got[key] for key in expected} == expected
    assert config == before
    assert not {"rope_parameters", "layer_types", "mlp_layer_types"} & set(got)
    assert translate(got) == got


@pytest.mark.parametrize("empty", [{}, "", [], None, False])
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_empty_quantization_is_removed(key, empty):
    assert translate(of("llama", **{key: empty})) == of("llama")
    assert translate(of("llava", text_config=of("llama", **{key: empty}))) == of("llava", text_config=of("llama"))


def test_nested_config_is_translated():
    got = translate(of("llava", text_config=of("mistral", PLAIN, dtype="float16")))["text_config"]
    assert (got["rope_theta"], got["torch_dtype"]) == (1e6, "float16")


@pytest.mark.parametrize("config", [
    of("llama", rope_theta=1e4), of("qwen2", rope_scaling={"type": "yarn", "factor": 4.0, "attention_factor": None}),
    of("deepseek_v2", kv_lora_rank=512, rope_scaling={"type": "yarn", "factor": 40, "mscale": 0.7}),
    of("llama4", no_rope_layers=[1, 0]), of("gemma3n_text", layer_types=["full_attention", "sliding_attention"]),
    {"quantization_config": {"quant_method": "gptq", "rope_parameters": 3}}, None, ["a list"],
])
def test_config_of_transformers_4_is_unchanged(config):
    assert translate(config) == config


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (of("llama", "yarn"), "rope_parameters"),
        (of("llama", {"rope_type": "proportional"}), "rope_type proportional"),
        (of("llama", dict(YARN, attention_factor=1.2)), "attention_factor"),
        (of("gpt_oss", dict(YARN, truncate=False)), "truncate"),
        (of("qwen2", rope_scaling=dict(YARN, attention_factor=1.2)), "attention_factor"),
        (of("llama", rope_scaling={"type": "yarn", "factor": 4.0, "mscale": 0.7}), "mscale"),
        (of("llava", text_config=of("llama", rope_scaling=dict(YARN, truncate=False))), "text_config.rope_scaling"),
        # The engine would end by these.
        (of("llama", rope_scaling="yarn"), "rope_scaling that is a str"),
        (of("llama", rope_scaling={"factor": 2.0}), "rope_scaling of the type none"),
        (of("llama", rope_scaling={"type": "proportional"}), "rope_scaling of the type proportional"),
        (of("llama", rope_scaling={"type": "linear", "rope_type": "yarn", "factor": 2.0}), "linear and yarn"),
        (of("llama", rope_scaling={"type": "linear"}), "without factor"),
        (of("llama", rope_scaling={"rope_type": "llama3", "factor": 8.0}), "without low_freq_factor"),
        (of("phi3", rope_scaling={"type": "su", "short_factor": [1.0]}), "without long_factor"),
        (of("deepseek_v3", mlp_layer_types=["sparse", "dense"]), "mlp_layer_types with dense layers 1"),
        (of("mixtral", mlp_layer_types=["dense", "sparse"]), "mlp_layer_types"),
        (of("deepseek_v3", mlp_layer_types=["dense", "sparse"], first_k_dense_replace=3), "first_k_dense_replace"),
        (of("qwen3_moe", mlp_layer_types=["dense"], num_hidden_layers=2), "num_hidden_layers"),
        (of("qwen3_moe", mlp_layer_types=["hash"]), "hash"),
        (of("llama", {"rope_theta": "1e6"}), "rope_theta"),
        (of("llama", {"rope_theta": True}), "rope_theta"),
        (of("qwen3", dict(PLAIN, partial_rotary_factor=0.25)), "partial_rotary_factor"),
        (of("qwen3", PLAIN, rope_theta=10000.0), "rope_theta"),
        (of("llama", PLAIN, rope_scaling=LLAMA3), "rope_scaling"),
        (of("olmo3", {"full_attention": dict(YARN, rope_theta=5e5), "sliding_attention": PLAIN}), "full_attention"),
        (of("gemma3_text", {"full_attention": PLAIN, "sliding_attention": dict(YARN, rope_theta=1e4)}),
         "sliding_attention"),
        (of("gemma3_text", {"full_attention": PLAIN, "rope_theta": 1e4}), "layer types"),
        (of("phi3", {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0], "factor": 3.0},
            max_position_embeddings=512, original_max_position_embeddings=128), "factor 3.0"),
        (of("gemma3_text", layer_types=["sliding_attention", "full_attention", "full_attention"]), "layer_types"),
        (of("gemma2", layer_types=["full_attention", "sliding_attention"]), "layer_types"),
        (dict(WINDOWS, max_window_layers=2), "max_window_layers 2"),
        (of("qwen3", layer_types=["full_attention", "sliding_attention"]), "layer_types"),
        (of("qwen3", layer_types=["linear_attention", "full_attention"]), "linear_attention"),
        (of("llama", layer_types=["full_attention"], num_hidden_layers=2), "num_hidden_layers"),
        (of("llama", layer_types=3), "layer_types"),
        (of("smollm3", no_rope_layers=[1, 1, 1, 0]), "no_rope_layers"),
        (of("exaone4", no_rope_layer_interval=4), "no_rope_layer_interval"),
        (of("llava", text_config=of("llama", {"rope_type": "other"})), "text_config.rope_parameters"),
    ],
)
def test_unreadable_key_is_refused_by_name(config, named):
    with pytest.raises(UnsupportedConfigError) as refused:
        translate(config)
    assert named in str(refused.value)
    assert refused.value.expected
