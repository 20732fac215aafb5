"""Weights that are not stored as float32: float16, and the 4 and 8 bits of quantized checkpoints.

All of it enters vLLM through its own plug-in point for quantization, `config.KeplerConfig`. Arithmetic stays float32.
`vllm_kepler.checkpoint` reads what a checkpoint is; here its tensors become those of the kernels.
"""

# The port's name among vLLM's quantization methods.
METHOD = "kepler"
