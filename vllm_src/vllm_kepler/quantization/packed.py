"""Linear layers of quantized checkpoints: loaded as the checkpoint packs them, then packed for the port's kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from vllm.model_executor.layers import linear as upstream
from vllm.model_executor.parameter import (
    BasevLLMParameter,
    ChannelQuantScaleParameter,
    GroupQuantScaleParameter,
    PackedColumnParameter,
    PackedvLLMParameter,
    RowvLLMParameter,
)

from ..checkpoint.limits import COLUMNS, WHOLE_ROW
from ..checkpoint.quantization import Scheme
from ..errors import ModelError
from ..ops import linear


@dataclass(frozen=True)
class Layout:
    """Tensors of a linear layer [n, k] in a kind of checkpoint: int32 words of codes, scales, and words of zeros.

    Zeros are packed along n in every kind.

    Attributes:
        codes, scales, zeros: names of the tensors.
        group_of_column: name of int32 [k], the group of each column; None where columns are in order.
        shape: name of a tensor that repeats [n, k], of no use here; None where there is none.
        input_dim: dimension along k: 0 or 1; n is the other.
        packed_input: whether codes are packed along k; else along n.
        order: which of its columns (or rows) a word holds, from its lowest bits on; None: in order.
    """

    codes: str
    scales: str
    zeros: str
    group_of_column: str | None
    shape: str | None
    input_dim: int
    packed_input: bool
    order: tuple[int, ...] | None = None

    @property
    def codes_dim(self) -> int:
        """Dimension along which codes are packed."""
        return self.input_dim if self.packed_input else 1 - self.input_dim


# By quant_method: GPTQ (Frantar et al., 2022) as AutoGPTQ and GPTQModel write it, AWQ (Lin et al., 2023) as AutoAWQ's
# version "gemm" does, and the format pack-quantized of llm-compressor.
LAYOUTS = {
    "gptq": Layout(
        codes="qweight", scales="scales", zeros="qzeros", group_of_column="g_idx", shape=None, input_dim=0,
        packed_input=True,
    ),
    "awq": Layout(
        codes="qweight", scales="scales", zeros="qzeros", group_of_column=None, shape=None, input_dim=0,
        packed_input=False, order=(0, 2, 4, 6, 1, 3, 5, 7),
    ),
    "compressed-tensors": Layout(
        codes="weight_packed", scales="weight_scale", zeros="weight_zero_point", group_of_column=None,
        shape="weight_shape", input_dim=1, packed_input=True,
    ),
}


def loading_by_parameters(method: type) -> type:
    """Let upstream's layers leave loading to the classes of a method's parameters: it knows such methods by name."""
    if method.__name__ not in upstream.WEIGHT_LOADER_V2_SUPPORTED:
        upstream.WEIGHT_LOADER_V2_SUPPORTED.append(method.__name__)
    return method


@loading_by_parameters
class PackedLinearMethod(upstream.LinearMethodBase):
    """A linear layer of codes of 4 or 8 bits."""

    def __init__(self, name: str, scheme: Scheme, layout: Layout) -> None:
        self.name = name
        self.scheme = scheme
        self.layout = layout
        # A rank's first column, if the ranks' borders lie within groups.
        self.first: int | None = None

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        weight_loader: Callable[..., Any],
        **named: Any,
    ) -> None:
        """Parameters as the checkpoint has them.

        Raises ModelError for a shard that cannot be cut out of the checkpoint.
        """
        scheme, layout = self.scheme, self.layout
        n, k = sum(output_partition_sizes), input_size_per_partition
        check_shard(self.name, scheme, k, output_partition_sizes, input_size)
        self.first = layer.tp_rank * k if cuts_groups(scheme, k, input_size) else None
        cut = self.first is not None
        columns = scheme.columns(input_size if cut else k)
        empty = empty_tensors(scheme, layout, n, k, (input_size if cut else k) // columns)
        # Rows that are one group keep their scale on every rank; of groups that are cut a rank picks its own later.
        every_scale = cut or scheme.group == WHOLE_ROW
        dims = {"output_dim": 1 - layout.input_dim, "weight_loader": weight_loader}
        both = {**dims, "input_dim": layout.input_dim}
        words = {"packed_factor": scheme.per_word}
        parameters = {
            layout.codes: PackedvLLMParameter(data=empty[layout.codes], packed_dim=layout.codes_dim, **words, **both),
            layout.scales: (
                ChannelQuantScaleParameter(data=empty[layout.scales], **dims) if every_scale
                else GroupQuantScaleParameter(data=empty[layout.scales], **both)
            ),
        }
        if scheme.has_zeros:
            zeros = {"data": empty[layout.zeros], "packed_dim": 1 - layout.input_dim, **words}
            parameters[layout.zeros] = (
                PackedColumnParameter(**zeros, **dims) if every_scale
                else PackedvLLMParameter(**zeros, **both)
            )
        if layout.group_of_column:
            order = groups_in_order(torch.arange(k, dtype=torch.int32), columns, self.first or 0)
            loader = same_for_all(weight_loader, self.name)
            parameters[layout.group_of_column] = RowvLLMParameter(data=order, input_dim=0, weight_loader=loader)
        if layout.shape:
            parameters[layout.shape] = BasevLLMParameter(
                data=torch.zeros(2, dtype=torch.int64), weight_loader=weight_loader
            )
        for name, parameter in parameters.items():
            # The loader does not miss them: columns are in order then, and the shape is known.
            parameter.optional = name in (layout.group_of_column, layout.shape)
            layer.register_parameter(name, parameter)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Put `layer.packed`, what the kernels read, in the place of the parameters."""
        layout, permutation = self.layout, None
        codes, scales, zeros = read_tensors(
            self.scheme, layout, {name: parameter.data for name, parameter in layer.named_parameters(recurse=False)}
        )
        if layout.group_of_column:
            groups = getattr(layer, layout.group_of_column).data
            if self.first is not None:
                check_order(groups, self.scheme.group, self.first, self.name)
            else:
                permutation = order_of_groups(groups, scales.shape[1], self.name)
                codes = codes if permutation is None else codes[:, permutation]
        if self.first is not None:
            scales, zeros = (groups_of_rank(part, self.scheme.group, self.first, codes.shape[1])
                             for part in (scales, zeros))
        for name in (layout.codes, layout.scales, layout.zeros, layout.group_of_column, layout.shape):
            if name and hasattr(layer, name):
                delattr(layer, name)
        try:
            layer.packed = linear.pack(codes, scales, zeros, self.scheme.bits, permutation)
        except ValueError as error:
            raise ModelError(f"{self.name}: found {error}. Choose another checkpoint of the model.") from None

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        out = linear.packed(x, layer.packed)
        return out if bias is None else out + bias


