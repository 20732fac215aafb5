"""Quantization of a checkpoint's linear layers, as quantization_config in its config.json describes it."""

import re
from typing import NamedTuple

from .config import QUANTIZATION_KEYS, parts_of
from .errors import UnsupportedQuantizationError
from .gguf_families import SUPPORTED_FILES
from .limits import BITS, GROUPS, WHOLE_ROW

SUPPORTED_FORMATS = (
    "weights in float32, float16 or bfloat16; GPTQ of 4 or 8 bits with groups of 32, 64 or 128 columns or of whole "
    "rows, act-order too but for experts; AWQ of 4 bits with groups of 32, 64 or 128; compressed-tensors "
    "pack-quantized of 4 or 8 bits with unquantized activations (w4a16, w8a16); or " + SUPPORTED_FILES
)
# GPTQ's formats, and what is added to a zero point: the first format stores one less than it means.
GPTQ_ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}
# Where MLX describes the form of its weights.
MLX = "quantization"
# A rule for every layer.
EVERY = re.compile("")
# Layers of a block that the engine makes one of, and experts, of which it makes one of all, by either way to name them.
FUSED = {"self_attn": ("q_proj", "k_proj", "v_proj"), "mlp": ("gate_proj", "up_proj")}
FUSED_EXPERTS = {"mlp.experts": ("gate_proj", "up_proj", "down_proj"), "block_sparse_moe.experts": ("w1", "w2", "w3")}
EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")
# No model has more, and a config that is wrong must not keep us busy.
MOST_LAYERS, MOST_EXPERTS = 256, 512
# A router whose weights are quantized: the engine has none.
ROUTER = re.compile(r"\.(gate|router|shared_expert_gate)\.(qweight|weight_packed)$")
# A quantized matrix, in files of any method but GGUF.
CODES = re.compile(r"\.(qweight|weight_packed)$")
KINDS = {bool: "true or false", dict: "a mapping", list: "a list of texts", str: "a text"}


class Scheme(NamedTuple):
    """The quantization of one linear layer; value = scale * (code - zero point).

    Attributes:
        bits: of a code, 4 or 8.
        group: columns that share a scale and a zero point; WHOLE_ROW for all of a row.
        act_order: whether the columns of a group are scattered over the row (GPTQ's desc_act).
        has_zeros: whether the files hold zero points; else each is 2^(bits - 1).
        zero_offset: what is added to a zero point of the files.
    """

    bits: int
    group: int
    act_order: bool = False
    has_zeros: bool = True
    zero_offset: int = 0

    @property
    def per_word(self):
        """Codes in an int32."""
        return 32 // self.bits

    def columns(self, k):
        """Columns of a group, of k in a row."""
        return k if self.group == WHOLE_ROW else self.group


class Quantization(object):
    """Quantization of a model.

    Attributes:
        method: gptq, awq, compressed-tensors or gguf.
        main: the scheme that a plan counts with.
        zeros: whether the kernels keep zero points, which of symmetric weights all lie in the middle.
        rules: [(regular expression, scheme; None for unquantized)]: the first that matches a layer's name decides, and
            a layer without a rule is unquantized. By default all layers have the main scheme.
    """

    def __init__(self, method, main, zeros, rules=None):
        self.method, self.main, self.zeros, self.rules = method, main, zeros, rules or [(EVERY, main)]

    @property
    def act_order(self):
        """Return whether the columns of any layer's groups are scattered."""
        return any(scheme.act_order for _, scheme in self.rules if scheme)

    def scheme_of(self, name):
        """Scheme of a layer by the checkpoint's name for it; None if it is unquantized."""
        return next((scheme for rule, scheme in self.rules if rule.match(name)), None)

    def scheme_of_fused(self, fused, names):
        """Scheme of layers that the engine makes one of. Raises UnsupportedQuantizationError if they differ."""
        first = self.scheme_of(names[0])
        for name in names:
            if self.scheme_of(name) != first:
                raise UnsupportedQuantizationError(
                    "different quantization of %s and %s" % (names[0], name),
                    "one for all %d layers that the engine fuses in %s" % (len(names), fused),
                )
        return first


def read_quantization(config):
    """Quantization of the model that config.json describes; None for an unquantized one.

    Raises UnsupportedQuantizationError.
    """
    sections = [part[key] for _, part in parts_of(config) for key in QUANTIZATION_KEYS if part.get(key)]
    if not sections and any(isinstance(part.get(MLX), dict) and part[MLX] for _, part in parts_of(config)):
        raise UnsupportedQuantizationError("weights quantized by MLX (%s)" % MLX, SUPPORTED_FORMATS)
    quantization = parse_quantization(sections[0]) if sections else None
    if quantization is not None and len(quantization.rules) > 1:
        _check_fused(quantization, config)
    return quantization


