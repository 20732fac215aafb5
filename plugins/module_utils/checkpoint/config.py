"""Parts of config.json, and a config of transformers 5 with the keys of transformers 4, which the engine reads.

transformers 4 replaces a key that it does not know by its default without a word.
"""

from .errors import UnsupportedConfigError
from .speculation import mapping

# Keys of the language model's own config, in the order in which vLLM looks for them.
LANGUAGE_KEYS = ("text_config", "llm_config")
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
# Names of types that weights are saved in. An instance says what they are served in.
DTYPES = ("float64", "float32", "float16", "bfloat16", "double", "float", "half")
FULL, SLIDING = "full_attention", "sliding_attention"
# Keys of rope_parameters that transformers 4 has outside of rope_scaling.
BASE, SHARE = "rope_theta", "partial_rotary_factor"
ORIGINAL = "original_max_position_embeddings"
# Keys that the engine reads of each kind of scaling; it would ignore another one.
SCALINGS = {
    "default": ("mrope_section",),
    "linear": ("factor",),
    "dynamic": ("factor", "alpha"),
    "ntk": ("factor", "mixed_b"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
    "yarn": ("factor", ORIGINAL, "extrapolation_factor", "attn_factor", "beta_fast", "beta_slow"),
    "longrope": ("short_factor", "long_factor", "short_mscale", "long_mscale", ORIGINAL),
}
OLD_NAMES = {"su": "longrope", "mrope": "default"}
# Keys without which the engine ends.
NEEDED = {"linear": ("factor",), "yarn": ("factor",), "longrope": ("short_factor", "long_factor"),
          "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
# Keys of rope_scaling that change the angles or their sizes in transformers 4 already.
STRENGTHS = ("attention_factor", "mscale", "mscale_all_dim", "truncate")
# Types whose layers in the engine rotate only a part of each head if the config says so.
PARTIAL = ("glm", "glm4", "gpt_neox", "llama", "mistral", "nemotron", "persimmon", "phi", "phi3", "stablelm")
# Types with sliding_window_pattern, and types whose layers the engine takes from layer_types itself.
PATTERNED = ("gemma3_text", "cohere2")
TYPED_LAYERS = ("gemma3n_text", "granitemoehybrid")
# Types whose first layers, as many as max_window_layers says, have no window, and how many these are by default.
BELOW_WINDOWS, MAX_WINDOW_LAYERS = ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), 28
NO_ROPE = ("no_rope_layers", "no_rope_layer_interval")
# Types of mixtures by the key that names their layers without experts: how many come first, or their numbers.
FIRST_DENSE, DENSE = ("deepseek_v2", "deepseek_v3"), ("qwen2_moe", "qwen3_moe")


def parts_of(config):
    """The config itself and its language model's own: [(prefix of the keys, mapping)]."""
    parts = [("", config)] + [(key + ".", config.get(key)) for key in LANGUAGE_KEYS] if isinstance(config, dict) else []
    return [(prefix, part) for prefix, part in parts if isinstance(part, dict)]


def overrides_of(options):
    """Keys that an instance's options of vLLM put in place of config.json's."""
    found = {}
    scaling = mapping(options.get("rope-scaling"))
    if scaling is not None:
        found["rope_scaling"] = scaling
    try:
        found["rope_theta"] = float(options["rope-theta"])
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    return dict(found, **(mapping(options.get("hf-overrides")) or {}))


def overridden(config, options):
    """A config as the options of an instance change it. Raises UnsupportedConfigError as translate does."""
    overrides = overrides_of(options)
    # The overrides' keys come first.
    return dict(translate(config), **overrides) if overrides and isinstance(config, dict) else config


def translate(config):
    """The config, and every config in it, with the keys of transformers 4; unchanged if it has these.

    Raises UnsupportedConfigError, by the key's name, for what the engine would read as something else.
    """
    return _translated(config, "") if isinstance(config, dict) else config


def _translated(config, where):
    config = dict(config)
    for key, value in config.items():
        # A quantizer's config says nothing about layers.
        if isinstance(value, dict) and key.endswith("_config") and key not in QUANTIZATION_KEYS:
            config[key] = _translated(value, where + key + ".")
    for key in QUANTIZATION_KEYS:
        # vLLM takes an empty one for a method without a name.
        if key in config and not config[key]:
            del config[key]
    if config.get("rope_scaling") in ({}, [], "", False):
        # The engine takes it for a scaling without a type.
        config["rope_scaling"] = None
    if config.get("torch_dtype") is None and config.get("dtype") is not None:
        config["torch_dtype"] = config["dtype"]
    if config.get("torch_dtype") is not None and config["torch_dtype"] not in DTYPES:
        # transformers 4 looks for it in torch, and ends if it is not there.
        config["torch_dtype"] = None
    if config.get("rope_parameters") is not None:
        _rope(config, where)
        del config["rope_parameters"]
    if config.get("layer_types") is not None and _kind(config) not in TYPED_LAYERS:
        _layers(config, where)
        del config["layer_types"]
    if config.get("mlp_layer_types") is not None:
        _dense_layers(config, where)
        del config["mlp_layer_types"]
    for key in NO_ROPE:
        _no_rope(config, key, where)
    _drop_dynamic(config)
    _scaling(config, where)
    _windows(config, where)
    return config


def _kind(config):
    return str(config.get("model_type", ""))


def _model(config):
    return "a model of the type %s" % (_kind(config) or "unknown")


def _rope(config, where):
    """Write rope_parameters as rope_theta, rope_scaling and the keys of the model's type."""
    where += "rope_parameters"
    rope = config["rope_parameters"]
    if not isinstance(rope, dict):
        raise UnsupportedConfigError("%s that is a %s" % (where, type(rope).__name__), "a mapping")
    kinds = {name: part for name, part in rope.items() if isinstance(part, dict)}
    if not kinds:
        return _write_rope(config, rope, where)
    if len(kinds) < len(rope):
        raise UnsupportedConfigError("%s of layer types beside other keys" % where, "one of the two")
    if _kind(config) in PATTERNED and set(kinds) == {FULL, SLIDING}:
        base, share, scaling = _parts(config, kinds[SLIDING], "%s.%s" % (where, SLIDING))
        if scaling or share not in (None, 1):
            raise UnsupportedConfigError(
                "%s.%s with scaling" % (where, SLIDING), "a rope_theta alone: the engine scales full attention"
            )
        if _kind(config) == "gemma3_text":
            _write(config, "rope_local_base_freq", base, where)
            return _write_rope(config, kinds[FULL], "%s.%s" % (where, FULL))
    first = next(iter(kinds.values()))
    if any(part != first for part in kinds.values()):
        raise UnsupportedConfigError(
            "%s that differ for %s" % (where, " and ".join(sorted(kinds))),
            "one for all layers: the engine has one for %s" % _model(config),
        )
    return _write_rope(config, first, where)


def _parts(config, rope, where):
    """(base, share of a head that is rotated, rope_scaling or None) of one mapping of rope_parameters."""
    scaling = {key: value for key, value in rope.items() if value is not None and key not in (BASE, SHARE, "type")}
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    scaling["rope_type"] = kind = OLD_NAMES.get(kind, kind)
    if kind not in SCALINGS:
        raise UnsupportedConfigError("%s.rope_type %s" % (where, kind), "one of " + ", ".join(sorted(SCALINGS)))
    positions = config.get(ORIGINAL) or config.get("max_position_embeddings")
    if kind in ("yarn", "llama3", "longrope") and positions:
        # transformers 5 takes it from there as well.
        scaling.setdefault(ORIGINAL, positions)
    if kind == "longrope":
        _drop_factor(config, scaling, where)
    for key in sorted(scaling):
        if key != "rope_type" and key not in SCALINGS[kind]:
            # Positions that the scaling does not start from have no effect.
            if key == ORIGINAL and scaling[key] == config.get("max_position_embeddings"):
                del scaling[key]
                continue
            raise UnsupportedConfigError(
                "%s.%s %r" % (where, key, scaling[key]),
                "none: the engine's %s reads %s alone" % (kind, ", ".join(SCALINGS[kind]) or "no such key"),
            )
    for key in (BASE, SHARE):
        value = rope.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0):
            raise UnsupportedConfigError("%s.%s %r" % (where, key, value), "a number above 0")
    return rope.get(BASE), rope.get(SHARE), None if list(scaling) == ["rope_type"] and kind == "default" else scaling


