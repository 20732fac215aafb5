"""Activations of the feed-forward layers, gated and plain."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .library import ACTIVATIONS, library, matrix, stream_of
from .operator import Operator


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))): the approximation of Hendrycks and Gimpel (2016)."""
    return F.gelu(x, approximate="tanh")


def gelu_quick(x: torch.Tensor) -> torch.Tensor:
    """x · sigmoid(1.702 x), of the same paper."""
    return x * torch.sigmoid(1.702 * x)


def gated(activation: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Make an operator that writes activation(first half) · second half: input [..., 2 d], out [..., d]."""

    def operator(out: torch.Tensor, input: torch.Tensor) -> None:
        gate, up = input.chunk(2, dim=-1)
        out.copy_(activation(gate) * up)

    return operator


def plain(activation: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Make an operator that writes activation(input): input and out of one shape."""

    def operator(out: torch.Tensor, input: torch.Tensor) -> None:
        out.copy_(activation(input))

    return operator


def gated_kernel(function: str) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """As gated, float32 on a GPU."""
    number = ACTIVATIONS[function]

    def operator(out: torch.Tensor, input: torch.Tensor) -> None:
        to, x = matrix(out), matrix(input)
        library().activation_and_mul(
            number, to.data_ptr(), x.data_ptr(), *to.shape, to.stride(0), x.stride(0), stream_of(x)
        )

    return operator


def plain_kernel(function: str) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """As plain, float32 on a GPU."""
    number = ACTIVATIONS[function]

    def operator(out: torch.Tensor, input: torch.Tensor) -> None:
        to, x = matrix(out), matrix(input)
        library().activation(number, to.data_ptr(), x.data_ptr(), *x.shape, to.stride(0), x.stride(0), stream_of(x))

    return operator


FUNCTIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": gelu_tanh, "gelu_quick": gelu_quick}
# Operator -> function. gelu_new and gelu_fast are two spellings of one formula.
GATED = {"silu_and_mul": "silu", "gelu_and_mul": "gelu", "gelu_tanh_and_mul": "gelu_tanh"}
PLAIN = {"gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_quick": "gelu_quick"}
OPERATORS = [
    Operator("_C", f"{name}(Tensor! out, Tensor input) -> ()", form(FUNCTIONS[function]), kernel(function))
    for names, form, kernel in ((GATED, gated, gated_kernel), (PLAIN, plain, plain_kernel))
    for name, function in names.items()
]
