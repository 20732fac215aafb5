"""What a checkpoint's config.json says of quantized weights, and which of them the port serves.

The host's program that fetches models has a copy of this file beside it: the standard library alone.
"""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

GROUPS = (32, 64, 128)
# A group that is a whole row of a matrix.
WHOLE = -1
WORKS = (
    "weights in float32, float16 or bfloat16; GPTQ of 4 or 8 bits with groups of 32, 64 or 128 columns or of whole "
    "rows, act-order too; AWQ of 4 bits with groups of 32, 64 or 128; compressed-tensors pack-quantized of 4 or 8 bits "
    "with activations of 16 (w4a16, w8a16)"
)
# The port's kernels read these alone: other layouts are those of other GPUs' kernels.
FORMATS = {"gptq": "gptq", "awq": "gemm"}


class Refused(Exception):
    """Quantized weights that the port does not serve: what was found and what is expected."""

    def __init__(self, found, expected=WORKS):
        super(Refused, self).__init__(found)
        self.found, self.expected = found, expected


def one_of(named, value, wanted):
    """`value` where it is one of `wanted`. Raises Refused."""
    # True is 1 and 4.0 is 4: what no loader takes for a number of bits is none here either.
    if type(value) is not int or value not in wanted:
        raise Refused("%s %r" % (named, value), "%s, one of %s" % (named, ", ".join(map(str, wanted))))
    return value


def section(config):
    """The part of config.json about quantization; None where there is none."""
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        said = part.get("quantization_config") or part.get("compression_config")
        if said:
            return said
    return None


def judge(config):
    """What the matrices of a checkpoint are.

    Args:
        config: the mapping of config.json.

    Returns:
        None for unquantized ones, else a mapping: method, bits, group (columns that share a scale, or WHOLE),
        act_order (whether the columns of a group lie scattered over the row).

    Raises Refused where the port does not serve them.
    """
    said = section(config)
    if said is None:
        return None
    if not isinstance(said, dict):
        raise Refused("a quantization_config that is no mapping")
    method = said.get("quant_method")
    judges = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed_tensors}
    if not isinstance(method, str) or method not in judges:
        raise Refused("weights quantized with %s (quantization_config)" % (method or "an unnamed method"))
    return dict(judges[method](said), method=method)


def _layout(said, key, method):
    found = said.get(key) or FORMATS[method]
    if str(found).lower() != FORMATS[method]:
        raise Refused("%s weights in the layout %s (%s)" % (method.upper(), found, key))


def _gptq(said):
    if said.get("is_marlin_format"):
        raise Refused("GPTQ weights in the layout marlin (is_marlin_format)")
    _layout(said, "checkpoint_format", "gptq")
    for key in ("dynamic", "lm_head"):
        if said.get(key):
            raise Refused("GPTQ weights with %s, which differ from layer to layer" % key)
    group = one_of("group_size of GPTQ", said.get("group_size"), GROUPS + (WHOLE,))
    # With static groups each column keeps the scale of its place.
    scattered = bool(said.get("desc_act")) and not said.get("static_groups")
    return {
        "bits": one_of("bits of GPTQ", said.get("bits"), (4, 8)), "group": group,
        "act_order": scattered and group != WHOLE,
    }


def _awq(said):
    _layout(said, "version", "awq")
    bits = said.get("bits") if said.get("w_bit") is None else said.get("w_bit")
    group = said.get("group_size") if said.get("q_group_size") is None else said.get("q_group_size")
    return {
        "bits": one_of("bits of AWQ", bits, (4,)), "group": one_of("group_size of AWQ", group, GROUPS),
        "act_order": False,
    }


def _compressed_tensors(said):
    if said.get("format") != "pack-quantized":
        raise Refused("compressed-tensors of the format %s" % (said.get("format") or "of no name"))
    sparsity = said.get("sparsity_config")
    if said.get("kv_cache_scheme") or (isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense"):
        raise Refused("compressed-tensors with a quantized cache or sparse weights")
    groups = said.get("config_groups")
    if not isinstance(groups, dict) or not groups or not all(isinstance(group, dict) for group in groups.values()):
        raise Refused("compressed-tensors without config_groups")
    schemes = [_scheme(group) for group in groups.values()]
    if any(scheme != schemes[0] for scheme in schemes):
        raise Refused("compressed-tensors whose layers differ in bits or groups")
    return schemes[0]


def _scheme(group):
    if group.get("input_activations") or group.get("output_activations"):
        raise Refused("compressed-tensors with quantized activations (such as w8a8)")
    weights = group.get("weights")
    if not isinstance(weights, dict) or weights.get("type", "int") != "int" or weights.get("dynamic"):
        raise Refused("compressed-tensors whose weights are no integers")
    order, strategy = weights.get("actorder"), weights.get("strategy")
    if strategy not in ("group", "channel"):
        raise Refused("compressed-tensors with the strategy %s" % (strategy or "of no name"))
    size = WHOLE
    if strategy == "group":
        size = one_of("group_size of compressed-tensors", weights.get("group_size"), GROUPS)
    return {
        "bits": one_of("num_bits of compressed-tensors", weights.get("num_bits"), (4, 8)), "group": size,
        "act_order": order is True or str(order).lower() == "group",
    }
