"""Families that are called served: each starts, and answers what transformers answers, token for token.

In the long form (FAMILIES_LONG=1) with every key of its config changed, too: served alike, or refused by name.
"""

import inspect
import json
import os

import pytest
import tiny_models
import transformers
from conftest import generate
from tiny_models import CONTEXT, FAMILIES, MULTI_HEAD, SHAPE, WINDOW, assert_same, make
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from vllm.model_executor.layers import rotary_embedding
from vllm_kepler.checkpoint.config import PARTIAL
from vllm_kepler.checkpoint.engine import refusals

GPTJ = {**MULTI_HEAD, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_inner": None, "n_positions": CONTEXT,
        "rotary_dim": 16, "tie_word_embeddings": False}
DBRX = {"d_model": 128, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2}}
MPT = {**MULTI_HEAD, "d_model": 128, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT}
GRANITE_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_multiplier": 0.2,
               "residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 0.5}
# Beside the families of the engine's tests: name -> (model type of transformers, what differs from SHAPE).
OTHERS = {
    "olmo": ("olmo", {**MULTI_HEAD, "clip_qkv": 1.0}),
    "nemotron": ("nemotron", {}),
    "cohere2": ("cohere2", {"sliding_window": WINDOW, "sliding_window_pattern": 2, "logit_scale": 0.25}),
    "dbrx": ("dbrx", DBRX),
    "gpt-bigcode": ("gpt_bigcode", {**MULTI_HEAD, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_inner": 192,
                                    "n_positions": CONTEXT}),
    "granitemoeshared": ("granitemoeshared", {**GRANITE_MOE, "shared_intermediate_size": 96}),
    "stablelm": ("stablelm", {}),
    "phimoe": ("phimoe", {"num_local_experts": 8, "num_experts_per_tok": 2, "attention_bias": True,
                          "lm_head_bias": True, "sliding_window": None}),
}
# As published checkpoints spell what transformers saves under another name.
SPELLED = {"phimoe": "PhiMoEForCausalLM"}
MORE = {
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-head": ("llama", {"head_dim": 48}),
    "olmo2": ("olmo2", {}),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "gemma3": ("gemma3_text", {"head_dim": 32, "sliding_window": WINDOW, "sliding_window_pattern": 2,
                               "query_pre_attn_scalar": 32}),
    "phi": ("phi", {**MULTI_HEAD, "intermediate_size": 512}),
    "gpt-neox": ("gpt_neox", MULTI_HEAD),
    "gptj": ("gptj", GPTJ),
    "opt": ("opt", {**MULTI_HEAD, "ffn_dim": 192, "word_embed_proj_dim": 128}),
    "opt-350m": ("opt", {**MULTI_HEAD, "ffn_dim": 192, "word_embed_proj_dim": 64, "do_layer_norm_before": False}),
    "falcon-7b": ("falcon", {"multi_query": True, "parallel_attn": True}),
    "falcon-40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "multi_query": True}),
    "mpt": ("mpt", MPT),
    "persimmon": ("persimmon", MULTI_HEAD),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "cohere-norms": ("cohere", {"use_qk_norm": True}),
    "glm": ("glm", {"head_dim": 32}),
    "glm4": ("glm4", {"head_dim": 32}),
    "helium": ("helium", {"head_dim": 32}),
    "granitemoe": ("granitemoe", GRANITE_MOE),
    "qwen2-moe": ("qwen2_moe", {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 64,
                                "shared_expert_intermediate_size": 96, "decoder_sparse_step": 2}),
    "starcoder2-plain": ("starcoder2", {"use_bias": False, "sliding_window": None}),
}
ALL = {**FAMILIES, **OTHERS, **MORE}
LONG = pytest.mark.skipif("FAMILIES_LONG" not in os.environ, reason="long form: FAMILIES_LONG=1, ten minutes")
# Keys of training, of ids and of outputs; sizes that only a whole config can change.
LEFT = {
    "self", "kwargs", "vocab_size", "initializer_range", "use_cache", "output_router_logits", "router_aux_loss_coef",
    "pretraining_tp", "bos_token_id", "eos_token_id", "pad_token_id", "is_decoder", "attention_softmax_in_fp32",
    "scale_attention_softmax_in_fp32", "slow_but_exact", "_remove_final_layer_norm", "summary_use_proj",
    "summary_proj_to_labels", "add_cross_attention", "layer_norm_elementwise_affine", "new_decoder_architecture",
}
ACTIVATIONS = ("gelu", "relu", "silu", "gelu_pytorch_tanh")
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0}, "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64},
}


