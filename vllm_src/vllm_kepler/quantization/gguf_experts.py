"""Experts of GGUF files: stacks of matrices, repacked for the port's kernels as each stack is complete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from gguf import GGMLQuantizationType as Type
from vllm.model_executor.layers.fused_moe import FusedMoE
from vllm.model_executor.utils import set_weight_attrs

from ..errors import ModelError
from ..moe import KeplerMoEMethod, track_loaded
from ..ops import moe
from .gguf_linear import BITS, GROUP, Codes, alike, check_shape, columns_of, join_alike
from .packed import check_groups

# Names in a layer of the gate's and the other matrix in one, and of the last, and of the parts of each.
BOTH, DOWN = "w13", "w2"
SHARDS = {BOTH: ("w1", "w3"), DOWN: ("w2",)}


class Stack:
    """A rank's share of one matrix of all experts, which comes part by part and is packed with the last of them.

    Attributes:
        kinds: how the file has each part of an expert's matrix.
        rows, columns: those of a part on this rank.
        by_columns: whether the ranks share the columns; else the rows.
        matrices: what the layer multiplies with; None until all parts have come.
    """

    def __init__(
        self, name: str, kinds: Sequence[Type], rows: int, columns: int, by_columns: bool, layer: FusedMoE, half: bool
    ) -> None:
        self.name, self.kinds, self.rows, self.columns, self.by_columns = name, kinds, rows, columns, by_columns
        self.rank, self.ranks, self.num_experts = layer.tp_rank, layer.tp_size, layer.global_num_experts
        self.half = half
        self.parts: dict[tuple[int, int], Codes | torch.Tensor] = {}
        self.matrices: moe.Experts | None = None
        if any(kind in BITS for kind in kinds):
            check_groups(name, GROUP, columns, columns * self.ranks if by_columns else columns)

    def take(self, expert: int, part: int, rows: torch.Tensor, device: torch.device) -> None:
        """Keep this rank's share of a part of an expert's matrix.

        Raises ModelError for one of another shape than config.json gives it.
        """
        row_ranks, column_ranks = (1, self.ranks) if self.by_columns else (self.ranks, 1)
        check_shape(rows, self.kinds[part], self.rows * row_ranks, self.columns * column_ranks)
        own = rows if self.by_columns else rows.narrow(0, self.rank * self.rows, self.rows)
        first = self.rank * self.columns if self.by_columns else 0
        self.parts[expert, part] = columns_of(
            own, self.kinds[part], first, first + self.columns, self.half, self.name, device
        )
        if len(self.parts) < self.num_experts * len(self.kinds):
            return
        whole = join_alike(alike([self.parts[key] for key in sorted(self.parts)], self.half, self.name))
        self.parts.clear()
        self.matrices = whole.unflatten(0, (self.num_experts, -1)) if isinstance(whole, torch.Tensor) else whole


class GgufExpertsMethod(KeplerMoEMethod):
    """The experts of a layer of a GGUF file.

    both, down: how the file has the gate's and the other matrix, and the last.
    """

    def __init__(self, layer: FusedMoE, name: str, both: Sequence[Type], down: Type, half: bool) -> None:
        super().__init__(layer.moe_config)
        self.name, self.half = name, half
        self.kinds: dict[str, Sequence[Type]] = {BOTH: both, DOWN: (down,)}

    def create_parameters(
        self, layer: torch.nn.Module, num_experts: int, hidden_size: int, intermediate_size: int, *sizes: Any,
        **named: Any,
    ) -> None:
        """Parameters that hand what is loaded to the stacks; they have no elements of their own.

        Raises ModelError for a shard that cannot be cut out of the file.
        """
        shapes = {BOTH: (intermediate_size, hidden_size), DOWN: (hidden_size, intermediate_size)}
        self.stacks = {
            name: Stack(f"{self.name}.{name}", self.kinds[name], *shape, name == DOWN, layer, self.half)
            for name, shape in shapes.items()
        }
        for name, stack in self.stacks.items():
            parameter = torch.nn.Parameter(torch.empty(0), requires_grad=False)
            set_weight_attrs(parameter, {"weight_loader": track_loaded(loading(stack, SHARDS[name]))})
            layer.register_parameter(f"{name}_weight", parameter)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Put the stacks' matrices, what it multiplies with, in the place of the parameters.

        Raises ModelError if a part has not come.
        """
        for name, stack in self.stacks.items():
            if stack.matrices is None:
                raise ModelError(
                    f"{stack.name}: found no weights for a part of it; expected all. Fetch the model again."
                )
            delattr(layer, f"{name}_weight")
            setattr(layer, f"{name}_stack", stack.matrices)
        del self.stacks

    def matrices(self, layer: torch.nn.Module) -> tuple[moe.Experts, moe.Experts]:
        return layer.w13_stack, layer.w2_stack


def loading(stack: Stack, shards: Sequence[str]) -> Callable[..., Any]:
    """The weight loader of a stack."""

    def load(
        parameter: torch.nn.Parameter, loaded: torch.Tensor, name: str, shard_id: str, expert_id: int, **named: Any
    ) -> bool:
        stack.take(expert_id, shards.index(shard_id), loaded, parameter.device)
        return True

    return load
