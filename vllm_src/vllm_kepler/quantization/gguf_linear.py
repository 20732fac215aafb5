"""Linear layers of GGUF files: blocks as the file has them, repacked for the port's kernels as a layer is complete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import gguf
import torch
from gguf import GGMLQuantizationType as Type
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers import linear as upstream
from vllm.model_executor.parameter import BasevLLMParameter

from ..checkpoint import gguf as reader
from ..errors import ModelError
from ..ops import linear
from .half import refuse_overflow
from .packed import check_groups, loading_by_parameters

# Bits of the codes in which a type is served; the other types are served as floats.
BITS = {Type[name]: bits for name, bits in reader.BITS.items()}
# Columns that share a scale and an offset.
GROUP = reader.GROUP
LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Codes:
    """Rows of codes.

    Attributes:
        bits: 4 or 8.
        codes: uint8 [n, k].
        scales: float32 [n, k / 32].
        offsets: float32 [n, k / 32]: value = scale · code - offset; None: value = scale · (code - 2^(bits - 1)).
    """

    bits: int
    codes: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None


def unpack_blocks(rows: torch.Tensor, kind: Type) -> Codes:
    """The codes of rows of a file, uint8 [n, bytes], on the device on which they come.

    ggml's ggml-quants.h and its dequantize_row functions define the blocks.
    """
    size, nbytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rows.unflatten(1, (-1, nbytes))
    scale, offset, used = halves(blocks[..., :2]), None, 2
    if kind in (Type.Q4_K, Type.Q5_K):
        scales, mins = scales_and_mins(blocks[..., 4:16])
        scale, offset, used = scale * scales, halves(blocks[..., 2:4]) * mins, 16
    elif kind in (Type.Q4_1, Type.Q5_1):
        offset, used = -halves(blocks[..., 2:4]), 4
    if kind == Type.Q8_0:
        # Signed bytes.
        codes = blocks[..., used:] ^ 128
    else:
        # The low nibbles of a run of bytes are its first columns, the high ones the next as many.
        run = min(GROUP, size // 2)
        nibbles = blocks[..., nbytes - size // 2 :].unflatten(-1, (-1, run))
        codes = torch.stack((nibbles & 15, nibbles >> 4), -2).flatten(-3)
        fifth = blocks[..., used : nbytes - size // 2]
        if kind == Type.Q5_K:
            codes |= torch.stack([fifth >> bit & 1 for bit in range(8)], -2).flatten(-2) << 4
        elif kind in (Type.Q5_0, Type.Q5_1):
            codes |= torch.stack([fifth >> bit & 1 for bit in range(8)], -1).flatten(-2) << 4
        if kind == Type.Q5_0:
            # Its zero, 16, becomes the middle of 8 bits.
            codes += 112
    return Codes(BITS[kind], codes.flatten(1), scale.flatten(1), None if offset is None else offset.flatten(1))


def halves(data: torch.Tensor) -> torch.Tensor:
    """float32 [..., 1] of the two bytes of a float16 in uint8 [..., 2]."""
    return data.contiguous().view(torch.float16).float()


def scales_and_mins(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The 8 scales and the 8 minima, of 6 bits, in the 12 bytes of a block of 256 columns."""
    first, second, third = data.unflatten(-1, (3, 4)).unbind(-2)
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), -1)
    mins = torch.cat((second & 63, third >> 4 | second >> 6 << 4), -1)
    return scales, mins


def pack(codes: Codes) -> linear.Packed:
    """The codes for the kernels, which keep scale and zero = offset / scale in float16.

    Scales that the file has as float16 stay exact. The product of Q4_K's and Q5_K's two scales, and every zero that
    comes of an offset, are rounded: a value by at most 2⁻¹¹ · (scale · code + |offset|).
    """
    if codes.offsets is None:
        return linear.pack(codes.codes, codes.scales, None, codes.bits)
    scales, offsets, whole = codes.scales, codes.offsets, codes.codes
    # Groups in which codes are nothing beside the offset: scale · (code - zero) = offset · (0 - 1).
    flat = offsets.abs() > LARGEST * scales.abs()
    if flat.any():
        scales = torch.where(flat, offsets, scales)
        whole = whole.unflatten(1, (-1, GROUP)).masked_fill(flat[..., None], 0).flatten(1)
    packed = linear.pack(whole, scales, None, codes.bits)
    # By the scale as it is kept: its rounding does not move the offset.
    kept = packed.scales.float() * packed.unit
    zeros = torch.where(kept == 0, 0.0, offsets / kept).clamp(-LARGEST, LARGEST)
    return replace(packed, zeros=zeros.half().contiguous())


