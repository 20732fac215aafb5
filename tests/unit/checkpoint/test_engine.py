"""Whether the engine knows a model by its names."""

import pytest
from module_utils.checkpoint.engine import Engine, judge, refusals
from quantization_cases import AWQ, GPTQ, packed

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
OWN_CODE = {"auto_map": {"AutoConfig": "c.C", "AutoModel": "m.M", "AutoModelForCausalLM": "m.M"}}


def of(**more):
    return dict(LLAMA, **more)


@pytest.mark.parametrize(
    ("config", "tokenizer"),
    [
        (LLAMA, None), (LLAMA, {}), (LLAMA, {"tokenizer_class": "PreTrainedTokenizerFast"}),
        (LLAMA, {"tokenizer_class": "LlamaTokenizer"}), (LLAMA, {"tokenizer_class": "Qwen2Tokenizer"}),
        (LLAMA, {"tokenizer_class": "TokenizersBackend"}),
        (of(architectures=["Unheard", "LlamaForCausalLM"]), None),
        # The engine has these with code of its own, or by the code of transformers.
        (of(model_type="chatglm", architectures=["ChatGLMModel"], **OWN_CODE), None),
        (of(model_type="helium", architectures=["HeliumForCausalLM"]), None),
        (of(model_type="gemma3", architectures=["Gemma3ForConditionalGeneration"],
            text_config={"model_type": "gemma3_text"}), None),
    ],
)
def test_known_model_is_accepted(config, tokenizer):
    assert refusals(config, tokenizer) == []


@pytest.mark.parametrize(
    ("config", "tokenizer", "named"),
    [
        (of(model_type="smollm3", architectures=["SmolLM3ForCausalLM"]), None, "smollm3"),
        (of(model_type="gpt_oss", architectures=["GptOssForCausalLM"]), None, "gpt_oss"),
        (of(architectures=["Olmo3ForCausalLM"]), None, "Olmo3ForCausalLM"),
        (of(architectures=["LlamaForSequenceClassification"]), None, "generates no text"),
        (of(architectures=["EagleLlamaForCausalLM"]), None, "generates no text"),
        (of(architectures=["Qwen2ForRewardModel"]), None, "generates no text"),
        (of(architectures=[]), None, "without architectures"), (of(architectures="LlamaForCausalLM"), None, "without"),
        ({"model_type": "llama"}, None, "without architectures"),
        ({"architectures": ["LlamaForCausalLM"]}, None, "without model_type"),
        (of(model_type="mistral3", architectures=["Mistral3ForConditionalGeneration"],
            text_config={"model_type": "ministral3"}), None, "text_config.model_type ministral3"),
        (of(model_type="novelty", **OWN_CODE), None, "auto_map"),
        (of(architectures=["NoveltyForCausalLM"], **OWN_CODE), None, "auto_map"),
        (LLAMA, {"tokenizer_class": "SentencePieceBackend"}, "SentencePieceBackend"),
        (LLAMA, {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["t.T", None]}}, "auto_map"),
    ],
)
def test_unknown_name_is_reported(config, tokenizer, named):
    ((found, expected),) = refusals(config, tokenizer)
    assert named in found
    assert expected


def test_own_code_is_trusted_if_operator_allows_it():
    assert refusals(of(model_type="novelty", architectures=["Own"], **OWN_CODE), trusts=True) == []
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["t.T", None]}}
    assert refusals(LLAMA, own, trusts=True) == []
    assert refusals(of(model_type="novelty"), trusts=True)


@pytest.mark.parametrize(
    ("differs", "named"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized with fp8"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": ["x"]}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "proportional"}}, "rope_type proportional"),
        ({"model_type": "smollm3"}, "smollm3"), ({"llm_config": {"model_type": "smollm3"}}, "llm_config.model_type"),
        ({"model_type": ["llama"]}, "model_type ['llama']"), ({"model_type": "mamba2"}, "mamba2: state-space"),
        ({"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text"}}, "gemma3n: a KV cache"),
        ({"model_type": "kimi_vl"}, "multi-head latent"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "the encoder-decoder t5"),
    ],
)
def test_every_reason_of_config_json_is_a_refusal(differs, named):
    ((found, expected),) = refusals(of(**differs))
    assert named in found and expected


def test_empty_quantization_is_no_refusal():
    assert refusals(of(quantization_config={})) == []


def test_gguf_file_needs_no_architecture():
    assert refusals({"model_type": "llama"}, in_gguf=True) == []


def test_an_unknown_type_and_tokenizer_are_both_named():
    assert len(refusals(of(model_type="smollm3"), {"tokenizer_class": "SentencePieceBackend"})) == 2


