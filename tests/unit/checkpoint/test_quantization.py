"""One reading of quantization_config, which plan, preflight, fetch, start and port share."""

import pickle

import pytest
from module_utils.checkpoint.errors import CheckpointError, UnsupportedQuantizationError
from module_utils.checkpoint.quantization import SUPPORTED_FORMATS, Scheme, parse_quantization, read_quantization
from quantization_cases import AWQ, CASES, GPTQ, WEIGHTS, of, packed

MAIN, SYMMETRIC = Scheme(4, 32, zero_offset=1), Scheme(4, 32, has_zeros=False)


@pytest.mark.parametrize(("values", "scheme", "found"), CASES)
def test_quantization_is_read_or_refused(values, scheme, found):
    for config in ({"quantization_config": values}, {"compression_config": values},
                   {"text_config": {"quantization_config": values}}, {"llm_config": {"quantization_config": values}}):
        if scheme:
            assert read_quantization(config).main == scheme
            continue
        with pytest.raises(UnsupportedQuantizationError) as error:
            read_quantization(config)
        assert found in error.value.found
        assert error.value.expected


@pytest.mark.parametrize("empty", [None, {}, "", [], False])
def test_empty_quantization_is_none(empty):
    assert read_quantization({"quantization_config": empty}) is None
    assert read_quantization(empty) is read_quantization({"text_config": "x"}) is None


def test_unsupported_method_is_answered_with_supported_formats():
    with pytest.raises(UnsupportedQuantizationError) as error:
        parse_quantization({"quant_method": "fp8"})
    assert error.value.expected == SUPPORTED_FORMATS
    assert str(error.value) == (
        "config.json: found weights quantized with fp8 (quantization_config); expected %s. Choose another checkpoint "
        "of the model." % SUPPORTED_FORMATS
    )
    for word in ("GPTQ", "AWQ", "w4a16", "w8a16", "bfloat16", "GGUF", "Q4_K"):
        assert word in SUPPORTED_FORMATS


@pytest.mark.parametrize(
    ("values", "act_order"),
    [(GPTQ, False), (of(GPTQ, desc_act=True), True), (of(GPTQ, desc_act=True, group_size=-1), False),
     (of(GPTQ, dynamic={"x": {"desc_act": True}}), True), (AWQ, False), (packed(), False)],
)
def test_act_order_of_any_layer_counts(values, act_order):
    assert parse_quantization(values).act_order is act_order


@pytest.mark.parametrize(
    ("values", "zeros"),
    [(GPTQ, True), (of(GPTQ, sym=True), False), (of(GPTQ, sym=None), False), (AWQ, True),
     (of(AWQ, zero_point=None), True), (of(AWQ, zero_point=False), False), (packed(), False),
     (packed(of(WEIGHTS, symmetric=False)), True)],
)
def test_kernels_keep_zero_points_of_asymmetric_weights(values, zeros):
    assert parse_quantization(values).zeros is zeros


Q, GATE, ROUTER = "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.gate_proj", "model.layers.1.mlp.gate"
EIGHT = Scheme(8, 32, zero_offset=1)


@pytest.mark.parametrize(
    ("values", "schemes"),
    [
        (GPTQ, [MAIN, MAIN, MAIN]),
        (of(GPTQ, dynamic={"-:.*mlp": {}, "+:.*q_proj": {"bits": 8}}), [EIGHT, None, None]),
        # The first rule that matches the beginning of a name decides.
        (of(GPTQ, dynamic={"-:.*q_proj": {}, ".*q_proj": {"bits": 8}, "mlp": {"bits": 8}}), [None, MAIN, MAIN]),
        (of(GPTQ, modules_in_block_to_quantize=[["self_attn.q_proj"], "mlp.gate_proj"]), [MAIN, MAIN, None]),
        (of(AWQ, modules_to_not_convert=["gate"]), [Scheme(4, 32), Scheme(4, 32), None]),
        (of(AWQ, modules_to_not_convert=["layers.1.mlp"]), [Scheme(4, 32), None, None]),
        (packed(ignore=["re:.*mlp.*"]), [SYMMETRIC, None, None]),
        (packed(ignore=[Q, "gate"]), [None, SYMMETRIC, SYMMETRIC]),
        (packed(group={"targets": [Q, "re:.*gate_proj"]}), [SYMMETRIC, SYMMETRIC, None]),
        (packed(group={"targets": ["MyEmbeddingLinear"]}), [None, None, None]),
    ],
)
def test_scheme_of_layer_follows_its_rules(values, schemes):
    quantization = parse_quantization(values)
    assert [quantization.scheme_of(name) for name in (Q, GATE, ROUTER)] == schemes


def test_different_schemes_in_fused_layer_are_refused():
    names = [Q, Q.replace("q_proj", "k_proj")]
    assert parse_quantization(GPTQ).scheme_of_fused("qkv_proj", names) == MAIN
    message = "different quantization of .*q_proj and .*k_proj.*in qkv_proj"
    with pytest.raises(UnsupportedQuantizationError, match=message):
        parse_quantization(of(GPTQ, dynamic={"-:.*k_proj": {}})).scheme_of_fused("qkv_proj", names)


MIXTURE = {"num_hidden_layers": 3, "num_experts": 4}


@pytest.mark.parametrize(
    ("config", "values", "found"),
    [
        ({"num_hidden_layers": 3}, of(GPTQ, dynamic={"+:.*k_proj": {"bits": 8}}), "layers.0.self_attn.k_proj"),
        ({"num_hidden_layers": 3}, of(GPTQ, dynamic={r"-:.*layers\.2\..*v_proj": {}}), "layers.2.self_attn.v_proj"),
        ({"num_hidden_layers": 3}, of(AWQ, modules_to_not_convert=["self_attn.q_proj"]), "layers.0.self_attn.k_proj"),
        ({"text_config": {"num_hidden_layers": 3}}, packed(ignore=["re:.*up_proj"]), "layers.0.mlp.up_proj"),
        (MIXTURE, of(GPTQ, dynamic={r"-:.*experts\.3\.down_proj": {}}), "mlp.experts.3.down_proj"),
        (MIXTURE, packed(ignore=["re:.*experts.1.w2"]), "block_sparse_moe.experts.1.w2"),
        # Whole layers, single layers and routers may differ.
        (MIXTURE, of(GPTQ, dynamic={r"-:.*layers\.1\.": {}, "+:.*o_proj": {"bits": 8}, "-:.*gate$": {}}), None),
        (MIXTURE, of(AWQ, modules_to_not_convert=["gate", "layers.0.self_attn"]), None),
        ({}, of(GPTQ, dynamic={"-:.*k_proj": {}}), None),
        ({"num_hidden_layers": 1 << 60, "num_experts": "x"}, of(GPTQ, dynamic={"-:lm_head": {}}), None),
    ],
)
def test_different_schemes_are_refused_by_config_alone(config, values, found):
    config = dict(config, quantization_config=values)
    if found is None:
        assert read_quantization(config)
        return
    with pytest.raises(UnsupportedQuantizationError, match="different quantization of") as error:
        read_quantization(config)
    assert found in error.value.found


def test_errors_pass_between_processes():
    error = pickle.loads(pickle.dumps(UnsupportedQuantizationError("a", "b")))
    assert isinstance(error, CheckpointError) and str(error) == "config.json: found a; expected b. " + error.next_step