@pytest.fixture
def tiny_family(tmp_path, seed, monkeypatch):
    """Function that makes a tiny model of a name of ALL, changed, and gives its config too."""
    # Its mask overflows in float64.
    monkeypatch.setattr(transformers.MptForCausalLM, "double", lambda self: self)

    def get(name, change=(), **options):
        kind, differs = ALL[name]
        monkeypatch.setitem(tiny_models.FAMILIES, name, (kind, {**differs, **dict(change)}))
        model = make(name, tmp_path, seed, **options)
        # Of an earlier engine of this process.
        rotary_embedding._ROPE_DICT.clear()
        file = model.directory / "config.json"
        config = json.loads(file.read_text())
        if name in SPELLED:
            config["architectures"] = [SPELLED[name]]
            file.write_text(json.dumps(config))
        return model, config

    return get


@pytest.mark.parametrize("name", [*OTHERS, *(pytest.param(name, marks=LONG) for name in MORE)])
def test_family_answers_as_transformers_does(tiny_family, engine, name):
    model, config = tiny_family(name)
    assert refusals(config) == []
    assert_same(model, generate(engine(model), model.prompts))


def changes(kind, differs):
    """Changes of one key each that a config of a type can have."""
    yield from ({"tie_word_embeddings": tied} for tied in (True, False))
    yield from ({"rope_scaling": scaling} for scaling in SCALINGS.values())
    for key, parameter in inspect.signature(CONFIG_MAPPING[kind].__init__).parameters.items():
        value = differs.get(key, SHAPE.get(key, parameter.default))
        if key in LEFT or "drop" in key or "noise" in key or key in ("rope_scaling", "tie_word_embeddings"):
            continue
        if isinstance(value, bool):
            yield {key: not value}
        elif isinstance(value, float) and value:
            yield {key: 0.3 if "eps" in key else 50.0 if value >= 1000 else value / 2}
        elif isinstance(value, str) and "act" in key:
            yield from ({key: name} for name in ACTIVATIONS if name != value)
        elif key == "clip_qkv" and value is None:
            yield {key: 0.5}
        elif key == "sliding_window" and value is None:
            yield {key: 16}
        elif key == "max_window_layers":
            # Where no layer has a window, transformers 4 gives one to all if attention is eager.
            yield from ({key: layers, "use_sliding_window": True, "sliding_window": 16} for layers in (0, 1))
        elif key == "num_key_value_heads" and kind not in ("gpt_bigcode", "falcon"):
            yield {key: 4 if value != 4 else 2}
    if kind in PARTIAL:
        yield {"partial_rotary_factor": 0.75}


@LONG
@pytest.mark.parametrize("name", ALL)
def test_changed_key_is_served_or_refused_by_name(tiny_family, engine, name):
    """What transformers itself refuses is left out."""
    wrong = []
    for change in changes(ALL[name][0], ALL[name][1]):
        try:
            model, config = tiny_family(name, change.items(), lengths=(1, 40, 100), tokens=10)
        except Exception:
            continue
        if refusals(config):
            continue
        try:
            assert_same(model, generate(engine(model), model.prompts, 10))
        except Exception as error:
            wrong.append(f"{change}: {' '.join(str(error).split())[:200]}")
    assert not wrong, "\n".join(wrong)