def _count(config, keys, most):
    """The largest of the keys' integers in config.json, or 0; at most `most`."""
    values = [part.get(key) for _, part in parts_of(config) for key in keys]
    return min(most, max([value for value in values if type(value) is int] + [0]))


def _check_fused(quantization, config):
    """Refuse different schemes of layers that the engine fuses, by the names that most families have."""
    experts = range(_count(config, EXPERT_KEYS, MOST_EXPERTS))
    for layer in range(_count(config, ["num_hidden_layers"], MOST_LAYERS)):
        fused = dict(FUSED)
        for block, names in FUSED_EXPERTS.items():
            if experts:
                fused[block] = ["%d.%s" % (expert, name) for expert in experts for name in names]
        for block, names in fused.items():
            whole = "model.layers.%d.%s" % (layer, block)
            quantization.scheme_of_fused(whole, ["%s.%s" % (whole, name) for name in names])


def mismatch(quantization, names):
    """What the tensors' names of a checkpoint say against its config: (found, expected); None if nothing."""
    coded = any(CODES.search(name) for name in names)
    if coded and quantization is None:
        return "quantized weights, and a config.json that names no way they are quantized", "quantization_config there"
    if names and not coded and quantization is not None and quantization.method != "gguf":
        return "no quantized matrix, though config.json says %s" % quantization.method, "the files of one checkpoint"
    return None


def quantized_router(names):
    """The first of the tensors' names that is a quantized router's; None if there is none."""
    return next((name for name in names if ROUTER.search(name)), None)


def parse_quantization(values):
    """The Quantization that a quantization_config describes. Raises UnsupportedQuantizationError."""
    if not isinstance(values, dict):
        raise UnsupportedQuantizationError("a quantization_config that is no mapping", SUPPORTED_FORMATS)
    method = str(values.get("quant_method") or "an unnamed method").lower().replace("_", "-")
    if method not in PARSERS:
        found = "weights quantized with %s (quantization_config)" % method
        raise UnsupportedQuantizationError(found, SUPPORTED_FORMATS)
    name, parse = PARSERS[method]
    main, zeros, rules = parse(_Section(name, values))
    return Quantization(method, main, zeros, rules)


class _Section(object):
    """A mapping of a quantization_config, whose values are checked as they are read. A null counts as absent."""

    def __init__(self, method, values):
        self.method, self.values = method, values

    def refuse(self, found, expected=SUPPORTED_FORMATS):
        raise UnsupportedQuantizationError("%s %s" % (self.method, found), expected)

    def get(self, key, kind, default=None):
        """The value of a key, of a certain kind; the default, or an empty one of the kind, if it is absent."""
        value = self.values.get(key)
        if value is None:
            return kind() if default is None else default
        if not isinstance(value, kind) or (kind is list and not all(isinstance(item, str) for item in value)):
            self.refuse("with %s %r" % (key, value), "%s that is %s" % (key, KINDS[kind]))
        return value

    def part(self, key):
        """The mapping under a key."""
        return _Section(self.method, self.get(key, dict))

    def integer(self, allowed, *keys):
        """The first of the keys that is there: one of the integers that are allowed."""
        key = next((key for key in keys if self.values.get(key) is not None), keys[-1])
        value = self.values.get(key)
        # In Python True equals 1 and 4.0 equals 4; loaders accept neither as a number of bits.
        if type(value) is not int or value not in allowed:
            self.refuse("with %s %r" % (key, value), "%s, one of %s" % (key, ", ".join(map(str, allowed))))
        return value

    def rule(self, pattern, scheme):
        try:
            return re.compile(pattern), scheme
        except re.error as error:
            self.refuse("with the pattern %r (%s)" % (pattern, error), "a regular expression")


def _parse_gptq(section):
    # By the key's name of today, or of before.
    written = (section.get("checkpoint_format", str) or section.get("format", str) or "gptq").lower()
    if section.get("is_marlin_format", bool):
        written = "marlin"
    if written not in GPTQ_ZERO_OFFSETS:
        section.refuse("in the format %s" % written)
    _check_common(section)
    main = _gptq_scheme(section, GPTQ_ZERO_OFFSETS[written])
    rules = []
    # Names, or lists of names.
    only = section.values.get("modules_in_block_to_quantize")
    if isinstance(only, list):
        only = [name for part in only for name in (part if isinstance(part, list) else [part])]
    only = _Section(section.method, {"modules_in_block_to_quantize": only}).get("modules_in_block_to_quantize", list)
    if only:
        rules.append(section.rule("(?!.*(?:%s))" % "|".join(map(re.escape, only)), None))
    for name, differs in section.get("dynamic", dict).items():
        sign, pattern = (name[:2], name[2:]) if name[:2] in ("-:", "+:") else ("+:", name)
        if sign == "+:" and not isinstance(differs, dict):
            section.refuse("with the rule %s: %r (dynamic)" % (name, differs), "a mapping of what differs")
        scheme = None
        if sign == "+:":
            scheme = _gptq_scheme(_Section(section.method, dict(section.values, **differs)), main.zero_offset)
        rules.append(section.rule(pattern, scheme))
    return main, not section.get("sym", bool, True), rules + [(EVERY, main)]


