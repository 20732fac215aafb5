"""The host's judge of quantized checkpoints, which stops a play, and the port's readers: they say the same."""

import sys
from pathlib import Path

import pytest
from quantized_models import Kind
from vllm_kepler.quantization import config as port

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins" / "module_utils" / "host"))
import quantized as host

KINDS = {
    "gptq": Kind("gptq", group=32).config(),
    "awq": Kind("awq", group=32).config(),
    "compressed-tensors": Kind("compressed-tensors", group=32).config(),
}
NUMBERS = [None, 2, 3, 4, 8, 16, 4.0, "4", True, -1, 0, 24, 32, 64, 96, 128, 256, "128"]
# What a config may say at one place, by method.
SAID: dict[str, dict[tuple[str, ...], list]] = {
    "gptq": {
        ("bits",): NUMBERS, ("group_size",): NUMBERS, ("desc_act",): [None, True, False],
        ("sym",): [None, True, False], ("lm_head",): [None, True, False], ("is_marlin_format",): [None, True, False],
        ("checkpoint_format",): [None, "gptq", "gptq_v2", "GPTQ", "marlin", "gptq_v3"],
        ("dynamic",): [None, {}, {r"-:.*k_proj": {}}, {r"+:.*k_proj": {"bits": 8}}, {"x": {"bits": 2}},
                       {"x": {"group_size": 16}}, {"x": {"desc_act": True}}],
    },
    "awq": {
        ("bits",): NUMBERS, ("w_bit",): NUMBERS, ("group_size",): NUMBERS, ("q_group_size",): NUMBERS,
        ("version",): [None, "gemm", "GEMM", "gemv", "marlin"], ("zero_point",): [True],
    },
    "compressed-tensors": {
        ("format",): [None, "pack-quantized", "int-quantized"], ("kv_cache_scheme",): [None, {"num_bits": 8}],
        ("sparsity_config",): [None, {}, {"format": "dense"}, {"format": "sparse-24-bitmask"}],
        ("config_groups",): [None, {}],
        ("config_groups", "group_0", "weights", "num_bits"): NUMBERS,
        ("config_groups", "group_0", "weights", "group_size"): NUMBERS,
        ("config_groups", "group_0", "weights", "strategy"): [None, "group", "channel", "tensor", "block"],
        ("config_groups", "group_0", "weights", "type"): ["int", "float"],
        ("config_groups", "group_0", "weights", "dynamic"): [None, True, False],
        ("config_groups", "group_0", "weights", "symmetric"): [True, False],
        ("config_groups", "group_0", "weights", "actorder"): [None, True, False, "group", "dynamic", "weight"],
        ("config_groups", "group_0", "input_activations"): [None, {"num_bits": 8}],
        ("config_groups", "group_0", "format"): [None, "pack-quantized", "int-quantized"],
        ("config_groups", "group_0", "targets"): [["Linear"], ["Linear", "Embedding"]],
    },
}


def told(config: dict, place: tuple[str, ...], value: object) -> dict:
    """The config with `value` at `place`; without anything there for None."""
    first, *rest = place
    if rest:
        return {**config, first: told(config[first], tuple(rest), value)}
    return {**{key: old for key, old in config.items() if key != first}, **({} if value is None else {first: value})}


@pytest.mark.parametrize(
    ("method", "place", "value"),
    [(method, place, value) for method, places in SAID.items() for place, values in places.items() for value in values],
)
def test_both_say_the_same(method, place, value):
    config = told(KINDS[method], place, value)
    try:
        found = host.judge({"quantization_config": config})
    except host.Refused:
        found = None
    try:
        schemes = port.read(config).schemes()
    except ValueError:
        schemes = None
    assert (found is None) == (schemes is None), (found, schemes)
    if schemes:
        assert (found["bits"], found["group"]) in {(scheme.bits, scheme.group) for scheme in schemes}
        assert found["act_order"] == any(scheme.act_order for scheme in schemes)


@pytest.mark.parametrize("method", ["fp8", "mxfp4", "bitsandbytes", "torchao", "marlin", "gptq_marlin", "", None])
def test_both_refuse_other_methods(method):
    config = told(KINDS["gptq"], ("quant_method",), method)
    with pytest.raises(host.Refused):
        host.judge({"quantization_config": config})
    with pytest.raises(ValueError):
        port.read(config)