@dataclass
class Assembly:
    """A rank's share of a layer, which comes part by part and is packed with the last of them.

    Attributes:
        name: of the layer.
        kinds: how the file has each part.
        sizes: rows of each part on this rank.
        columns: those of this rank.
        all_columns: those of the file.
        half: whether floats are stored as float16; else float32.
        parts: what has come.
        pieces: what the layer multiplies with, in the order of its rows; None until all parts have come.
    """

    name: str
    kinds: Sequence[Type]
    sizes: Sequence[int]
    columns: int
    all_columns: int
    half: bool
    parts: dict[int, Codes | torch.Tensor] = field(default_factory=dict)
    pieces: list[linear.Packed | torch.Tensor] | None = None

    def take(
        self, part: int, rows: torch.Tensor, place: int, places: int, column_place: int, device: torch.device
    ) -> None:
        """Keep one of `places` equal shares of a part's rows, and of these the columns of one rank.

        Raises ModelError for a tensor of another shape than config.json gives it.
        """
        size = self.sizes[part]
        check_shape(rows, self.kinds[part], size * places, self.all_columns)
        own = rows.narrow(0, place * size, size)
        first = column_place * self.columns
        self.parts[part] = columns_of(own, self.kinds[part], first, first + self.columns, self.half, self.name, device)
        if len(self.parts) == len(self.kinds):
            self.pieces = join([self.parts[index] for index in range(len(self.kinds))])
            self.parts.clear()


