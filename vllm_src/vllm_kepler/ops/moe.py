"""Mixture of experts without Triton: routing, and the experts' feed-forward layers.

    routed(x) = Σ over the chosen experts e of weight_e · (act(x · gate_e) * (x · up_e)) · down_e
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from ..checkpoint.limits import EXPERT_BYTES
from ..errors import LibraryError
from . import linear
from .activation import FUNCTIONS
from .library import ACTIVATIONS, library, matrix, pointer, stream_of
from .operator import by_device

# Matrices of all experts: float32 or float16 [num_experts, n, k], or packed as one of num_experts · n rows.
Experts: TypeAlias = torch.Tensor | linear.Packed

# Rows of a tile, by how many rows an expert has on average, up to which each is the fastest on one H200. Of the kernels
# for few rows, by the bits of a weight; beyond them of the kernels of linear_tiled.cu; and of the kernel for float32.
FEW_TILES = (1, 2, 4)
FEW_ROWS = {16: (0.25, 0.5, 4), 8: (0.5, 1, 10), 4: (0.5, 2, 10)}
MANY_TILES = {8: 8, 24: 24, 96: 32}
LARGEST_TILE = 48
SMALL_TILE, LARGE_TILE = 16, 64
BITS = {torch.float32: 32, torch.float16: 16}


def topk_softmax_reference(logits: torch.Tensor, top_k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the top_k largest of the softmax of each token's logits.

    Args:
        logits: float32 [num_tokens, num_experts].
        renormalize: whether the chosen weights are divided by their sum.

    Returns:
        weights: float32 [num_tokens, top_k], the largest first; experts: int32 of the same shape.
    """
    weights, experts = torch.softmax(logits.float(), dim=-1).topk(top_k, dim=-1)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, experts.int()


