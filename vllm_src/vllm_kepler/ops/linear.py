"""Products with weights that are stored in fewer bits than float32: float16, and codes of 8 or 4 bits.

Activations, arithmetic and results are float32. A code stands for scale · (code - zero), with one scale and one zero
for each `group` neighboring columns of a row.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..checkpoint.limits import COLUMNS, TILE
from ..errors import LibraryError
from .library import library, matrix, pointer, stream_of
from .operator import by_device

# Rows of x up to which the kernels of few rows are faster than the kernel that cuts the product into tiles.
MAX_ROWS = 4
# Up to 8 rows packed weights go through those twice, where x stays in registers (linear_resident.cuh: a group has at
# least the columns of four lanes): a quarter fewer instructions for sm_37. An H200 takes up to 16 % longer for 8 rows.
TWICE, RESIDENT_GROUP_BITS = 2 * MAX_ROWS, 4 * 128
# Rows of x up to which that kernel is faster than float32 tiles of the weights and cuBLAS, which take the rest.
MAX_TILED_ROWS = 512
@dataclass(frozen=True)
class Tile:
    """How those kernels cut a product: a block has so many rows of x at most.

    Attributes:
        outputs: rows of the weight in a block.
        resident: blocks that a multiprocessor holds.
        least: rows of x whose time a block takes at least; from there on it follows its rows one by one.
        coded, half: what a block takes for each column and output, whatever its rows of x are, and what for each of
            them; with codes and with float16, on one H200 (2026-11-30).
    """

    outputs: int
    resident: int
    least: int
    coded: tuple[float, float]
    half: tuple[float, float]

    def time(self, rows: int, coded: bool) -> float:
        """Of one column of a block with so many rows of x."""
        once, row = self.coded if coded else self.half
        return self.outputs * (once + row * max(rows, self.least))


# By their rows of x. Those of up to 27: linear_direct.cuh.
TILES = {
    8: Tile(64, 4, 5, (86, 9.6), (141, 3.0)), 12: Tile(64, 3, 9, (92, 10.5), (90, 9.0)),
    16: Tile(64, 3, 13, (85, 10.7), (76, 10.3)), 20: Tile(64, 2, 17, (87, 11.7), (67, 11.7)),
    24: Tile(64, 2, 21, (84, 11.7), (50, 12.3)), 27: Tile(64, 2, 24, (63, 12.6), (81, 11.3)),
    32: Tile(128, 6, 32, (0, 13.1), (0, 12.2)), 56: Tile(128, 4, 33, (50, 13.1), (-48, 15.2)),
    64: Tile(128, 3, 64, (0, 11.4), (0, 11.0)), 128: Tile(128, 2, 128, (0, 10.2), (0, 10.0)),
}
# Columns that a part of the sums has at least, and those whose time its begin and its end take; parts at most.
PART, PART_COST, MAX_PARTS = 256, 64, 32
# Halves in 16 bytes: rows of float16 of another length go through the tiles.
HALVES = 8


@dataclass(frozen=True)
class Packed:
    """A weight matrix [n, k] of codes, as the kernels read it.

    Attributes:
        bits: 4 or 8.
        group: columns that share a scale: a power of two from 32 on, or k.
        codes: int32 [n, k · bits / 32], on 16 bytes; the first column of a word in its lowest bits.
        scales: float16 [n, k / group], times `unit`, a power of two that puts the largest near float16's end: scales
            that come as float16 stay exact, and so do those of bfloat16 down to 2⁻²⁸ of the largest.
        zeros: float16 [n, k / group]; None where each is the middle, 2 ** (bits - 1).
        permutation: int32 [k]: column j is for column permutation[j] of x; None: they are in x's order.
    """

    bits: int
    n: int
    k: int
    group: int
    codes: torch.Tensor
    scales: torch.Tensor
    unit: float
    zeros: torch.Tensor | None
    permutation: torch.Tensor | None


def pack(
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bits: int,
    permutation: torch.Tensor | None = None,
) -> Packed:
    """Pack codes in the kernels' layout, on their device.

    Args:
        codes: uint8 [n, k], each below 2 ** bits; columns in the order of their groups.
        scales: floating point [n, k / group], kept in float16.
        zeros: whole numbers from 0 to 2 ** bits, of the scales' shape; None: all in the middle.
        permutation: if columns were sorted by their groups (act-order): column j of `codes` is for column
            permutation[j] of x.

    Raises ValueError for sizes or numbers that the kernels do not take.
    """
    if bits not in (4, 8):
        raise ValueError(f"weights of {bits} bits: expected 4 or 8")
    n, k = codes.shape
    groups = scales.shape[-1]
    if k % COLUMNS:
        raise ValueError(f"packed weights with {k} columns: expected a multiple of {COLUMNS}")
    group = k // groups if groups and k % groups == 0 else 0
    if group != k and (group < COLUMNS or group & (group - 1)):
        raise ValueError(
            f"{groups} scales for {k} columns: expected one for each group of 32, 64, 128, ... columns, or one a row"
        )
    for name, tensor in (("scales", scales), ("zeros", zeros)):
        if tensor is not None and tensor.shape != (n, groups):
            raise ValueError(f"{name} {tuple(tensor.shape)} for codes {(n, k)}: expected {(n, groups)}")
    if codes.dtype is not torch.uint8 or (codes.numel() and int(codes.max()) >> bits):
        raise ValueError(f"codes of {codes.dtype}, up to {codes.max()}: expected uint8 below {1 << bits}")
    if permutation is not None and not torch.equal(
        permutation.long().sort().values, torch.arange(k, device=permutation.device)
    ):
        raise ValueError(f"a permutation of {permutation.numel()} columns: expected each of 0 to {k - 1} once")
    scales = scales.float()
    largest = float(scales.abs().max()) if scales.numel() else 0.0
    if not largest < float("inf"):
        raise ValueError(f"scales up to {largest}: expected finite numbers")
    unit = 2.0 ** (torch.frexp(torch.tensor(largest)).exponent.item() - 15) if largest else 1.0
    if zeros is not None:
        whole = zeros.float()
        if not ((whole == whole.round()) & (whole >= 0) & (whole <= 1 << bits)).all():
            raise ValueError(f"zeros of codes: expected whole numbers from 0 to {1 << bits}")
        zeros = None if (whole == 1 << bits - 1).all() else whole.half().contiguous()
    if bits == 4:
        codes = codes[:, ::2] | codes[:, 1::2] << 4
    return Packed(
        bits, n, k, group, codes.contiguous().view(torch.int32), (scales / unit).half().contiguous(), unit, zeros,
        None if permutation is None else permutation.int().contiguous(),
    )


def unpack(weights: Packed) -> torch.Tensor:
    """Return the weights that the codes stand for: float32 [n, k], columns in x's order."""
    stored = unpack_rows(weights, 0, weights.n)
    if weights.permutation is None:
        return stored
    return torch.empty_like(stored).index_copy_(1, weights.permutation.long(), stored)