def check_shard(name: str, scheme: Scheme, k: int, output_sizes: list[int], input_size: int) -> None:
    """Raise ModelError if a rank's k of input_size columns, or its rows, cannot be cut out of a checkpoint."""
    if k % COLUMNS:
        raise ModelError(
            f"{name}: found {k} columns a rank; expected a multiple of {COLUMNS}. Choose another "
            "tensor_parallel_size."
        )
    if scheme.group != WHOLE_ROW:
        check_groups(name, scheme.group, input_size, input_size)
    if scheme.act_order and scheme.group != WHOLE_ROW and k != input_size:
        refuse_act_order(name, f"act-order (desc_act) and {input_size // k} ranks")
    for size in output_sizes:
        if size % scheme.per_word:
            raise ModelError(
                f"{name}: found {size} rows a rank; expected a multiple of {scheme.per_word}, as many as "
                "the checkpoint packs in a word. Choose another tensor_parallel_size."
            )


def refuse_act_order(name: str, found: str) -> NoReturn:
    """Raise ModelError for columns that lie in the order of their activations, on several ranks."""
    raise ModelError(
        f"{name}: found {found}; expected one: each rank's columns would need the scales of all groups. Choose "
        "tensor_parallel_size 1, or a checkpoint without act-order."
    )


def cuts_groups(scheme: Scheme, k: int, input_size: int) -> bool:
    """Return whether a border between ranks of k columns lies within a group."""
    return scheme.group != WHOLE_ROW and k != input_size and k % scheme.group != 0