def check_shape(rows: torch.Tensor, kind: Type, expected_rows: int, expected_columns: int) -> None:
    """Raise ModelError for a matrix of another shape than config.json gives it."""
    block_columns, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    found = (len(rows), rows[0].numel() * rows.element_size() * block_columns // block_bytes)
    if found != (expected_rows, expected_columns):
        raise ModelError(
            f"found {found[0]} rows of {found[1]} columns; expected {expected_rows} of {expected_columns}, as "
            "config.json says"
        )


def columns_of(
    rows: torch.Tensor, kind: Type, first: int, last: int, half: bool, name: str, device: torch.device
) -> Codes | torch.Tensor:
    """Some columns of rows of a file, as codes if there are kernels for them, else as floats."""
    if kind in BITS:
        codes = unpack_blocks(rows.to(device), kind)
        groups = slice(first // GROUP, last // GROUP)
        offsets = None if codes.offsets is None else codes.offsets[:, groups]
        return Codes(codes.bits, codes.codes[:, first:last], codes.scales[:, groups], offsets)
    values = torch.from_numpy(gguf.dequantize(rows.numpy(), kind))[:, first:last]
    if half:
        refuse_overflow(values, name)
    return values.to(device, torch.float16 if half else torch.float32)


class GgufParameter(BasevLLMParameter):
    """Hands what upstream's layers load to its assembly; it has no elements of its own."""

    # For parts that come in one tensor.
    output_dim = 0

    def __init__(self, data: torch.Tensor, assembly: Assembly, weight_loader: Callable[..., Any]) -> None:
        super().__init__(data, weight_loader)
        self.assembly = assembly

    def load_column_parallel_weight(self, loaded_weight: torch.Tensor) -> None:
        self._take(0, loaded_weight, get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size())

    def load_row_parallel_weight(self, loaded_weight: torch.Tensor) -> None:
        self._take(0, loaded_weight, 0, 1, get_tensor_model_parallel_rank())

    def load_merged_column_weight(self, loaded_weight: torch.Tensor, *, shard_id: int, **named: Any) -> None:
        self._take(shard_id, loaded_weight, get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size())

    def load_qkv_weight(self, loaded_weight: torch.Tensor, *, shard_id: str, num_heads: int, **named: Any) -> None:
        # num_heads: ranks that share a head of keys and values.
        share = 1 if shard_id == "q" else num_heads
        self._take(
            "qkv".index(shard_id), loaded_weight, get_tensor_model_parallel_rank() // share,
            get_tensor_model_parallel_world_size() // share,
        )

    def _take(self, part: int, rows: torch.Tensor, place: int, places: int, column_place: int = 0) -> None:
        self.assembly.take(part, rows, place, places, column_place, self.device)


def join(parts: Sequence[Codes | torch.Tensor]) -> list[linear.Packed | torch.Tensor]:
    """Pieces of a layer: neighboring parts that are stored alike are one."""
    return [join_alike(list(group)) for _, group in groupby(parts, form)]


def form(part: Codes | torch.Tensor) -> tuple[int, bool]:
    """How a part is stored; parts of one form can be one matrix."""
    return (part.bits, part.offsets is None) if isinstance(part, Codes) else (0, False)


def alike(parts: Sequence[Codes | torch.Tensor], half: bool, name: str) -> Sequence[Codes | torch.Tensor]:
    """Parts in one form that holds the numbers of all: codes of the most bits, or floats where one part has these."""
    if len(forms := {form(part) for part in parts}) == 1:
        return parts
    if any(isinstance(part, torch.Tensor) for part in parts):
        return [part if isinstance(part, torch.Tensor) else floats_of(part, half, name) for part in parts]
    bits, with_offsets = max(bits for bits, _ in forms), not all(symmetric for _, symmetric in forms)
    return [widened(part, bits, with_offsets) for part in parts if isinstance(part, Codes)]


def widened(part: Codes, bits: int, with_offsets: bool) -> Codes:
    """The same numbers as codes of `bits`."""
    if not with_offsets:
        # The zero is in the middle.
        return Codes(bits, part.codes + ((1 << bits - 1) - (1 << part.bits - 1)), part.scales, None)
    offsets = part.scales * (1 << part.bits - 1) if part.offsets is None else part.offsets
    return Codes(bits, part.codes, part.scales, offsets)


def floats_of(part: Codes, half: bool, name: str) -> torch.Tensor:
    """The numbers that codes stand for, as a matrix without codes is stored. Raises ModelError as refuse_overflow."""
    exact = widened(part, part.bits, True)
    assert exact.offsets is not None
    groups = exact.codes.unflatten(1, (-1, GROUP))
    values = (groups * exact.scales[..., None] - exact.offsets[..., None]).flatten(1)
    if half:
        refuse_overflow(values, name)
    return values.half() if half else values


def join_alike(parts: Sequence[Any]) -> linear.Packed | torch.Tensor:
    """Parts of one form, one above the other."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(list(parts))
    offsets = [part.offsets for part in parts]
    return pack(Codes(
        parts[0].bits, torch.cat([part.codes for part in parts]), torch.cat([part.scales for part in parts]),
        None if offsets[0] is None else torch.cat(offsets),
    ))


@loading_by_parameters
class GgufLinearMethod(upstream.LinearMethodBase):
    """A linear layer of a GGUF file, of one tensor of it or of several that vLLM fuses.

    half: whether floats are stored as float16.
    """

    def __init__(self, half: bool) -> None:
        self.half = half

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
        """The parameter that takes what is loaded, once set_types has named it."""
        assembly = Assembly("", [], output_partition_sizes, input_size_per_partition, input_size, self.half)
        weight = GgufParameter(torch.empty(0), assembly=assembly, weight_loader=weight_loader)
        layer.register_parameter("weight", weight)

    def set_types(self, layer: torch.nn.Module, name: str, kinds: Sequence[Type]) -> None:
        """Say how the file has each part of a layer, or all of them in one.

        Raises ModelError for a shard that cannot be cut out of the file.
        """
        assembly = layer.weight.assembly
        assembly.name, assembly.kinds = name, list(kinds) * len(assembly.sizes) if len(kinds) == 1 else kinds
        if any(kind in BITS for kind in kinds):
            check_groups(name, GROUP, assembly.columns, assembly.all_columns)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Put `layer.pieces`, what it multiplies with, in the place of the parameter.

        Raises ModelError if a part has not come.
        """
        pieces = layer.weight.assembly.pieces
        if pieces is None:
            raise ModelError(
                f"{layer.weight.assembly.name}: found no weights for a part of it; expected all. Fetch the model again."
            )
        del layer.weight
        layer.pieces = pieces

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        products = [product(x, piece) for piece in layer.pieces]
        out = products[0] if len(products) == 1 else torch.cat(products, -1)
        return out if bias is None else out + bias


def product(x: torch.Tensor, piece: linear.Packed | torch.Tensor) -> torch.Tensor:
    """x · pieceᵀ in float32."""
    if isinstance(piece, linear.Packed):
        return linear.packed(x, piece)
    return linear.half(x, piece) if piece.dtype is torch.float16 else torch.nn.functional.linear(x, piece)