def _rows_reference(codes: torch.Tensor, weights: Packed, first: int, last: int) -> torch.Tensor:
    """As unpack_rows."""
    raw = codes[first:last].contiguous().view(torch.uint8)
    if weights.bits == 4:
        raw = torch.stack((raw & 15, raw >> 4), -1).flatten(1)
    values = raw.float().unflatten(1, (-1, weights.group))
    middle = 1 << weights.bits - 1
    zeros = middle if weights.zeros is None else weights.zeros[first:last].float()[..., None]
    return ((values - zeros) * (weights.scales[first:last].float()[..., None] * weights.unit)).flatten(1)


def _rows_kernel(codes: torch.Tensor, weights: Packed, first: int, last: int) -> torch.Tensor:
    """As unpack_rows, on a GPU."""
    out = torch.empty(last - first, weights.k, device=codes.device)
    if out.numel():
        zeros = None if weights.zeros is None else weights.zeros[first:]
        library().linear_unpack(
            out.data_ptr(), codes[first:].data_ptr(), weights.scales[first:].data_ptr(), pointer(zeros),
            weights.unit, weights.bits, last - first, weights.k, weights.group, stream_of(codes),
        )
    return out


_rows = by_device(_rows_reference, _rows_kernel)


def unpack_rows(weights: Packed, first: int, last: int) -> torch.Tensor:
    """Rows `first` to `last` (exclusive) as float32, columns in the stored order."""
    return _rows(weights.codes, weights, first, last)


def half_reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x · weightᵀ.

    Args:
        x: float32 [..., k].
        weight: float16 [n, k].

    Returns:
        float32 [..., n].
    """
    return x @ weight.float().T


def half_kernel(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As half_reference, on a GPU."""
    n, k = weight.shape
    if weight.dtype is not torch.float16 or not weight.is_contiguous():
        raise LibraryError(f"found a weight of {weight.dtype}, strides {weight.stride()}; expected dense torch.float16")
    rows = _dense(x, k)
    count = rows.shape[0]
    out = rows.new_empty(count, n)
    if MAX_ROWS < count <= MAX_TILED_ROWS and k % HALVES == 0 and n:
        _tiled(out, rows, weight.data_ptr(), None, None, 1.0, 16, k)
    elif count > MAX_ROWS or k % HALVES:
        _by_tiles(out, rows, lambda first, last: weight[first:last].float())
    elif count and n:
        library().linear_half(out.data_ptr(), rows.data_ptr(), weight.data_ptr(), count, n, k, stream_of(rows))
    return out if x.dim() == 2 else out.view(*x.shape[:-1], n)


