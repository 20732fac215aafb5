"""Loading of weights, and devices of other makers that vLLM asks about."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn

from .record import Backfill, constant


def load_with_assign(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_state_dict(self: torch.nn.Module, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """With `assign` the module takes over the tensors of `state_dict`; without it, it copies them."""
        if assign:
            modules = dict(self.named_modules())
            for name, tensor in state_dict.items():
                owner, _, leaf = name.rpartition(".")
                module = modules.get(owner)
                if module is None:
                    continue
                if isinstance(module._parameters.get(leaf), torch.nn.Parameter):
                    wants_gradient = module._parameters[leaf].requires_grad
                    if not isinstance(tensor, torch.nn.Parameter):
                        tensor = torch.nn.Parameter(tensor, wants_gradient and tensor.is_floating_point())
                    module._parameters[leaf] = tensor
                elif leaf in module._buffers:
                    module._buffers[leaf] = tensor
        # Checks the keys; what was taken over is copied onto itself.
        return original(self, state_dict, strict)

    load_state_dict.takes_assign = True  # type: ignore[attr-defined]
    return load_state_dict


def takes_no_assign(load: Callable[..., Any]) -> bool:
    return not hasattr(load, "takes_assign") and "assign" not in inspect.signature(load).parameters


def norm_with_bias(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(
        self: torch.nn.LayerNorm, normalized_shape: Any, eps: float = 1e-5, elementwise_affine: bool = True,
        bias: bool = True, device: Any = None, dtype: Any = None,
    ) -> None:
        """With `bias` False the norm has a weight alone."""
        original(self, normalized_shape, eps, elementwise_affine, device, dtype)
        if not bias:
            self.register_parameter("bias", None)

    return __init__


def takes_no_bias(make: Callable[..., None]) -> bool:
    return "bias" not in inspect.signature(make).parameters


def bytes_of(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


RECORDS = [
    Backfill("torch.Tensor.nbytes", "vLLM measures its cache of images with it", "2.1", lambda: property(bytes_of)),
    Backfill("torch.nn.Module.load_state_dict", "transformers loads on the meta device and assigns", "2.1",
             load_with_assign, "replace", takes_no_assign),
    Backfill("torch.nn.LayerNorm.__init__", "norms of OLMo and Nemotron", "2.1", norm_with_bias, "replace",
             takes_no_bias),
    Backfill("torch.xpu", "vLLM asks whether there is one", "2.3", how="module"),
    Backfill("torch.xpu.is_available", "vLLM asks whether there is one", "2.3", constant(False)),
    Backfill("torch.xpu.device_count", "vLLM asks whether there is one", "2.3", constant(0)),
    Backfill("torch.mtia", "transformers asks whether there is one", "2.3", how="module"),
    Backfill("torch.mtia.is_available", "transformers asks whether there is one", "2.3", constant(False)),
    Backfill("torch.cuda.tunable", "vLLM imports it for another maker's GPUs", "2.3", how="module"),
    Backfill("torch.cuda.tunable.is_enabled", "the counterpart of torch.cuda.tunable", "2.3", constant(False)),
    Backfill("torch.cpu", "vLLM imports it", "2.0", how="module"),
    Backfill("torch._C._cpu", "vLLM imports it", "2.4", how="module"),
    Backfill("torch._C._cpu._is_amx_tile_supported", "vLLM asks for it", "2.6", constant(False)),
]
