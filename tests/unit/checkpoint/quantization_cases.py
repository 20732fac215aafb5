"""A quantization_config in each case: its main scheme, or None and a part of what is found in it."""

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
# Bits, group, act-order, whether files hold zero points, and their offset.
MAIN, SYMMETRIC = (4, 32, False, True, 1), (4, 32, False, False, 0)


def of(config, **more):
    return dict(config, **more)


def packed(weights=WEIGHTS, group=None, **more):
    """compressed-tensors of one group."""
    own = dict({"targets": ["Linear"], "weights": weights}, **(group or {}))
    values = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": own}}
    return dict(values, **more)


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
    (of(AWQ, zero_point=False), (4, 32, False, True, 0), ""),
    (packed(of(WEIGHTS, symmetric=None)), SYMMETRIC, ""),
    # Others of the kind: fields of another kind, and fields that one of the two did not read.
    (of(GPTQ, desc_act="false"), None, "desc_act 'false'"), (of(GPTQ, sym=0), None, "sym 0"),
    (of(GPTQ, checkpoint_format=2), None, "checkpoint_format 2"),
    (of(GPTQ, dynamic={"+:(": {}}), None, "the pattern '('"),
    (of(GPTQ, modules_in_block_to_quantize="k_proj"), None, "modules_in_block_to_quantize 'k_proj'"),
    (of(GPTQ, modules_in_block_to_quantize=[["q_proj", "k_proj", "v_proj"], "o_proj"]), MAIN, ""),
    (of(AWQ, modules_to_not_convert="gate"), None, "modules_to_not_convert 'gate'"),
    (of(AWQ, zero_point="yes"), None, "zero_point 'yes'"),
    (packed(ignore=[1]), None, "ignore [1]"), (packed(config_groups={"g": None}), None, "no targets"),
    (packed(of(WEIGHTS, actorder={})), None, "actorder"), (packed(sparsity_config={}), SYMMETRIC, ""),
    # What is served.
    (GPTQ, MAIN, ""), (of(GPTQ, bits=8, group_size=128), (8, 128, False, True, 1), ""),
    (of(GPTQ, group_size=-1, desc_act=True), (4, -1, False, True, 1), ""),
    (of(GPTQ, desc_act=True), (4, 32, True, True, 1), ""),
    (of(GPTQ, checkpoint_format="GPTQ_v2"), (4, 32, False, True, 0), ""),
    (of(GPTQ, lm_head=None, is_marlin_format=None, dynamic=None), MAIN, ""),
    (AWQ, (4, 32, False, True, 0), ""),
    (of(AWQ, version="GEMM", modules_to_not_convert=None), (4, 32, False, True, 0), ""),
    ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, (4, 64, False, True, 0), ""),
    (packed(), SYMMETRIC, ""), (packed(format=None, sparsity_config={"format": "dense"}), SYMMETRIC, ""),
    (packed(quant_method="compressed_tensors"), SYMMETRIC, ""),
    (packed(of(WEIGHTS, num_bits=8, strategy="channel", group_size=None)), (8, -1, False, False, 0), ""),
    (packed(of(WEIGHTS, strategy=None, actorder="weight")), SYMMETRIC, ""),
    (packed(of(WEIGHTS, symmetric=False)), (4, 32, False, True, 0), ""),
    (packed(config_groups={"a": {"targets": ["x"], "weights": WEIGHTS},
                           "b": {"targets": ["y"], "weights": of(WEIGHTS, group_size=128)}}),
     (4, 128, False, False, 0), ""),
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
    # Keys by which newer tools name what others have in checkpoint_format and version.
    (of(GPTQ, format="gptq_v2"), (4, 32, False, True, 0), ""), (of(GPTQ, format="gptq", pack_dtype="int32"), MAIN, ""),
    (of(GPTQ, format="marlin"), None, "format marlin"), (of(GPTQ, pack_dtype="int16"), None, "packed in int16"),
    (of(AWQ, format="gemm", version=None), (4, 32, False, True, 0), ""),
    (of(AWQ, format="gemv_fast", version=None), None, "version gemv_fast"),
    (of(GPTQ, meta={"quantizer": ["gptqmodel:5.0"]}, act_group_aware=True), MAIN, ""),
    (packed(transform_config={"config_groups": {"R1": {}}}), None, "transform_config"),
    (packed(transform_config={}, quantization_status="compressed", global_compression_ratio=1.5), SYMMETRIC, ""),
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