def packed_reference(x: torch.Tensor, weights: Packed) -> torch.Tensor:
    """x · unpack(weights)ᵀ: float32 [..., n] for x float32 [..., k]."""
    return x @ unpack(weights).T


def packed_kernel(x: torch.Tensor, weights: Packed) -> torch.Tensor:
    """As packed_reference, on a GPU."""
    rows = _dense(x, weights.k)
    if weights.permutation is not None:
        rows = rows.index_select(1, weights.permutation)
    out = rows.new_empty(rows.shape[0], weights.n)
    few = TWICE if weights.group * weights.bits >= RESIDENT_GROUP_BITS else MAX_ROWS
    count = rows.shape[0]
    stored = weights.codes.data_ptr(), weights.scales.data_ptr(), pointer(weights.zeros)
    if few < count <= MAX_TILED_ROWS and weights.n:
        _tiled(out, rows, *stored, weights.unit, weights.bits, weights.group)
    elif count > few:
        _by_tiles(out, rows, lambda first, last: unpack_rows(weights, first, last))
    elif weights.n:
        to, x_at, stream = out.data_ptr(), rows.data_ptr(), stream_of(rows)
        for first in range(0, count, MAX_ROWS):
            library().linear_packed(
                to + 4 * first * weights.n, x_at + 4 * first * weights.k, *stored, weights.unit, weights.bits,
                min(MAX_ROWS, count - first), weights.n, weights.k, weights.group, stream,
            )
    return out if x.dim() == 2 else out.view(*x.shape[:-1], weights.n)


def _dense(x: torch.Tensor, k: int) -> torch.Tensor:
    """x as [rows, k] without gaps, on 16 bytes."""
    if x.shape[-1] != k:
        raise LibraryError(f"found x {tuple(x.shape)} for a weight of {k} columns")
    rows = matrix(x.contiguous())
    return rows.clone() if rows.data_ptr() % 16 else rows


@functools.cache
def _multiprocessors(device: int) -> int:
    """Return how many a GPU has."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def time_of(cut: tuple[int, int], rows: int, n: int, k: int, multiprocessors: int, coded: bool) -> float:
    """Return what a product takes with a tile and parts of the columns, in no unit."""
    tile, (whole, rest) = TILES[cut[0]], divmod(rows, cut[0])
    blocks = whole + (rest > 0)
    rounds = math.ceil(math.ceil(n / tile.outputs) * blocks * cut[1] / (multiprocessors * tile.resident))
    each = (whole * tile.time(cut[0], coded) + (tile.time(rest, coded) if rest else 0.0)) / blocks
    return rounds * (k / cut[1] + PART_COST) * tile.resident * each


@functools.cache
def cut_of(rows: int, n: int, k: int, multiprocessors: int, coded: bool) -> tuple[int, int]:
    """Return the rows of x in a block, and the parts of the columns, with which the GPU is done soonest."""
    # At most half of a tile stays empty, if there is a smaller one.
    tiles = [tile for tile in TILES if tile < 2 * max(rows, min(TILES))]
    cuts = [(tile, parts) for tile in tiles for parts in range(1, max(1, min(MAX_PARTS, k // PART)) + 1)]
    return min(cuts, key=lambda cut: time_of(cut, rows, n, k, multiprocessors, coded))


def _tiled(
    out: torch.Tensor, x: torch.Tensor, weight: int, scales: int | None, zeros: int | None, unit: float, bits: int,
    group: int,
) -> None:
    """Write out = x · wᵀ by the kernel that unpacks w in shared memory."""
    (rows, k), n = x.shape, out.shape[1]
    tile, parts = cut_of(rows, n, k, _multiprocessors(x.get_device()), bits < 16)
    sums = out if parts == 1 else out.new_empty(parts, rows, n)
    library().linear_tiled(
        sums.data_ptr(), x.data_ptr(), weight, scales, zeros, unit, bits, rows, n, k, group, tile, parts, stream_of(x)
    )
    if parts > 1:
        torch.sum(sums, 0, out=out)


def _by_tiles(out: torch.Tensor, x: torch.Tensor, tile: Callable[[int, int], torch.Tensor]) -> None:
    """Write out = x · wᵀ; tile(first, last) returns these rows of w as float32."""
    step = max(1, TILE // x.shape[1])
    for first in range(0, out.shape[1], step):
        last = min(first + step, out.shape[1])
        torch.mm(x, tile(first, last).T, out=out[:, first:last])


half = by_device(half_reference, half_kernel)
packed = by_device(packed_reference, packed_kernel)