def _drop_factor(config, scaling, where):
    """Long RoPE's factor is the quotient of the positions, for the engine too; another one is refused."""
    positions, factor = config.get("max_position_embeddings"), scaling.pop("factor", None)
    quotient = positions / float(scaling[ORIGINAL]) if positions else None
    if factor is not None and positions and factor != quotient:
        raise UnsupportedConfigError(
            "%s.factor %r" % (where, factor),
            "%g, by which max_position_embeddings is longer than %s" % (quotient, ORIGINAL),
        )


def _write_rope(config, rope, where):
    """Write one mapping of rope_parameters into a config."""
    base, share, scaling = _parts(config, rope, where)
    kind = _kind(config)
    _write(config, BASE, base, where)
    if kind == "gpt_neox":
        _write(config, "rotary_emb_base", base, where)
    if share is not None and share != 1 and kind not in PARTIAL:
        raise UnsupportedConfigError(
            "%s.%s %r" % (where, SHARE, share),
            "1: the engine rotates whole heads of %s" % _model(config),
        )
    if share is not None and kind in PARTIAL:
        _write(config, "rotary_pct" if kind == "gpt_neox" else SHARE, share, where)
    if scaling and scaling["rope_type"] == "longrope" and kind == "phi3":
        # Its class takes these three alone, and the positions from the config itself.
        _write(config, ORIGINAL, scaling.pop(ORIGINAL, None), where)
        scaling = dict(scaling, type=scaling.pop("rope_type"))
    old = config.get("rope_scaling")
    if isinstance(old, dict) and _parts(config, old, where)[2] != _parts(config, scaling or {}, where)[2]:
        raise UnsupportedConfigError("%s beside another rope_scaling" % where, "one of the two, or both alike")
    config["rope_scaling"] = scaling


