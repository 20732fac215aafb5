"""Weights in float16: linear layers, embeddings and the head; biases, norms and activations stay float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import embedding
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from ..errors import ModelError
from ..ops import linear

LARGEST = torch.finfo(torch.float16).max
# Elements that are widened to float32 at once.
AT_ONCE = 1 << 24


def refuse_overflow(weight: torch.Tensor, name: str) -> None:
    """Raise ModelError if float16 cannot hold a tensor of floats."""
    parts = weight.flatten().split(AT_ONCE)
    # max() keeps a NaN, and a NaN is not below anything.
    largest = float(torch.stack([part.float().abs().max() for part in parts]).max())
    if largest <= LARGEST:
        return
    raise ModelError(
        f"{name}: found a weight of magnitude {largest:g}; expected at most {LARGEST:g}, the largest that float16 "
        "holds. Serve the model with dtype: float32."
    )


def checking(load: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A layer's weight loader that first refuses what float16 cannot hold."""

    def load_checked(parameter: torch.nn.Parameter, loaded: torch.Tensor, *shard: Any, **named: Any) -> Any:
        refuse_overflow(loaded, name)
        return load(parameter, loaded, *shard, **named)

    return load_checked


class HalfWeights:
    """Float16 weights for the layer `name`; stands before the method whose weights they are among the bases."""

    name: str

    def create_weights(
        self, *sizes: Any, weight_loader: Callable[..., Any], params_dtype: torch.dtype, **named: Any
    ) -> None:
        super().create_weights(  # type: ignore[misc]  # of the base beside this one
            *sizes, params_dtype=torch.float16, weight_loader=checking(weight_loader, self.name), **named
        )


class HalfMatrix(HalfWeights):
    """One float16 matrix that a layer multiplies with."""

    def __init__(self, name: str) -> None:
        self.name = name

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x · weightᵀ + bias in float32, for x [..., k] and a float16 weight [n, k]."""
        out = linear.half(x, layer.weight)
        return out if bias is None else out + bias


class HalfLinearMethod(HalfMatrix, UnquantizedLinearMethod):
    """A linear layer whose weight is float16."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """The weight stays as it is loaded; upstream packs it for another library here."""


class HalfEmbeddingMethod(HalfMatrix, UnquantizedEmbeddingMethod):
    """An embedding, or a head, whose weight is float16."""

    def embedding(self, layer: torch.nn.Module, input_: torch.Tensor) -> torch.Tensor:
        return embedding(input_, layer.weight).float()


def halve_embeddings(model: torch.nn.Module) -> None:
    """Make float16 of the embeddings that a model made without asking how to store them, before they are loaded."""
    for name, module in model.named_modules():
        if type(getattr(module, "quant_method", None)) is not UnquantizedEmbeddingMethod:
            continue
        module.quant_method = HalfEmbeddingMethod(name)
        # In place: a head that shares the weight goes on sharing it.
        module.weight.data = module.weight.data.half()
        module.weight.weight_loader = checking(module.weight.weight_loader, name)
