"""Keys of a config that change a model, and that the engine takes some values of alone, by the model's type.

With another value a model would not start after its weights were fetched, or answer as another model without a word.
The source is the engine's code; tests/port/test_families.py flips each key of each type and compares the answers.
"""

SILU, TANH = ("silu", "swish"), ("gelu_pytorch_tanh",)
OFF, ON, ABSENT = (False, None), (True, None), (None,)
# Key, values, and types of models that have no other: with the others the engine ends, or ignores the key.
FIXED = [(key, values, types.split()) for key, values, types in (
    ("hidden_act", SILU[:1],
     "deepseek_v2 deepseek_v3 glm glm4 granite granitemoeshared llama mistral phi3 qwen2 qwen2_moe qwen3"),
    ("hidden_act", SILU, "cohere cohere2 granitemoe mixtral olmo olmo2 olmoe qwen3_moe stablelm"),
    ("hidden_act", ("gelu", "gelu_pytorch_tanh", None), "gemma"),
    ("hidden_activation", TANH + (None,), "gemma gemma2 gemma3_text"),
    ("activation_function", SILU[:1], "exaone"),
    ("attention_bias", OFF, "cohere cohere2 gemma granitemoe granitemoeshared olmo2 olmoe qwen3 qwen3_moe"),
    ("attention_bias", ON, "phimoe"),
    ("lm_head_bias", ON, "phimoe"),
    ("activation", ("gelu", None), "falcon"),
    ("alibi", OFF, "falcon"),
    ("multi_query", ON, "gpt_bigcode"),
    ("no_bias", ON, "mpt"),
    ("layer_norm_epsilon", (1e-5, None), "mpt"),
    ("layer_norm_eps", (1e-5, None), "persimmon"),
    ("embedding_fraction", (1, None), "mpt"),
    ("qkv_bias", ON, "qwen2_moe"),
    ("tie_word_embeddings", ON, "bloom cohere cohere2 gemma gemma2 gemma3_text mpt"),
    ("tie_word_embeddings", OFF, "dbrx gptj olmoe persimmon phi"),
    ("qk_layernorm", OFF, "phi stablelm"),
    ("use_parallel_residual", OFF, "stablelm"),
    ("partial_rotary_factor", (0.5, None), "glm"),
    ("clip_qkv", ABSENT, "olmoe"),
    ("norm_topk_prob", OFF, "olmoe"),
    ("rms_norm_eps", (1e-5, None), "olmoe"),
    ("rope_scaling", ABSENT,
     "dbrx falcon gemma gemma2 gpt_neox gptj granitemoe granitemoeshared mixtral nemotron olmo persimmon phi stablelm "
     "starcoder2"),
    ("scale_attn_weights", ON, "gpt2 gpt_bigcode"),
    ("scale_attn_by_inverse_layer_idx", OFF, "gpt2"),
    ("reorder_and_upcast_attn", OFF, "gpt2"),
    ("add_cross_attention", OFF, "gpt2"),
)]
# Keys whose value must be that of another one, or a multiple of it: type, key, the other, the factor.
EQUAL = (
    ("olmo", "num_key_value_heads", "num_attention_heads", 1),
    ("phi", "num_key_value_heads", "num_attention_heads", 1),
    ("phi", "intermediate_size", "hidden_size", 4),
)


def refusals(config):
    """What the engine would read as something else: [(found, expected)].

    config: a translated one, or a part of one that has a model_type.
    """
    kind, found = str(config.get("model_type", "")), []
    for key, values, types in FIXED:
        value = config.get(key, values[-1])
        if key == "rope_scaling" and isinstance(value, dict) and _rope_type(value) == "default":
            continue
        if kind in types and value not in values:
            scales = key == "rope_scaling"
            what = "rope_scaling of the type %s" % _rope_type(value) if scales else "%s %s" % (key, value)
            found.append(("%s in a model of the type %s" % (what, kind), _expected(values)))
    for own, key, other, factor in EQUAL:
        value, whole = config.get(key), config.get(other)
        if kind == own and value is not None and isinstance(whole, int) and value != factor * whole:
            found.append(("%s %s in a model of the type %s" % (key, value, kind),
                          "%d, %s%s: the engine has no other" % (
                              factor * whole, "%d times " % factor if factor > 1 else "as ", other)))
    return found


def _rope_type(value):
    return str(value.get("rope_type") or value.get("type") or "default") if isinstance(value, dict) else str(value)


def _expected(values):
    named = [str(value).lower() for value in values if value is not None] or ["none"]
    return "%s: the engine has no other in such a model" % " or ".join(named)
