"""LoRA adapters beside linear layers, in plain PyTorch.

vLLM 0.9.2 is unchanged. The platform names `KeplerPunica`, so that every process with adapters imports this module,
which puts its functions in the place of upstream's.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from vllm.lora import layers, models, worker_manager
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
from vllm.model_executor.layers.linear import LinearBase, QKVParallelLinear
from vllm.platforms import current_platform

from .checkpoint import adapters
from .checkpoint.files import read_adapter
from .errors import ModelError

# Tokens of one adapter: its slot, and their rows.
Group = tuple[int, "slice | torch.Tensor"]


def groups_of(slots: list[int], in_runs: bool, device: torch.device | str) -> list[Group]:
    """The rows of each slot; rows without an adapter (-1) are in no group.

    Args:
        in_runs: a group for each run of neighbors, which needs no copies; else one for each slot, with few products.
    """
    found: dict[tuple[int, int], list[int]] = {}
    run = 0
    for row, slot in enumerate(slots):
        run += bool(row and slot != slots[row - 1])
        if slot >= 0:
            found.setdefault((slot, run if in_runs else 0), []).append(row)

    def index(rows: list[int]) -> slice | torch.Tensor:
        are_neighbors = rows[-1] - rows[0] + 1 == len(rows)
        return slice(rows[0], rows[-1] + 1) if are_neighbors else torch.tensor(rows, device=device)

    return [(slot, index(rows)) for (slot, _), rows in found.items()]


class KeplerPunica(PunicaWrapperBase):
    """Products with adapters, slot by slot.

    Upstream's plain ones copy an adapter's matrices for each token, and give tokens without one (-1) the last slot's.
    """

    def __init__(self, *sizes: Any, **named: Any) -> None:
        super().__init__(*sizes, **named)
        self.groups: list[Group] = []

    def update_metadata(self, mapping: Any, lora_index_to_id: list[int | None], *rest: Any, **named: Any) -> None:
        """Learn which adapter each token of the next batch has."""
        slots = [lora_index_to_id.index(adapter) if adapter > 0 else -1 for adapter in mapping.index_mapping]
        self.groups = groups_of(slots, mapping.is_prefill, self.device)

    def add_lora_linear(
        self, y: torch.Tensor, x: torch.Tensor, lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...], lora_bias_stacked: None, scale: float,
        output_slices: tuple[int, ...], **named: Any,
    ) -> None:
        """Add x · Aᵀ · Bᵀ of each token's adapter to y, in place.

        Args:
            y: float32 [num_tokens, sum of output_slices].
            x: float32 [num_tokens, columns].
            lora_a_stacked: for each slice [slots, 1, rank, columns].
            lora_b_stacked: for each slice [slots, 1, rows, rank], scaled already: `scale` is 1.
        """
        for slot, rows in self.groups:
            mine, start = x[rows], 0
            for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                part, low = y[:, start : start + size], mine @ a[slot, 0].T
                if isinstance(rows, slice):
                    part[rows].addmm_(low, b[slot, 0].T)
                else:
                    part.index_add_(0, rows, low @ b[slot, 0].T)
                start += size

    def unused(self, *rest: Any, **named: Any) -> None:
        """Nothing asks for it: embeddings and the head have no adapters, and ranks keep lora_A whole."""
        raise NotImplementedError

    add_shrink = add_expand = add_lora_embedding = add_lora_logits = unused


def linear_layers(model: torch.nn.Module) -> list[str]:
    """Last names of the linear layers of a model: embedding and head, which upstream adds, are refused."""
    return sorted({name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, LinearBase)})


def shapes_of(manager: models.LoRAModelManager) -> dict[str, tuple[int, int]]:
    """(rows, columns) of each matrix that an adapter may change, by the checkpoint's names."""
    found = {}
    for name, module in manager.modules.items():
        layer = module.base_layer
        parts = manager.packed_modules.get(name, [name])
        if isinstance(layer, QKVParallelLinear):
            # A key head that several ranks share counts once.
            sizes = [layer.total_num_heads * layer.head_size, *[layer.total_num_kv_heads * layer.head_size] * 2]
        else:
            sizes = getattr(layer, "output_sizes", [layer.output_size])
        sizes = sizes if len(parts) == len(sizes) else [sum(sizes)]
        found.update({part: (size, layer.input_size) for part, size in zip(parts, sizes, strict=True)})
    return found


def check(name: str, directory: Path, manager: models.LoRAModelManager) -> None:
    """Raise ModelError for an adapter that the engine would compute wrong, or not at all."""
    facts = read_adapter(str(directory))
    for what, expected in adapters.faults(facts, manager.lora_config.max_lora_rank, shapes_of(manager))[:1]:
        raise ModelError(
            f"adapter {name} in {directory}: found {what}; expected {expected}. Choose another adapter, or merge it "
            "into its model."
        )


def checking(load: Any) -> Any:
    """A loader of adapters that first looks at the files."""

    @functools.wraps(load)
    def load_checked(self: worker_manager.WorkerLoRAManager, request: Any) -> Any:
        check(request.lora_name, Path(request.lora_path), self._adapter_manager)
        return load(self, request)

    return load_checked


layers._get_lora_device = lambda layer: torch.device(current_platform.device_type)
models.get_supported_lora_modules = linear_layers
worker_manager.WorkerLoRAManager._load_adapter = checking(worker_manager.WorkerLoRAManager._load_adapter)
