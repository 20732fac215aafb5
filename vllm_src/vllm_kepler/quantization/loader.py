"""The port's model loader: upstream's, which says which tensor of the checkpoint is at fault."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from vllm.config import LoadConfig, LoadFormat, ModelConfig, VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.parameter import BasevLLMParameter

from ..errors import ModelError
from .half import halve_embeddings

logger = init_logger("vllm.kepler.loader")

# Names of what vLLM makes one of, for classes that do not say it.
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
# Errors of upstream's weight loaders for a tensor that the model has no place for.
FAULTS = (AssertionError, IndexError, KeyError, RuntimeError, ValueError)


def measuring(load: Callable[..., Any], room: int, in_parts: bool) -> Callable[..., Any]:
    """A parameter's weight loader that refuses more than `room` elements, of which upstream's would take what fits.

    in_parts: whether the parameter is its parts side by side. A part counts once: a checkpoint may hold a shared
    weight twice.
    """
    sizes: dict[tuple[Any, ...], int] = {}

    def load_measured(parameter: torch.nn.Parameter, loaded: torch.Tensor, *part: Any, **named: Any) -> Any:
        sizes[(*part, *sorted(named.items())) if in_parts else ()] = loaded.numel()
        found = sum(sizes.values())
        if found > room:
            raise ModelError(
                f"found {found} elements in what came for its layer; expected at most {room}, as config.json says. "
                "Fetch the model again, or choose another checkpoint of it."
            )
        return load(parameter, loaded, *part, **named)

    return load_measured


def fused_of(model: torch.nn.Module) -> dict[str, list[str]]:
    """A model's names of what vLLM makes one of, by vLLM's name."""
    return {**FUSED, **(getattr(model, "packed_modules_mapping", None) or {})}


def without_bias(model: torch.nn.Module, names: Sequence[str]) -> list[str]:
    """Those of a checkpoint's biases whose layer in the model has none: vLLM passes over them without a word."""
    own = {part: name for name, parts in fused_of(model).items() for part in parts}
    modules, found = dict(model.named_modules()), []
    for name in names:
        before, _, last = name.removesuffix(".bias").rpartition(".")
        layer = modules.get(f"{before}.{own.get(last, last)}")
        if isinstance(layer, LinearBase) and getattr(layer, "bias", None) is None:
            found.append(name)
    return found


def measure(model: torch.nn.Module, ranks: int) -> None:
    """Make the weight loaders of a model refuse what is larger than the shares of all `ranks` together."""
    for name, parameter in model.named_parameters():
        load = getattr(parameter, "weight_loader", None)
        # A parameter without elements stands for what is looked at and not kept.
        if load is None or is_lazy(parameter) or not parameter.numel():
            continue
        room = parameter.numel() * ranks
        if isinstance(parameter, BasevLLMParameter):
            # The parts of a fused layer each bring a whole shape, or order of columns.
            parameter._weight_loader = measuring(load, room, hasattr(parameter, "output_dim"))
        else:
            parameter.weight_loader = measuring(load, room, not name.endswith("g_idx"))


class KeplerLoader(DefaultModelLoader):
    """Loads a checkpoint in the format that its files have.

    Raises ModelError, which names the tensor, for one that the model, or float16, has no place for, and for weights
    that the checkpoint lacks.
    """

    def __init__(self, load_config: LoadConfig) -> None:
        # load_format names this class.
        super().__init__(replace(load_config, load_format=LoadFormat.AUTO))
        self._half = False
        self._ranks = 1
        self._tensor = "none"
        self._biases: list[str] = []

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig) -> torch.nn.Module:
        self._ranks = vllm_config.parallel_config.tensor_parallel_size
        self._half = getattr(vllm_config.quant_config, "half", False)
        return super().load_model(vllm_config, model_config)

    def get_all_weights(
        self, model_config: ModelConfig, model: torch.nn.Module
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        for name, tensor in super().get_all_weights(model_config, model):
            # Converters to some forms of quantization write zeros for every layer.
            if name.endswith(".bias") and tensor.any():
                self._biases.append(name)
            self._tensor = f"{name} ({str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)})"
            yield name, tensor

    def load_weights(self, model: torch.nn.Module, model_config: ModelConfig) -> None:
        if self._half:
            halve_embeddings(model)
        measure(model, self._ranks)
        expected = {name for name, parameter in model.named_parameters() if not getattr(parameter, "optional", False)}
        begin = time.perf_counter()
        try:
            loaded = model.load_weights(self.get_all_weights(model_config, model))
        except torch.cuda.OutOfMemoryError:
            raise
        except FAULTS as error:
            reason = str(error) or "the model has no place for this shape"
            raise ModelError(f"{model_config.model}: tensor {self._tensor}: {reason}") from error
        logger.info("Loading weights took %.2f seconds", time.perf_counter() - begin)
        if ignored := without_bias(model, self._biases):
            raise ModelError(
                f"{model_config.model}: found {', '.join(ignored[:5])} ({len(ignored)} in all), for which vLLM's class "
                "of the model has no place; expected a checkpoint without these. Choose another checkpoint of it."
            )
        missing = sorted(expected - loaded) if loaded is not None else []
        # Experts share a parameter: one that came does not stand for the others.
        missing += [
            f"{name} of expert {expert} ({shard})"
            for name, parameter in model.named_parameters() if name not in missing
            for expert, shard in sorted(getattr(parameter, "pending", ()))
        ]
        if missing:
            raise ModelError(
                f"{model_config.model}: found no weights for {', '.join(missing[:5])} ({len(missing)} in all); "
                "expected all of the model's. Fetch the model again, or choose another checkpoint of it."
            )