def groups_of_rank(of_groups: torch.Tensor | None, group: int, first: int, k: int) -> torch.Tensor | None:
    """Of scales or zeros [n, groups] of all columns, those of a rank's k columns from `first` on.

    The rank's groups are the largest that keep both its borders and the checkpoint's: [n, k / gcd(group, k)].
    """
    if of_groups is None:
        return None
    return of_groups[:, torch.arange(first, first + k, math.gcd(group, k), device=of_groups.device) // group]


def check_groups(name: str, group: int, k: int, input_size: int) -> None:
    """Raise ModelError if a rank's k of input_size columns are not whole groups."""
    if k % group:
        raise ModelError(
            f"{name}: found {k} columns a rank ({input_size} over {input_size // k}) in groups of {group}; expected "
            "whole groups on each rank. Choose another tensor_parallel_size."
        )


def empty_tensors(
    scheme: Scheme, layout: Layout, n: int, k: int, groups: int, *before: int
) -> dict[str, torch.Tensor]:
    """Tensors of zeros by name, to load what a checkpoint has for a matrix [n, k] and scales of so many groups.

    `before` are dimensions in front.
    """

    def empty(rows: int, columns: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.zeros(*before, *((rows, columns) if layout.input_dim else (columns, rows)), dtype=dtype)

    along_k, along_n = (k // scheme.per_word, n) if layout.packed_input else (k, n // scheme.per_word)
    tensors = {layout.codes: empty(along_n, along_k), layout.scales: empty(n, groups, torch.float32)}
    if scheme.has_zeros:
        tensors[layout.zeros] = empty(n // scheme.per_word, groups)
    return tensors


def read_tensors(
    scheme: Scheme, layout: Layout, tensors: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Codes, scales and zeros of a matrix [n, k], as linear.pack takes them, out of a checkpoint's tensors."""

    def rows(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if layout.input_dim else tensor.T

    codes = rows(unpack_words(tensors[layout.codes], scheme.bits, layout.codes_dim, layout.order))
    scales, zeros = rows(tensors[layout.scales]), None
    if scheme.has_zeros:
        zeros = rows(unpack_words(tensors[layout.zeros], scheme.bits, 1 - layout.input_dim, layout.order))
        # In more bits than a code has: an offset may lead to 2^bits.
        zeros = zeros.float() + scheme.zero_offset
    return codes, scales, zeros


def unpack_words(words: torch.Tensor, bits: int, dim: int, order: tuple[int, ...] | None) -> torch.Tensor:
    """Codes, uint8, of int32 words [a, b] that are packed along `dim`: that dimension grows by 32 / bits."""
    per_word, mask = 32 // bits, (1 << bits) - 1
    codes = torch.empty(*words.shape[: dim + 1], per_word, *words.shape[dim + 1 :], dtype=torch.uint8,
                        device=words.device)
    for place, member in enumerate(order or range(per_word)):
        codes.select(dim + 1, member).copy_(words >> bits * place & mask)
    return codes.flatten(dim, dim + 1)


def groups_in_order(columns: torch.Tensor, group: int, first: int = 0) -> torch.Tensor:
    """The group of each of a rank's columns, counted from its first group; `first`: its first column among all."""
    return (first % group + columns) // group


def order_of_groups(group_of_column: torch.Tensor, groups: int, name: str) -> torch.Tensor | None:
    """Return the columns in the order of their groups, or None if they have that order.

    Raises ModelError for groups of different sizes.
    """
    columns = len(group_of_column)
    # A rank's groups count from its first.
    own = group_of_column.long() - group_of_column.min()
    if torch.equal(own, groups_in_order(torch.arange(columns, device=own.device), columns // groups)):
        return None
    counts = own.bincount(minlength=groups).tolist()
    if counts != [columns // groups] * groups:
        raise ModelError(
            f"{name}: found groups of {min(counts)} to {max(counts)} columns; expected {groups} of "
            f"{columns // groups}. Choose another checkpoint of the model."
        )
    return torch.argsort(own, stable=True)


def check_order(group_of_column: torch.Tensor, group: int, first: int, name: str) -> None:
    """Raise ModelError if a rank's columns from `first` on are not in the order of their groups."""
    columns = torch.arange(len(group_of_column), device=group_of_column.device)
    if not torch.equal(group_of_column.long() - group_of_column.min(), groups_in_order(columns, group, first)):
        refuse_act_order(name, "act-order (g_idx) and several ranks")


def same_for_all(load: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A loader for a tensor that fused layers share; it refuses a second one that differs."""
    seen: list[torch.Tensor] = []

    def load_once(parameter: torch.nn.Parameter, loaded: torch.Tensor, *shard: Any, **named: Any) -> Any:
        if seen and not torch.equal(seen[0], loaded):
            raise ModelError(
                f"{name}: found different orders of columns (g_idx) in layers that vLLM fuses; expected one. Choose a "
                "checkpoint without act-order."
            )
        seen.append(loaded)
        return load(parameter, loaded, *shard, **named)

    return load_once
