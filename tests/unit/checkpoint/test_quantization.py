"""One reading of quantization_config, which plan, preflight, fetch, start and port share."""

import pickle

import pytest
from checkpoint.errors import CheckpointError, UnsupportedQuantization
from checkpoint.limits import WHOLE_ROW
from checkpoint.quantization import SUPPORTED_FORMATS, Scheme, parse_quantization, read_quantization

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
MAIN, SYMMETRIC = Scheme(4, 32, zero_offset=1), Scheme(4, 32, has_zeros=False)


def of(config, **more):
    return dict(config, **more)


def packed(weights=WEIGHTS, group=None, **more):
    """compressed-tensors of one group."""
    own = dict({"targets": ["Linear"], "weights": weights}, **(group or {}))
    values = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": own}}
    return dict(values, **more)


# quantization_config: its main scheme, or None and a part of what is found in it.
CASES = [
    # The configs in which host and port once differed.
    (packed(group={"targets": None}), None, "group g has no targets"),
    (packed(sparsity_config="x"), None, "sparsity_config 'x'"),
    (of(GPTQ, dynamic=["x"]), None, "dynamic ['x']"),
    (of(GPTQ, dynamic={"x": None}), None, "the rule x: None"),
    (packed(config_groups=["g"]), None, "config_groups ['g']"),
    (of(GPTQ, dynamic={"-:x": None}), MAIN, ""),
    (packed(group={"targets": ["MyEmbeddingLinear"]}), SYMMETRIC, ""),
    (packed(group={"targets": ["re:.*Embedding.*"]}), SYMMETRIC, ""),
    (of(AWQ, zero_point=False), Scheme(4, 32), ""),
    (packed(of(WEIGHTS, symmetric=None)), SYMMETRIC, ""),
    # Others of the kind: fields of another kind, and fields that one of the two did not read.
    (of(GPTQ, desc_act="false"), None, "desc_act 'false'"), (of(GPTQ, sym=0), None, "sym 0"),
    (of(GPTQ, checkpoint_format=2), None, "checkpoint_format 2"),
    (of(GPTQ, dynamic={"+:(": {}}), None, "the pattern '('"),
    (of(GPTQ, modules_in_block_to_quantize="k_proj"), None, "modules_in_block_to_quantize 'k_proj'"),
    (of(GPTQ, modules_in_block_to_quantize=[["k_proj"], "o_proj"]), MAIN, ""),
    (of(AWQ, modules_to_not_convert="gate"), None, "modules_to_not_convert 'gate'"),
    (of(AWQ, zero_point="yes"), None, "zero_point 'yes'"),
    (packed(ignore=[1]), None, "ignore [1]"), (packed(config_groups={"g": None}), None, "no targets"),
    (packed(of(WEIGHTS, actorder={})), None, "actorder"), (packed(sparsity_config={}), SYMMETRIC, ""),
    # What is served.
    (GPTQ, MAIN, ""), (of(GPTQ, bits=8, group_size=128), Scheme(8, 128, zero_offset=1), ""),
    (of(GPTQ, group_size=-1, desc_act=True), Scheme(4, WHOLE_ROW, zero_offset=1), ""),
    (of(GPTQ, desc_act=True), Scheme(4, 32, act_order=True, zero_offset=1), ""),
    (of(GPTQ, checkpoint_format="GPTQ_v2"), Scheme(4, 32), ""),
    (of(GPTQ, lm_head=None, is_marlin_format=None, dynamic=None), MAIN, ""),
    (AWQ, Scheme(4, 32), ""), (of(AWQ, version="GEMM", modules_to_not_convert=None), Scheme(4, 32), ""),
    ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, Scheme(4, 64), ""),
    (packed(), SYMMETRIC, ""), (packed(format=None, sparsity_config={"format": "dense"}), SYMMETRIC, ""),
    (packed(quant_method="compressed_tensors"), SYMMETRIC, ""),
    (packed(of(WEIGHTS, num_bits=8, strategy="channel", group_size=None)), Scheme(8, WHOLE_ROW, has_zeros=False), ""),
    (packed(of(WEIGHTS, strategy=None, actorder="weight")), SYMMETRIC, ""),
    (packed(of(WEIGHTS, symmetric=False)), Scheme(4, 32), ""),
    (packed(config_groups={"a": {"targets": ["x"], "weights": WEIGHTS},
                           "b": {"targets": ["y"], "weights": of(WEIGHTS, group_size=128)}}),
     Scheme(4, 128, has_zeros=False), ""),
    # Methods and formats of other GPUs.
    ({"quant_method": "fp8", "activation_scheme": "dynamic"}, None, "fp8"), ({"quant_method": "mxfp4"}, None, "mxfp4"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, None, "bitsandbytes"),
    ({"quant_method": "torchao"}, None, "torchao"), ({"quant_method": "gguf"}, None, "gguf"),
    ({"quant_method": "gptq_marlin"}, None, "gptq-marlin"), ({"quant_method": 4}, None, "4"),
    ({"bits": 4}, None, "an unnamed method"), ({"quant_method": ["gptq"]}, None, "gptq"), ("awq", None, "no mapping"),
    (of(GPTQ, is_marlin_format=True), None, "format marlin"), (of(GPTQ, checkpoint_format="bitblas"), None, "bitblas"),
    (of(GPTQ, lm_head=True), None, "quantized head"), (of(AWQ, version="gemv"), None, "version gemv"),
    (packed(format="int-quantized"), None, "format int-quantized"),
    (packed(group={"format": "float-quantized"}), None, "format float-quantized"),
    (packed(kv_cache_scheme={"num_bits": 8}), None, "quantized KV cache"),
    (packed(sparsity_config={"format": "sparse-24-bitmask"}), None, "sparse weights (sparse-24-bitmask)"),
    (packed(group={"input_activations": {"num_bits": 8}}), None, "input_activations, such as w8a8"),
    (packed(group={"output_activations": {"num_bits": 8}}), None, "output_activations"),
    (packed(group={"targets": ["Linear", "Embedding"]}), None, "quantized embeddings"),
    (packed(of(WEIGHTS, type="float", num_bits=8)), None, "type float"), (packed(None), None, "type none"),
    (packed(of(WEIGHTS, dynamic=True)), None, "weights"), (packed(of(WEIGHTS, strategy="tensor")), None, "a tensor"),
    (packed(of(WEIGHTS, actorder="group")), None, "act-order of groups"),
    (packed(of(WEIGHTS, actorder=True)), None, "act-order of groups"),
    (packed(config_groups={}), None, "without config_groups"),
    # Rules for some layers count as well.
    (of(GPTQ, dynamic={"+:x": {"bits": 2}}), None, "bits 2"), (of(GPTQ, dynamic={"x": {"group_size": 16}}), None, "16"),
]
NUMBERS = [None, 2, 3, 16, 4.0, "4", True, 0, 24, 96, 256, "128"]
CASES += [(of(GPTQ, bits=bits), None, "GPTQ with bits %r" % (bits,)) for bits in NUMBERS]
CASES += [(of(GPTQ, group_size=size), None, "GPTQ with group_size %r" % (size,)) for size in NUMBERS]
CASES += [(of(AWQ, bits=bits), None, "AWQ with bits %r" % (bits,)) for bits in NUMBERS + [8]]
CASES += [(of(AWQ, w_bit=8), None, "AWQ with w_bit 8"), (of(AWQ, group_size=-1), None, "AWQ with group_size -1")]
CASES += [(packed(of(WEIGHTS, num_bits=bits)), None, "with num_bits %r" % (bits,)) for bits in NUMBERS]
CASES += [(packed(of(WEIGHTS, group_size=size)), None, "with group_size %r" % (size,)) for size in NUMBERS + [-1]]


