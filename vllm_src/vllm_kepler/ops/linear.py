"""Products with weights that are stored in fewer bits than float32: float16, and codes of 8 or 4 bits.

Activations, arithmetic and results are float32. A code stands for scale · (code - zero), with one scale and one zero
for each `group` neighboring columns of a row.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..checkpoint.limits import COLUMNS, TILE
from ..errors import LibraryError
from .library import library, matrix, pointer, stream_of
from .operator import by_device

# Rows of x that the kernels of few rows take at once: of packed weights more where x stays in registers
# (linear_resident.cuh: a group has at least the columns of four lanes).
MAX_ROWS, RESIDENT_ROWS = 4, 8
RESIDENT_GROUP = 64
# Rows of x up to which kernels unpack the weights; more are multiplied by cuBLAS, with float32 tiles of the weights.
MAX_TILED_ROWS = 512


@dataclass(frozen=True)
class Tile:
    """Rows of x that a block of linear_tiled.cu multiplies at most, and their time.

    Attributes:
        outputs: rows of the weight in a block.
        least: rows whose time a block takes at least; from there on it follows its rows one by one.
        coded, half: the time for so many rows, and that of each further one, with codes and with float16:
            microseconds for a layer of Llama 3 8B on one H200 (2026-12-01), to choose by.
    """

    outputs: int
    least: int
    coded: tuple[float, float]
    half: tuple[float, float]

    def time(self, rows: int, coded: bool) -> float:
        once, row = self.coded if coded else self.half
        return once + row * max(rows - self.least, 0)


# By their rows of x. Those of up to 36: linear_direct.cuh.
TILES = {
    8: Tile(64, 5, (140, 8), (151, 1.3)), 12: Tile(64, 9, (179, 9), (174, 3)),
    16: Tile(64, 13, (221, 8.3), (198, 8.4)), 20: Tile(64, 17, (258, 9.2), (256, 4.7)),
    24: Tile(64, 21, (288, 8.5), (286, 6.5)), 28: Tile(64, 25, (331, 8.7), (337, 6.2)),
    32: Tile(64, 29, (389, 8.9), (388, 3)), 36: Tile(64, 33, (429, 9.2), (428, 6.6)),
    40: Tile(128, 40, (511, 0), (504, 0)), 44: Tile(128, 44, (554, 0), (533, 0)),
    48: Tile(128, 48, (573, 0), (575, 0)), 52: Tile(128, 52, (642, 0), (630, 0)),
    56: Tile(128, 56, (662, 0), (641, 0)), 64: Tile(128, 64, (724, 0), (699, 0)),
    96: Tile(128, 96, (1025, 0), (980, 0)), 128: Tile(128, 128, (1347, 0), (1290, 0)),
}
# The same for the kernels of few rows by the bits of a weight, row by row, and what each further tile of a launch takes
# less than the first.
FEW = {
    4: (45, 58, 82, 82, 109, 126, 147, 147), 8: (66, 74, 95, 96, 114, 129, 153, 153), 16: (123, 127, 135, 136),
}
LAUNCH = 25
# Columns that a block's share of a product has at least.
SHARE = 256
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
    if count > MAX_TILED_ROWS or k % HALVES:
        _by_tiles(out, rows, lambda first, last: weight[first:last].float())
    elif n:
        at = weight.data_ptr()
        _multiply(out, rows, MAX_ROWS, 16, (at, None, None), 1.0, k, lambda to, x_at, count, stream: (
            library().linear_half(to, x_at, at, count, n, k, stream)
        ))
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
    few = RESIDENT_ROWS if weights.group >= RESIDENT_GROUP else MAX_ROWS
    if len(rows) > MAX_TILED_ROWS:
        _by_tiles(out, rows, lambda first, last: unpack_rows(weights, first, last))
    elif weights.n:
        stored = weights.codes.data_ptr(), weights.scales.data_ptr(), pointer(weights.zeros)
        _multiply(out, rows, few, weights.bits, stored, weights.unit, weights.group, lambda to, x_at, count, stream: (
            library().linear_packed(
                to, x_at, *stored, weights.unit, weights.bits, count, weights.n, weights.k, weights.group, stream
            )
        ))
    return out if x.dim() == 2 else out.view(*x.shape[:-1], weights.n)


def _dense(x: torch.Tensor, k: int) -> torch.Tensor:
    """x as [rows, k] without gaps, on 16 bytes."""
    if x.shape[-1] != k:
        raise LibraryError(f"found x {tuple(x.shape)} for a weight of {k} columns")
    rows = matrix(x.contiguous())
    return rows.clone() if rows.data_ptr() % 16 else rows


def outputs_of(n: int, tile: int) -> int:
    """Return how many tiles so many rows of the weight take."""
    return math.ceil(n / TILES[tile].outputs)


@functools.cache
def cut_of(rows: int, bits: int, few: int) -> tuple[float, tuple[tuple[int, int], ...]]:
    """Cut the rows of x so that the product is done soonest.

    Args:
        few: rows that the kernels of few rows take at once; so few go through them anyway.

    Returns:
        What it takes, and its launches: rows, and the rows of a tile; 0 for the kernels of few rows.
    """
    if not rows:
        return 0.0, ()
    if rows <= few:
        return FEW[bits][rows - 1], ((rows, 0),)
    found: list[tuple[float, tuple[tuple[int, int], ...]]] = []
    coded = bits < 16
    for size, tile in TILES.items():
        whole, rest = divmod(rows, size)
        full = whole * (tile.time(size, coded) - LAUNCH) + LAUNCH
        if not rest:
            found.append((full, ((rows, size),)))
            continue
        last = tile.time(rest, coded)
        found.append((full + last - LAUNCH if whole else last, ((rows, size),)))
        if whole:
            more, launches = cut_of(rest, bits, few)
            found.append((full + more, ((rows - rest, size), *launches)))
    return min(found)


@functools.cache
def blocks_of(bits: int, tile: int, device: int) -> int:
    """Return how many blocks of a kernel a GPU holds at once."""
    held = ctypes.c_int()
    with torch.cuda.device(device):
        library().linear_blocks(ctypes.byref(held), bits, tile)
    return held.value


def sums_of(x: torch.Tensor, bits: int, tile: int, tiles: int, k: int) -> tuple[int, torch.Tensor]:
    """Return the blocks that share so many tiles, and room for their sums of parts of them."""
    blocks = max(1, min(blocks_of(bits, tile, x.get_device()), tiles * k // SHARE))
    return blocks, x.new_empty(2 * blocks * tile * TILES[tile].outputs)


def _multiply(
    out: torch.Tensor, x: torch.Tensor, few: int, bits: int, stored: tuple[int, int | None, int | None], unit: float,
    group: int, launch_few: Callable[[int, int, int, int], None],
) -> None:
    """Write out = x · wᵀ, for as many rows as the kernels take.

    Args:
        few: as cut_of has it.
        stored: addresses of w, its scales and its zeros.
        launch_few: launches the kernel of few rows, for out's and x's address, a number of rows and a stream.
    """
    (rows, k), n = x.shape, out.shape[1]
    to, x_at, stream = out.data_ptr(), x.data_ptr(), stream_of(x)
    for count, tile in cut_of(rows, bits, few)[1]:
        if tile:
            blocks, sums = sums_of(x, bits, tile, math.ceil(count / tile) * outputs_of(n, tile), k)
            library().linear_tiled(
                to, sums.data_ptr(), x_at, *stored, unit, bits, count, n, k, group, tile, blocks, stream
            )
        else:
            launch_few(to, x_at, count, stream)
        to, x_at = to + 4 * count * n, x_at + 4 * count * k


def _by_tiles(out: torch.Tensor, x: torch.Tensor, tile: Callable[[int, int], torch.Tensor]) -> None:
    """Write out = x · wᵀ; tile(first, last) returns these rows of w as float32."""
    step = max(1, TILE // x.shape[1])
    for first in range(0, out.shape[1], step):
        last = min(first + step, out.shape[1])
        torch.mm(x, tile(first, last).T, out=out[:, first:last])


half = by_device(half_reference, half_kernel)
packed = by_device(packed_reference, packed_kernel)
