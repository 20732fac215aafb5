"""What vLLM as it is released refuses on GPUs of a compute capability, by a model's config.json."""

from .config import QUANTIZATION_KEYS, parts_of

# Method of quantization -> the least compute capability of its kernels, and whether the port serves such a checkpoint.
# Those of compressed-tensors are its schemes' of packed and of 8-bit weights.
METHODS = {
    "gptq": ((6, 0), True),
    "awq": ((7, 5), True),
    "compressed-tensors": ((7, 5), True),
    "fp8": ((8, 0), False),
    "fbgemm-fp8": ((8, 0), False),
    "modelopt": ((8, 9), False),
    "modelopt-fp4": ((8, 0), False),
    "mxfp4": ((8, 0), False),
    "gptq-marlin": ((8, 0), False),
    "gptq-marlin-24": ((8, 0), False),
    "awq-marlin": ((8, 0), False),
}
# Types of models that the released vLLM answers for without a bias that it has loaded.
BIASED = ("phimoe",)
# Latent attention is tried on newer GPUs alone.
LATENT = (8, 0)
WITHOUT = "unquantized weights or GPTQ"
PORT = " (engine: port serves it)"


def capability_of(text):
    """Return a compute capability such as 7.0 as numbers."""
    return tuple(int(part) for part in text.split("."))


def refusals(config, capability):
    """Reasons why the GPUs cannot run the model: [(found, expected)].

    Args:
        config: content of config.json, a mapping.
        capability: of the GPUs, such as 7.0; None if unknown.
    """
    if not capability:
        return []
    for prefix, part in parts_of(config):
        if part.get("model_type") in BIASED and part.get("lm_head_bias"):
            return [("a model of the type %s and engine: stock, which leaves out the bias of its output layer" % (
                part["model_type"]), "another model" + PORT)]
        if part.get("kv_lora_rank") and capability_of(capability) < LATENT:
            return [("multi-head latent attention (%skv_lora_rank) and engine: stock" % prefix,
                     "a model with keys and values of every head" + PORT)]
        for key in QUANTIZATION_KEYS:
            if part.get(key):
                return _quantization(part[key], capability)
    return []


def _quantization(section, capability):
    method = section.get("quant_method") if isinstance(section, dict) else None
    name = str(method or "an unnamed method").lower().replace("_", "-")
    if name not in METHODS:
        return [("weights quantized with %s and engine: stock" % name, WITHOUT)]
    least, in_port = METHODS[name]
    if capability_of(capability) >= least:
        return []
    found = "weights quantized with %s and engine: stock, whose kernels for them need compute capability %d.%d"
    return [((found + "; these GPUs have %s") % ((name,) + least + (capability,)),
             WITHOUT + (PORT if in_port else ""))]
