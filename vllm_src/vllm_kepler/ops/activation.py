"""Activations of the feed-forward layers, gated and plain."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .registry import Operator


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))): the approximation of Hendrycks and Gimpel (2016)."""
    return F.gelu(x, approximate="tanh")


def gelu_quick(x: torch.Tensor) -> torch.Tensor:
    """x · sigmoid(1.702 x), of the same paper."""
    return x * torch.sigmoid(1.702 * x)


def gated(activation: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Operator that writes activation(first half) · second half: input [..., 2 d], out [..., d]."""

    def operator(out: torch.Tensor, input: torch.Tensor) -> None:
        gate, up = input.chunk(2, dim=-1)
        out.copy_(activation(gate) * up)

    return operator


def plain(activation: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Operator that writes activation(input): input and out of one shape."""

    def operator(out: torch.Tensor, input: torch.Tensor) -> None:
        out.copy_(activation(input))

    return operator


# name -> (form, activation). gelu_new and gelu_fast are two spellings of one formula.
ACTIVATIONS = {
    "silu_and_mul": (gated, F.silu),
    "gelu_and_mul": (gated, F.gelu),
    "gelu_tanh_and_mul": (gated, gelu_tanh),
    "gelu_new": (plain, gelu_tanh),
    "gelu_fast": (plain, gelu_tanh),
    "gelu_quick": (plain, gelu_quick),
}
OPERATORS = [
    Operator("_C", f"{name}(Tensor! out, Tensor input) -> ()", form(activation))
    for name, (form, activation) in ACTIVATIONS.items()
]