def topk_softmax_kernel(logits: torch.Tensor, top_k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """As topk_softmax_reference, on a GPU, for at most 512 experts; the lower expert first among equals."""
    logits = matrix(logits.float().contiguous())
    tokens, num_experts = logits.shape
    weights = logits.new_empty(tokens, top_k)
    experts = logits.new_empty(tokens, top_k, dtype=torch.int32)
    library().topk_softmax(
        weights.data_ptr(), experts.data_ptr(), logits.data_ptr(), tokens, num_experts, top_k, renormalize,
        stream_of(logits),
    )
    return weights, experts


topk_softmax = by_device(topk_softmax_reference, topk_softmax_kernel)


def grouped_topk(
    logits: torch.Tensor,
    top_k: int,
    renormalize: bool,
    num_expert_group: int,
    topk_group: int,
    scoring_func: str,
    correction_bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the top_k experts out of the topk_group best groups (DeepSeek-AI, 2024), as topk_softmax_reference does.

    A group's score is its best expert's; with a correction bias, the sum of its two best. The bias counts in the
    choice, not in the weights.
    """
    scores = torch.softmax(logits.float(), dim=-1) if scoring_func == "softmax" else torch.sigmoid(logits.float())
    choice = scores if correction_bias is None else scores + correction_bias
    by_group = choice.unflatten(-1, (num_expert_group, -1))
    group_scores = by_group.amax(-1) if correction_bias is None else by_group.topk(2, dim=-1).values.sum(-1)
    hidden = torch.ones_like(group_scores, dtype=torch.bool)
    hidden.scatter_(1, group_scores.topk(topk_group, dim=-1).indices, False)
    experts = by_group.masked_fill(hidden[..., None], -torch.inf).flatten(1).topk(top_k, dim=-1).indices
    weights = scores.gather(1, experts)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, experts.int()


def expert_of(matrices: Experts, expert: int, num_experts: int, dtype: torch.dtype) -> torch.Tensor:
    """Return one expert's matrix [n, k]."""
    if isinstance(matrices, torch.Tensor):
        return matrices[expert].to(dtype)
    n = matrices.n // num_experts
    return linear.unpack_rows(matrices, expert * n, (expert + 1) * n).to(dtype)


def experts_reference(
    x: torch.Tensor,
    gate_up: Experts,
    down: Experts,
    weights: torch.Tensor,
    experts: torch.Tensor,
    activation: str,
) -> torch.Tensor:
    """Compute the chosen experts' outputs, weighted and summed.

    Args:
        x: [num_tokens, hidden_size].
        gate_up: matrices [2 · intermediate_size, hidden_size]: the gate's rows, then the others.
        down: matrices [hidden_size, intermediate_size].
        weights, experts: [num_tokens, top_k], as topk_softmax gives them.
        activation: "silu" or "gelu".

    Returns:
        [num_tokens, hidden_size].
    """
    out = torch.zeros_like(x)
    num_experts = count_of(down, x.shape[1])
    for expert in experts.unique().tolist():
        token, choice = (experts == expert).nonzero(as_tuple=True)
        gate, up = (x[token] @ expert_of(gate_up, expert, num_experts, x.dtype).T).chunk(2, dim=-1)
        inner = FUNCTIONS[activation](gate) * up
        product = inner @ expert_of(down, expert, num_experts, x.dtype).T
        out.index_add_(0, token, product * weights[token, choice, None])
    return out


def count_of(matrices: Experts, n: int) -> int:
    """Return the number of matrices of n rows."""
    return len(matrices) if isinstance(matrices, torch.Tensor) else matrices.n // n


def experts_kernel(
    x: torch.Tensor,
    gate_up: Experts,
    down: Experts,
    weights: torch.Tensor,
    experts: torch.Tensor,
    activation: str,
) -> torch.Tensor:
    """As experts_reference, x and weights float32, on a GPU; both sizes multiples of 4."""
    top_k, num_experts = experts.shape[1], count_of(down, x.shape[1])
    gate_up, down = stored(gate_up, num_experts), stored(down, num_experts)
    # Gate and up, their product and the output of each row: 3 · intermediate_size + hidden_size.
    row_bytes = x.element_size() * top_k * (gate_up.n + down.k + down.n)
    at_once = max(1, EXPERT_BYTES // row_bytes)
    some = [slice(start, start + at_once) for start in range(0, len(x), at_once)]
    parts = [_experts_of_some(x[rows], weights[rows], experts[rows], gate_up, down, activation) for rows in some]
    # The usual one part needs no copy; no part at all is an empty answer.
    return parts[0] if len(parts) == 1 else torch.cat([x[:0], *parts])


@dataclass(frozen=True)
class Stored:
    """Matrices of all experts as the launchers take them.

    Attributes:
        count: of the matrices.
        n, k: rows and columns of one.
        bits: 32, 16, 8 or 4.
        arguments: the launchers' arguments from the weights to the group.
    """

    count: int
    n: int
    k: int
    bits: int
    arguments: tuple[Any, ...]


def stored(matrices: Experts, count: int) -> Stored:
    """Describe matrices for the launchers. Raises LibraryError for a dtype or strides that the kernels do not take."""
    if isinstance(matrices, linear.Packed):
        arguments = (
            matrices.codes.data_ptr(), matrices.scales.data_ptr(), pointer(matrices.zeros), matrices.unit,
            matrices.bits, matrices.group,
        )
        return Stored(count, matrices.n // count, matrices.k, matrices.bits, arguments)
    if matrices.dtype not in BITS or not matrices.is_contiguous():
        raise LibraryError(
            f"found experts of {matrices.dtype}, strides {matrices.stride()}; expected dense float32 or float16"
        )
    bits = BITS[matrices.dtype]
    _, n, k = matrices.shape
    return Stored(count, n, k, bits, (matrices.data_ptr(), None, None, 1.0, bits, 0))


def in_tiles(matrices: Stored) -> bool:
    """Return whether the kernels of ops.linear for many rows take the matrices."""
    return matrices.bits < 32 and matrices.k % linear.HALVES == 0


def tile_of(matrices: Stored, num_rows: int) -> int:
    """Return the rows of a tile for so many rows of all experts together."""
    rows = num_rows / matrices.count
    if not in_tiles(matrices):
        return LARGE_TILE if rows >= SMALL_TILE else SMALL_TILE
    steps = zip((*FEW_ROWS[matrices.bits], *MANY_TILES), (*FEW_TILES, *MANY_TILES.values()), strict=True)
    return next((tile for most, tile in steps if rows <= most), LARGEST_TILE)


@dataclass(frozen=True)
class Order:
    """Rows sorted by expert into tiles, or for tiles of one row as they are.

    Attributes:
        tile: rows of a tile.
        tensors: sorted_rows, tile_experts and num_sorted of csrc/kepler.h.
    """

    tile: int
    tensors: tuple[torch.Tensor | None, ...]


def order_of(experts: torch.Tensor, num_experts: int, tile: int) -> Order:
    """Sort the rows of experts, int32 [num_tokens, top_k] without gaps."""
    if tile == 1:
        return Order(tile, (None, experts, None))
    lib, num_rows = library(), experts.numel()
    capacity = lib.moe_capacity(num_rows, num_experts, tile)
    tensors = tuple(experts.new_empty(count) for count in (capacity, capacity // tile, 1))
    lib.moe_sort(
        *(tensor.data_ptr() for tensor in tensors), experts.data_ptr(), num_rows, num_experts, tile, stream_of(experts)
    )
    return Order(tile, tensors)


def product(
    x: torch.Tensor, matrices: Stored, order: Order, num_rows: int, row_scales: torch.Tensor | None = None
) -> torch.Tensor:
    """Multiply rows of x by experts' matrices: float32 [num_rows, n]; a row of x is for num_rows / len(x) rows."""
    out, lib = x.new_empty(num_rows, matrices.n), library()
    tile, count = order.tile, matrices.count
    sizes = num_rows, count, matrices.n, matrices.k, num_rows // len(x), tile
    rows = pointer(row_scales), *map(pointer, order.tensors)
    if not in_tiles(matrices):
        at = matrices.arguments[0]
        lib.moe_product(out.data_ptr(), x.data_ptr(), at, matrices.bits, *rows, *sizes, stream_of(x))
    elif tile in FEW_TILES:
        lib.moe_linear(out.data_ptr(), x.data_ptr(), *matrices.arguments, *rows, *sizes, stream_of(x))
    else:
        tiles = lib.moe_capacity(num_rows, count, tile) // tile * linear.outputs_of(matrices.n, tile)
        blocks, sums = linear.sums_of(x, matrices.bits, tile, tiles, matrices.k)
        lib.moe_tiled(
            out.data_ptr(), sums.data_ptr(), x.data_ptr(), *matrices.arguments, *rows, *sizes, blocks, stream_of(x)
        )
    return out


def _experts_of_some(
    x: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    gate_up: Stored,
    down: Stored,
    activation: str,
) -> torch.Tensor:
    x, weights, experts = matrix(x.contiguous()), weights.contiguous(), experts.contiguous()
    num_rows = experts.numel()
    orders: dict[int, Order] = {}

    def multiply(by: torch.Tensor, matrices: Stored, row_scales: torch.Tensor | None = None) -> torch.Tensor:
        tile = tile_of(matrices, num_rows)
        if tile not in orders:
            orders[tile] = order_of(experts, matrices.count, tile)
        return product(by, matrices, orders[tile], num_rows, row_scales)

    both, inner = multiply(x, gate_up), x.new_empty(num_rows, down.k)
    library().activation_and_mul(
        ACTIVATIONS[activation], inner.data_ptr(), both.data_ptr(), num_rows, down.k, down.k, gate_up.n, stream_of(x)
    )
    return multiply(inner, down, weights).view(len(x), -1, down.n).sum(1)


experts_forward = by_device(experts_reference, experts_kernel)