def _write(config, key, value, where):
    """Set a key that transformers 4 reads. Raises UnsupportedConfigError if the config has another value."""
    if value is None:
        return
    if config.get(key) is not None and config[key] != value:
        raise UnsupportedConfigError(
            "%s with %r beside %s %r" % (where, value, key, config[key]), "one of the two, or both alike"
        )
    config[key] = value


def _types_of_layers(config, key, where, known):
    """The value of a key that has one of two names for each layer."""
    types = config[key]
    if not isinstance(types, list) or not all(isinstance(name, str) for name in types):
        raise UnsupportedConfigError("%s that is no list of texts" % where, "a list")
    strange = sorted(set(types) - set(known))
    if strange:
        raise UnsupportedConfigError("%s with %s" % (where, ", ".join(strange)), "%s or %s" % known)
    layers = config.get("num_hidden_layers")
    if layers is not None and layers != len(types):
        raise UnsupportedConfigError("%s of %d layers" % (where, len(types)), "%s, as num_hidden_layers says" % layers)
    return types


def _dense_layers(config, where):
    """Write mlp_layer_types as the key that the engine reads for layers without experts."""
    where += "mlp_layer_types"
    types = _types_of_layers(config, "mlp_layer_types", where, ("dense", "sparse"))
    dense = [layer for layer, name in enumerate(types) if name == "dense"]
    if _kind(config) in DENSE:
        return _write(config, "mlp_only_layers", dense, where)
    if dense != list(range(len(dense) if _kind(config) in FIRST_DENSE else 0)):
        raise UnsupportedConfigError(
            "%s with dense layers %s" % (where, ", ".join(map(str, dense))),
            "experts in every layer%s, as the engine gives them %s" % (
                " behind the first ones" if _kind(config) in FIRST_DENSE else "", _model(config)),
        )
    if _kind(config) in FIRST_DENSE:
        _write(config, "first_k_dense_replace", len(dense), where)