VOLTA, NEWER = Engine("stock", "7.0"), Engine("stock", "8.0")
LATENT = {"model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "kv_lora_rank": 512}


@pytest.mark.parametrize(
    "config",
    [LLAMA, of(quantization_config=GPTQ), of(model_type="smollm3", architectures=["SmolLM3ForCausalLM"]),
     of(torch_dtype="bfloat16")],
)
def test_stock_serves_what_its_kernels_can(config):
    assert refusals(config, engine=VOLTA) == []


@pytest.mark.parametrize(
    ("config", "found", "instead", "newer"),
    [
        (of(quantization_config=AWQ), "awq and engine: stock, whose kernels for them need compute capability 7.5; "
         "these GPUs have 7.0", "GPTQ (engine: port serves it)", True),
        (of(quantization_config=packed()), "compressed-tensors", "GPTQ (engine: port serves it)", True),
        (of(quantization_config={"quant_method": "fp8"}), "capability 8.0", "unquantized weights or GPTQ", False),
        (of(quantization_config={"quant_method": "mxfp4"}), "capability 8.0", "unquantized weights or GPTQ", False),
        (of(quantization_config={"quant_method": "gptq_marlin"}), "capability 8.0", "or GPTQ", False),
        (of(quantization_config={"quant_method": "quip"}), "quip", "unquantized weights or GPTQ", False),
        (of(quantization_config=dict(GPTQ, bits=2)), "bits 2", "4, 8", False),
        (LATENT, "multi-head latent attention", "engine: port", True),
        (of(text_config={"model_type": "llama", "kv_lora_rank": 8}), "text_config.kv_lora_rank", "engine: port", True),
        (of(model_type="phimoe", lm_head_bias=True), "the bias of its output layer", "engine: port", False),
    ],
)
def test_stock_refuses_what_gpus_lack_and_names_what_works(config, found, instead, newer):
    ((what, expected),) = refusals(config, engine=VOLTA)
    assert found in what and instead in expected
    assert (refusals(config, engine=NEWER) == []) is newer


def test_stock_takes_no_gguf_file():
    ((found, expected),) = refusals(LLAMA, in_gguf=True, engine=VOLTA)
    assert "GGUF" in found and "engine: port" in expected


def test_stock_knows_models_of_its_own_release():
    ((found, _),) = refusals(of(model_type="qwen4", architectures=["Qwen4ForCausalLM"]), engine=VOLTA)
    assert "qwen4" in found
    assert refusals(of(model_type="smollm3", architectures=["SmolLM3ForCausalLM"]))


def tensors(*names):
    return [{"name": name, "dtype": "F16", "shape": [8, 8], "count": 1} for name in names]


@pytest.mark.parametrize(
    ("tied", "names", "refused"),
    [
        (False, ["model.embed_tokens.weight"], True), (False, ["language_model.model.embed_tokens.weight"], True),
        (False, ["model.embed_tokens.weight", "lm_head.weight"], False), (True, ["model.embed_tokens.weight"], False),
        (None, ["model.embed_tokens.weight"], False), (False, [], False), (False, ["transformer.wte.weight"], False),
    ],
)
def test_head_that_is_missing_is_refused(tied, names, refused):
    """As merges leave it: transformers would make one of random numbers."""
    found = judge(of(tie_word_embeddings=tied), tensors(*names))
    assert [what for what, _ in found] == (
        ["weights without a head (lm_head.weight) and tie_word_embeddings false"] if refused else [])


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (of(hidden_act="relu"), "hidden_act relu in a model of the type llama"),
        (of(model_type="qwen3", architectures=["Qwen3ForCausalLM"], attention_bias=True), "attention_bias True"),
        (of(model_type="olmo", architectures=["OlmoForCausalLM"], num_attention_heads=4, num_key_value_heads=2),
         "num_key_value_heads 2"),
        (of(model_type="phi", architectures=["PhiForCausalLM"], hidden_size=64, intermediate_size=128),
         "intermediate_size 128"),
        (of(model_type="starcoder2", architectures=["Starcoder2ForCausalLM"],
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), "of the type linear"),
        (of(model_type="gemma3", architectures=["Gemma3ForConditionalGeneration"],
            text_config={"model_type": "gemma3_text", "hidden_activation": "relu"}), "hidden_activation relu"),
    ],
)
def test_value_that_the_engine_ignores_is_refused(config, named):
    ((found, expected),) = refusals(config)
    assert named in found and "the engine has no other" in expected


@pytest.mark.parametrize("more", [
    {"hidden_act": "silu"}, {"rope_scaling": {}}, {"rope_scaling": None},
    {"model_type": "starcoder2", "architectures": ["Starcoder2ForCausalLM"],
     "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    {"model_type": "gemma", "architectures": ["GemmaForCausalLM"], "hidden_activation": None},
])
def test_usual_values_are_accepted(more):
    assert refusals(of(**more)) == []


PLAIN = {"name": "model.embed_tokens.weight", "dtype": "BF16", "shape": [64, 32], "count": 1}


def held(name, dtype):
    """Tensors of a model with one of the name and type."""
    return [PLAIN, dict(PLAIN, name="lm_head.weight"), dict(PLAIN, name=f"model.layers.*.mlp.{name}", dtype=dtype)]


@pytest.mark.parametrize(
    ("config", "name", "dtype", "named"),
    [
        # MLX, fp8 and int8 weights without a config that says so.
        (LLAMA, "up_proj.weight", "U32", "up_proj.weight of the type U32"),
        (LLAMA, "up_proj.weight", "F8_E4M3", "up_proj.weight of the type F8_E4M3"),
        (LLAMA, "up_proj.weight", "I8", "up_proj.weight of the type I8"),
        (of(quantization_config=packed()), "up_proj.weight_scale", "F8_E4M3", "weight_scale of the type F8_E4M3"),
        (LLAMA, "up_proj.qweight", "I32", "names no way they are quantized"),
        (of(quantization_config=GPTQ), "up_proj.weight", "F16", "no quantized matrix"),
        (of(quantization_config=AWQ), "up_proj.qweight", "I32", None),
        (of(quantization_config=packed()), "up_proj.weight_packed", "I32", None),
        (LLAMA, "rotary.position_ids", "I64", None), (LLAMA, "attn.bias", "U8", None), (LLAMA, "x.weight", "F64", None),
    ],
)
def test_tensors_of_codes_want_a_config_that_says_so(config, name, dtype, named):
    found = judge(config, held(name, dtype))
    assert [named in reason for reason, _ in found] == ([True] if named else [])
