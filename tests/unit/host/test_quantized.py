"""Which quantized weights are taken, and what is said of the others."""

import pytest
from host.quantized import WHOLE, WORKS, Refused, judge

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True}


def packed(weights=WEIGHTS, group=None, **more):
    """compressed-tensors of one group."""
    own = {"targets": ["Linear"], "weights": weights}
    own.update(group or {})
    said = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": own}}
    said.update(more)
    return said


def of(config, **more):
    return dict(config, **more)


@pytest.mark.parametrize(
    ("said", "bits", "group"),
    [
        (GPTQ, 4, 128), (of(GPTQ, bits=8, group_size=32), 8, 32), (of(GPTQ, group_size=64), 4, 64),
        (of(GPTQ, group_size=-1), 4, WHOLE), (of(GPTQ, checkpoint_format="gptq_v2"), 4, 128),
        (of(GPTQ, dynamic={"-:.*mlp.*": {}, "+:.*attn.*": {"bits": 8}}), 4, 128),
        (AWQ, 4, 128), ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, 4, 64),
        (of(AWQ, version="GEMM"), 4, 128),
        (packed(), 4, 128), (packed(format=None), 4, 128),
        (packed(of(WEIGHTS, num_bits=8, strategy="channel", group_size=None)), 8, WHOLE),
        (packed(of(WEIGHTS, actorder="weight")), 4, 128), (packed(sparsity_config={"format": "dense"}), 4, 128),
        (packed(config_groups={"a": {"weights": of(WEIGHTS, group_size=32)}, "b": {"weights": WEIGHTS}}), 4, 128),
    ],
)
def test_what_is_served(said, bits, group):
    for config in ({"quantization_config": said}, {"compression_config": said},
                   {"text_config": {"quantization_config": said}}):
        found = judge(config)
        assert (found["method"], found["bits"], found["group"]) == (said["quant_method"], bits, group)
        assert found["act_order"] is False


def test_unquantized_weights_are_none_of_it():
    assert judge({}) is judge({"quantization_config": None}) is judge([]) is judge({"text_config": "x"}) is None


@pytest.mark.parametrize(
    ("said", "scattered"),
    [(of(GPTQ, desc_act=True), True), (of(GPTQ, desc_act=True, group_size=-1), False),
     (of(GPTQ, dynamic={"x": {"desc_act": True}}), True)],
)
def test_columns_in_another_order(said, scattered):
    assert judge({"quantization_config": said})["act_order"] is scattered


@pytest.mark.parametrize(
    ("said", "zeros"),
    [(GPTQ, False), (of(GPTQ, sym=False), True), (AWQ, True), (of(AWQ, zero_point=False), False), (packed(), False),
     (packed(of(WEIGHTS, symmetric=False)), True)],
)
def test_zero_points_of_groups(said, zeros):
    assert judge({"quantization_config": said})["zeros"] is zeros


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8"), ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"), ({"quant_method": "gguf"}, "gguf"),
        ({"quant_method": "marlin"}, "marlin"), ({"quant_method": 4}, "4"), ({"bits": 4}, "an unnamed method"),
        ("awq", "no mapping"), ({"quant_method": ["gptq"]}, "gptq"),
        (of(GPTQ, bits=3), "bits of GPTQ 3"), (of(GPTQ, bits=2), "2"), (of(GPTQ, bits="4"), "'4'"),
        (of(GPTQ, bits=4.0), "4.0"), (of(GPTQ, bits=True), "True"), (of(GPTQ, group_size=16), "16"),
        (of(GPTQ, group_size=None), "None"), (of(GPTQ, group_size=0), "0"),
        (of(GPTQ, is_marlin_format=True), "marlin"), (of(GPTQ, checkpoint_format="marlin"), "marlin"),
        (of(GPTQ, checkpoint_format="bitblas"), "bitblas"), (of(GPTQ, lm_head=True), "head"),
        (of(GPTQ, dynamic=["x"]), "dynamic"), (of(GPTQ, dynamic={"x": 1}), "dynamic"),
        (of(GPTQ, dynamic={"+:x": {"bits": 2}}), "bits of GPTQ 2"),
        (of(AWQ, bits=8), "bits of AWQ 8"), (of(AWQ, version="gemv"), "gemv"), (of(AWQ, group_size=-1), "-1"),
        (packed(format="float-quantized"), "float-quantized"), (packed(format="int-quantized"), "int-quantized"),
        (packed(format="marlin-24"), "marlin-24"),
        (packed(group={"format": "float-quantized"}), "float-quantized"),
        (packed(of(WEIGHTS, num_bits=2)), "num_bits of compressed-tensors 2"),
        (packed(of(WEIGHTS, type="float")), "no integers"), (packed(of(WEIGHTS, dynamic=True)), "no integers"),
        (packed(of(WEIGHTS, strategy="tensor")), "tensor"), (packed(of(WEIGHTS, actorder="group")), "act-order"),
        (packed(of(WEIGHTS, group_size=16)), "16"), (packed(None), "no integers"),
        (packed(group={"input_activations": {"num_bits": 8}}), "w8a8"),
        (packed(group={"output_activations": {"num_bits": 8}}), "activations"),
        (packed(group={"targets": ["Embedding"]}), "embeddings"),
        (packed(kv_cache_scheme={"num_bits": 8}), "cache"), (packed(sparsity_config={"format": "sparse-24"}), "sparse"),
        (packed(config_groups={}), "config_groups"), (packed(config_groups={"a": 1}), "config_groups"),
    ],
)
def test_what_is_refused(said, named):
    with pytest.raises(Refused) as refused:
        judge({"quantization_config": said})
    assert named in refused.value.found
    assert refused.value.expected


def test_a_refused_method_comes_with_the_list_of_what_works():
    with pytest.raises(Refused) as refused:
        judge({"quantization_config": {"quant_method": "fp8"}})
    assert refused.value.expected == WORKS
    for word in ("GPTQ", "AWQ", "w4a16", "w8a16", "bfloat16"):
        assert word in WORKS
