"""Read a checkpoint's quantization from its config.json, and decide whether the port serves it.

The host's program that fetches models has a copy of this file beside it: the standard library alone.
"""

GROUPS = (32, 64, 128)
# A group that is a whole row of a matrix.
WHOLE = -1
WORKS = (
    "weights in float32, float16 or bfloat16; GPTQ of 4 or 8 bits with groups of 32, 64 or 128 columns or of whole "
    "rows, act-order too but for experts; AWQ of 4 bits with groups of 32, 64 or 128; compressed-tensors "
    "pack-quantized of 4 or 8 bits with unquantized activations (w4a16, w8a16)"
)
# Layouts that the port reads; others are those of other GPUs' kernels.
FORMATS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}


class Refused(Exception):
    """Quantized weights that the port does not serve: what was found and what is expected."""

    def __init__(self, found, expected=WORKS):
        super(Refused, self).__init__(found)
        self.found, self.expected = found, expected


def one_of(named, value, wanted):
    """`value` where it is one of `wanted`. Raises Refused."""
    # In Python True equals 1 and 4.0 equals 4; loaders accept neither as a number of bits.
    if type(value) is not int or value not in wanted:
        raise Refused("%s %r" % (named, value), "%s, one of %s" % (named, ", ".join(map(str, wanted))))
    return value


def section(config):
    """The part of config.json about quantization; None where there is none."""
    parts = [config, config.get("text_config")] if isinstance(config, dict) else []
    for part in parts:
        if not isinstance(part, dict):
            continue
        said = part.get("quantization_config") or part.get("compression_config")
        if said:
            return said
    return None


def judge(config):
    """The quantization of a checkpoint's matrices.

    Args:
        config: what config.json holds.

    Returns:
        None for unquantized ones, else a mapping: method, bits, group (columns that share a scale, or WHOLE),
        act_order (whether the columns of a group lie scattered over the row), zeros (whether groups have zero points
        of their own).

    Raises Refused where the port does not serve them.
    """
    said = section(config)
    if said is None:
        return None
    if not isinstance(said, dict):
        raise Refused("a quantization_config that is no mapping")
    method = str(said.get("quant_method") or "an unnamed method").lower().replace("_", "-")
    judges = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed_tensors}
    if method not in judges:
        raise Refused("weights quantized with %s (quantization_config)" % method)
    return dict(judges[method](said), method=method)


def _layout(said, key, method):
    found = said.get(key) or FORMATS[method][0]
    if str(found).lower() not in FORMATS[method]:
        raise Refused("%s weights in the layout %s (%s)" % (method.upper(), found, key))


def _gptq(said):
    if said.get("is_marlin_format"):
        raise Refused("GPTQ weights in the layout marlin (is_marlin_format)")
    _layout(said, "checkpoint_format", "gptq")
    if said.get("lm_head"):
        raise Refused("GPTQ weights with a quantized head (lm_head)")
    rules = said.get("dynamic") or {}
    if not isinstance(rules, dict) or not all(isinstance(rule, dict) for rule in rules.values()):
        raise Refused("GPTQ weights whose dynamic is no mapping of mappings")
    own = _gptq_scheme(said)
    # Rules for single layers: "-:" names those that are not quantized.
    others = [_gptq_scheme(dict(said, **rule)) for name, rule in rules.items() if not name.startswith("-:")]
    return dict(own, act_order=any(scheme["act_order"] for scheme in [own] + others))


def _gptq_scheme(said):
    group = one_of("group_size of GPTQ", said.get("group_size"), GROUPS + (WHOLE,))
    return {
        "bits": one_of("bits of GPTQ", said.get("bits"), (4, 8)), "group": group,
        "act_order": bool(said.get("desc_act")) and group != WHOLE, "zeros": said.get("sym") is False,
    }


def _awq(said):
    _layout(said, "version", "awq")
    bits = said.get("bits") if said.get("w_bit") is None else said.get("w_bit")
    group = said.get("group_size") if said.get("q_group_size") is None else said.get("q_group_size")
    return {
        "bits": one_of("bits of AWQ", bits, (4,)), "group": one_of("group_size of AWQ", group, GROUPS),
        "act_order": False, "zeros": said.get("zero_point") is not False,
    }


def _compressed_tensors(said):
    sparsity = said.get("sparsity_config")
    if said.get("kv_cache_scheme") or (isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense"):
        raise Refused("compressed-tensors with a quantized cache or sparse weights")
    groups = said.get("config_groups")
    if not isinstance(groups, dict) or not groups or not all(isinstance(group, dict) for group in groups.values()):
        raise Refused("compressed-tensors without config_groups")
    for part in [said] + list(groups.values()):
        if (part.get("format") or "pack-quantized") != "pack-quantized":
            raise Refused("compressed-tensors in the format %s" % part["format"])
    # They may differ: the largest groups are the hardest to split.
    return max((_scheme(group) for group in groups.values()), key=lambda scheme: scheme["group"])


def _scheme(group):
    if group.get("input_activations") or group.get("output_activations"):
        raise Refused("compressed-tensors with quantized activations (such as w8a8)")
    weights = group.get("weights")
    if not isinstance(weights, dict) or weights.get("type", "int") != "int" or weights.get("dynamic"):
        raise Refused("compressed-tensors whose weights are no integers")
    if "Embedding" in str(group.get("targets")):
        raise Refused("compressed-tensors with quantized embeddings")
    if weights.get("actorder") in (True, "group", "dynamic"):
        raise Refused("compressed-tensors with act-order of groups (actorder %s)" % weights["actorder"])
    strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "channel")
    if strategy not in ("group", "channel"):
        raise Refused("compressed-tensors with one scale a %s" % strategy)
    size = WHOLE
    if strategy == "group":
        size = one_of("group_size of compressed-tensors", weights.get("group_size"), GROUPS)
    return {
        "bits": one_of("num_bits of compressed-tensors", weights.get("num_bits"), (4, 8)), "group": size,
        "act_order": False, "zeros": weights.get("symmetric") is False,
    }