def _check_common(section):
    """Refuse what GPTQModel and AutoRound may write into a config of GPTQ and of AWQ."""
    if section.get("pack_dtype", str) not in ("", "int32"):
        section.refuse("packed in %s (pack_dtype)" % section.values["pack_dtype"])
    if section.get("lm_head", bool):
        section.refuse("with a quantized head (lm_head)")
    for name, own in section.get("extra_config", dict).items():
        if not isinstance(own, dict) or any(
                own.get(key, section.values.get(key)) != section.values.get(key) for key in ("bits", "group_size")):
            section.refuse("with another form of %s (extra_config)" % name, "one form for all layers")


def _gptq_scheme(section, zero_offset):
    group = section.integer(GROUPS + (WHOLE_ROW,), "group_size")
    act_order = section.get("desc_act", bool) and group != WHOLE_ROW
    return Scheme(section.integer(BITS, "bits"), group, act_order, zero_offset=zero_offset)


def _parse_awq(section):
    for key in ("version", "format", "checkpoint_format"):
        version = section.get(key, str, "gemm").lower() or "gemm"
        if version != "gemm":
            section.refuse("of the version %s" % version)
    _check_common(section)
    if section.get("dynamic", dict):
        section.refuse("with layers of another form (dynamic)", "one form for all layers, or GPTQ")
    main = Scheme(section.integer((4,), "w_bit", "bits"), section.integer(GROUPS, "q_group_size", "group_size"))
    # "gate" is an expert layer's router, not a gate_proj.
    rules = [
        section.rule(".*%s(?!_proj)" % re.escape(part), None) for part in section.get("modules_to_not_convert", list)
    ]
    # The files hold zero points either way.
    return main, section.get("zero_point", bool, True), rules + [(EVERY, main)]


def _parse_compressed_tensors(section):
    if section.get("kv_cache_scheme", dict):
        section.refuse("with a quantized KV cache (kv_cache_scheme)")
    if section.part("transform_config").values:
        section.refuse("with rotated inputs of layers (transform_config)")
    sparsity = section.part("sparsity_config").get("format", str, "dense")
    if sparsity != "dense":
        section.refuse("with sparse weights (%s)" % sparsity)
    rules = [_target_rule(section, target, None) for target in section.get("ignore", list)]
    groups, schemes = section.part("config_groups"), []
    if not groups.values:
        section.refuse("without config_groups")
    for name in groups.values:
        group = groups.part(name)
        for part in (section, group):
            written = part.get("format", str) or "pack-quantized"
            if written != "pack-quantized":
                section.refuse("in the format %s" % written)
        targets = group.get("targets", list)
        if not targets:
            section.refuse("whose group %s has no targets" % name, "targets, such as Linear")
        if "Embedding" in targets:
            section.refuse("with quantized embeddings")
        schemes.append(_compressed_tensors_scheme(group))
        rules += [_target_rule(section, target, schemes[-1]) for target in targets]
    # The largest groups are the hardest to split.
    main = max(schemes, key=lambda scheme: scheme.group)
    return main, any(scheme.has_zeros for scheme in schemes), rules


def _target_rule(section, target, scheme):
    """The rule of a target: a layer's name, a regular expression after "re:", or torch's class of all layers."""
    if target.startswith("re:"):
        return section.rule(target[3:], scheme)
    return (EVERY if target == "Linear" else re.compile(re.escape(target) + r"\Z")), scheme


def _compressed_tensors_scheme(group):
    for activations in ("input_activations", "output_activations"):
        if group.get(activations, dict):
            group.refuse("with quantized activations (%s, such as w8a8)" % activations)
    weights = group.part("weights")
    kind = weights.get("type", str, "int") if weights.values else "none"
    if kind != "int" or weights.get("dynamic", bool):
        group.refuse("with weights of the type %s" % kind)
    order = weights.values.get("actorder")
    if order not in (None, False, "weight", "static"):
        group.refuse("with act-order of groups (actorder %s)" % order)
    strategy = weights.get("strategy", str) or ("group" if weights.values.get("group_size") else "channel")
    if strategy not in ("group", "channel"):
        group.refuse("with one scale a %s" % strategy)
    size = weights.integer(GROUPS, "group_size") if strategy == "group" else WHOLE_ROW
    return Scheme(weights.integer(BITS, "num_bits"), size, has_zeros=not weights.get("symmetric", bool, True))


# By quant_method: the name in messages, and the function that returns (main scheme, zeros, rules).
PARSERS = {
    "gptq": ("GPTQ", _parse_gptq), "awq": ("AWQ", _parse_awq),
    "compressed-tensors": ("compressed-tensors", _parse_compressed_tensors),
}