def _layers(config, where):
    """Write layer_types as the window that the engine gives a model's layers."""
    where += "layer_types"
    types = _types_of_layers(config, "layer_types", where, (FULL, SLIDING))
    kind = _kind(config)
    every = types.index(FULL) + 1 if FULL in types else len(types) + 1
    regular = [FULL if (layer + 1) % every == 0 else SLIDING for layer in range(len(types))]
    if kind in PATTERNED or kind == "gemma2":
        if types != regular or (kind == "gemma2" and every != 2 and len(types) > 1):
            raise UnsupportedConfigError(
                "%s in no regular order" % where,
                "full attention in every %s layer: the engine has such models of the type %s alone"
                % ("second" if kind == "gemma2" else "n-th", kind),
            )
        if kind in PATTERNED:
            _write(config, "sliding_window_pattern", every, where)
    elif len(set(types)) > 1:
        raise UnsupportedConfigError(
            "%s with a window in some layers" % where,
            "one kind of attention: the engine has one for %s" % _model(config),
        )
    elif FULL in types and config.get("sliding_window") is not None:
        config["sliding_window"] = None


def _drop_dynamic(config):
    """Leave out a scaling that has no effect within the model's positions; the engine would scale all of them."""
    scaling = config.get("rope_scaling")
    # With alpha it is one of another kind, which counts everywhere.
    if isinstance(scaling, dict) and "alpha" not in scaling and "dynamic" in (
            scaling.get("rope_type"), scaling.get("type")):
        config["rope_scaling"] = None


def _scaling(config, where):
    """Complete a rope_scaling of transformers 4, and refuse what the engine would end by or pass over in it."""
    scaling, positions = config.get("rope_scaling"), config.get("max_position_embeddings")
    where += "rope_scaling"
    # Latent attention has a YaRN of its own.
    if scaling is None or config.get("kv_lora_rank") is not None:
        return
    if not isinstance(scaling, dict):
        raise UnsupportedConfigError("%s that is a %s" % (where, type(scaling).__name__), "a mapping")
    kinds = {OLD_NAMES.get(str(scaling[key]), str(scaling[key])) for key in ("rope_type", "type") if scaling.get(key)}
    if len(kinds) != 1 or not kinds.issubset(SCALINGS):
        raise UnsupportedConfigError(
            "%s of the type %s" % (where, " and ".join(sorted(kinds)) or "none"),
            "one of " + ", ".join(sorted(SCALINGS)),
        )
    (kind,) = kinds
    if kind in ("yarn", "llama3") and scaling.get(ORIGINAL) is None and positions:
        scaling = config["rope_scaling"] = dict(scaling, **{ORIGINAL: positions})
    for key in NEEDED.get(kind, ()):
        if scaling.get(key) is None:
            raise UnsupportedConfigError("%s of the type %s without %s" % (where, kind, key), "a value of it")
    for key in STRENGTHS:
        if scaling.get(key) is not None and key not in SCALINGS[kind]:
            raise UnsupportedConfigError(
                "%s.%s %r" % (where, key, scaling[key]),
                "none: the engine's %s reads %s alone" % (kind, ", ".join(SCALINGS[kind]) or "no such key"),
            )


def _windows(config, where):
    """Take the windows from a config whose layers all come before them; the engine would give one to each."""
    layers, first = config.get("num_hidden_layers"), config.get("max_window_layers")
    if _kind(config) not in BELOW_WINDOWS or not config.get("use_sliding_window") or not config.get("sliding_window"):
        return
    first = MAX_WINDOW_LAYERS if first is None else first
    if not isinstance(layers, int) or not isinstance(first, int):
        return
    if first < layers:
        raise UnsupportedConfigError(
            "%suse_sliding_window with max_window_layers %d" % (where, first),
            "%d, all layers: the engine has no windows in %s" % (layers, _model(config)),
        )
    config["use_sliding_window"] = False


def _no_rope(config, key, where):
    value = config.get(key)
    # Each layer that is 0 there has no rotary embedding.
    without = not all(value) if isinstance(value, list) else bool(value)
    if without and _kind(config) not in ("llama4_text", "llama4"):
        raise UnsupportedConfigError(
            "%s%s, layers without rotary positions" % (where, key),
            "rotary positions in every layer, as the engine gives them %s" % _model(config),
        )
