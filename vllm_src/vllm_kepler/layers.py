"""Norms, rotary embeddings and gated activations that call the port's operators themselves.

vLLM 0.9.2 is unchanged: `register` puts these in place of its methods, which go through torch's dispatcher. For an
operator in Python that takes ten times as long as the call, and a step of decoding has five a layer.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from vllm.model_executor.layers.activation import GeluAndMul, SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding

from .ops import activation, norm, rotary
from .ops.operator import by_device

DIRECT = {
    operator.name: by_device(operator.reference, operator.kernel)
    for family in (activation, norm, rotary) for operator in family.OPERATORS if operator.kernel
}


def norm_of(
    self: RMSNorm, x: torch.Tensor, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Norm of x; with a residual the norm of both's sum, and that sum."""
    if self.variance_size_override is not None:
        return self.forward_native(x, residual)
    if residual is None:
        out = torch.empty_like(x)
        DIRECT["rms_norm"](out, x, self.weight, self.variance_epsilon)
        return out
    DIRECT["fused_add_rms_norm"](x, residual, self.weight, self.variance_epsilon)
    return x, residual


def rotating(upstream: Any) -> Any:
    """Make the method that rotates query and key in place; it leaves what else upstream's does to that."""

    @functools.wraps(upstream)
    def rotated(
        self: RotaryEmbedding, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        cache = self.cos_sin_cache
        if offsets is not None or cache.dtype is not query.dtype or cache.device != query.device:
            return upstream(self, positions, query, key, offsets)
        DIRECT["rotary_embedding"](positions, query, key, self.head_size, cache, self.is_neox_style)
        return query, key

    return rotated


def activated(x: torch.Tensor, operator: str) -> torch.Tensor:
    """Activation of the first half of each row times its second half."""
    out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    DIRECT[operator](out, x)
    return out


def register() -> None:
    """Put these in the place of upstream's; once more changes nothing."""
    RMSNorm.forward_cuda = norm_of
    if not hasattr(RotaryEmbedding.forward_cuda, "__wrapped__"):
        RotaryEmbedding.forward_cuda = rotating(RotaryEmbedding.forward_cuda)
    SiluAndMul.forward_cuda = lambda self, x: activated(x, "silu_and_mul")
    GeluAndMul.forward_cuda = lambda self, x: activated(
        x, "gelu_and_mul" if self.approximate == "none" else "gelu_tanh_and_mul"
    )
