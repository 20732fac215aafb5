"""Operators of upstream's extension modules without tensors."""

from __future__ import annotations

from .operator import Operator


def init_cpu_threads_env(cpu_ids: str) -> str:
    """Return a message: upstream binds the process to `cpu_ids` here, the port leaves that to systemd."""
    return f"CPU threads are not bound to {cpu_ids}: the unit decides where a server runs."


def not_on_kepler(cuda_device_capability: int) -> bool:
    """Return False: no CUTLASS kernel runs below sm_70."""
    return False


OPERATORS = [
    Operator("_C_utils", "init_cpu_threads_env(str cpu_ids) -> str", init_cpu_threads_env),
    Operator("_C", "cutlass_scaled_mm_supports_fp8(int cuda_device_capability) -> bool", not_on_kepler),
    Operator("_C", "cutlass_scaled_mm_supports_block_fp8(int cuda_device_capability) -> bool", not_on_kepler),
    Operator("_C", "cutlass_group_gemm_supported(int cuda_device_capability) -> bool", not_on_kepler),
]