@pytest.mark.parametrize(("values", "scheme", "found"), CASES)
def test_quantization_is_read_or_refused(values, scheme, found):
    for config in ({"quantization_config": values}, {"compression_config": values},
                   {"text_config": {"quantization_config": values}}, {"llm_config": {"quantization_config": values}}):
        if scheme:
            assert read_quantization(config).main == scheme
            continue
        with pytest.raises(UnsupportedQuantization) as error:
            read_quantization(config)
        assert found in error.value.found
        assert error.value.expected


@pytest.mark.parametrize("empty", [None, {}, "", [], False])
def test_empty_quantization_is_none(empty):
    assert read_quantization({"quantization_config": empty}) is None
    assert read_quantization(empty) is read_quantization({"text_config": "x"}) is None


def test_unsupported_method_is_answered_with_supported_formats():
    with pytest.raises(UnsupportedQuantization) as error:
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
    with pytest.raises(UnsupportedQuantization, match="different quantization of .*q_proj and .*k_proj.*in qkv_proj"):
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
    with pytest.raises(UnsupportedQuantization, match="different quantization of") as error:
        read_quantization(config)
    assert found in error.value.found


def test_errors_pass_between_processes():
    error = pickle.loads(pickle.dumps(UnsupportedQuantization("a", "b")))
    assert isinstance(error, CheckpointError) and str(error) == "config.json: found a; expected b. " + error.next_step
