"""Root mean square normalization (Zhang and Sennrich, 2019)."""

from __future__ import annotations

import torch

from .library import library, matrix, require_dense_rows, stream_of
from .operator import Operator


def rms_norm(out: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, epsilon: float) -> None:
    """out = input / sqrt(mean(input², last dimension) + epsilon) · weight.

    Args:
        out, input: [..., hidden_size], the same floating-point dtype; computed in float32.
        weight: [hidden_size].
    """
    wide = input.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    out.copy_(scaled.to(input.dtype) * weight)


def rms_norm_kernel(out: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, epsilon: float) -> None:
    """As rms_norm, float32 on a GPU; input [tokens, heads, size] may be a part of each token's row."""
    to = matrix(out)
    require_dense_rows(input)
    x = input if input.dim() == 3 else matrix(input).unsqueeze(1)
    library().rms_norm(
        to.data_ptr(), x.data_ptr(), weight.data_ptr(), epsilon, *to.shape, to.stride(0), x.stride(0),
        x.shape[1], x.stride(1), stream_of(x)
    )


def fused_add_rms_norm(input: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float) -> None:
    """residual += input; input = rms_norm(residual). Shapes as rms_norm's."""
    residual.add_(input)
    rms_norm(input, residual, weight, epsilon)


def fused_add_rms_norm_kernel(
    input: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> None:
    """As fused_add_rms_norm, float32 on a GPU."""
    x, added = matrix(input), matrix(residual)
    library().fused_add_rms_norm(
        x.data_ptr(), added.data_ptr(), weight.data_ptr(), epsilon, *x.shape, x.stride(0), added.stride(0),
        stream_of(x),
    )


OPERATORS = [
    Operator("_C", "rms_norm(Tensor! out, Tensor input, Tensor weight, float epsilon) -> ()",
             rms_norm, rms_norm_kernel),
    Operator("_C", "fused_add_rms_norm(Tensor! input, Tensor! residual, Tensor weight, float epsilon) -> ()",
             fused_add_rms_norm, fused_add_rms_norm_kernel),
]
