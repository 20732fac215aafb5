"""Attention over the paged cache: a reference in plain torch and bounded memory, and the kernels.

Formula, for a query at position p and the keys j that it may see:
    score_j = cap(scale · q·k_j) + slope · (j - p),   cap(s) = c · tanh(s / c) with a soft-cap c
    out = Σ softmax(score)_j · v_j
A query sees j ≤ p (causal) and, with a window w, j > p - w.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch

from .cache import halves
from .library import DTYPES, library, pointer, stream_of
from .operator import by_device

# Largest matrix of scores that is made at once, in elements (64 MiB of float32).
MAX_SCORES = 1 << 24


@dataclass(frozen=True)
class AttentionSpec:
    """Form of one layer's attention.

    Attributes:
        scale: factor of q·k.
        window: number of last positions that a query sees, itself included; None for all.
        soft_cap: bound of a score (Gemma 2); None for none.
        alibi_slopes: float32 [num_heads] (Press et al., 2021), on the device of the queries; None for none.
        causal: False for encoders: every query sees every key.
    """

    scale: float
    window: int | None = None
    soft_cap: float | None = None
    alibi_slopes: torch.Tensor | None = None
    causal: bool = True


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_positions: torch.Tensor,
    key_positions: torch.Tensor,
    spec: AttentionSpec,
) -> torch.Tensor:
    """Compute the attention of a batch of queries over keys of known positions.

    Args:
        query: [batch, num_heads, num_queries, head_size].
        key, value: [batch, num_kv_heads, num_keys, head_size]; num_heads is a multiple of num_kv_heads.
        query_positions: int64 [batch, num_queries].
        key_positions: int64 [batch, num_keys]; -1 for a slot that holds nothing.

    Returns:
        [batch, num_heads, num_queries, head_size] in the dtype of query; computed in float32.
    """
    batch, num_heads, num_queries, head_size = query.shape
    num_kv_heads, num_keys = key.shape[1:3]
    group = num_heads // num_kv_heads
    # Queries of one group share their keys: one product for all of them.
    grouped = query.float().reshape(batch, num_kv_heads, group * num_queries, head_size) * spec.scale
    scores = torch.matmul(grouped, key.float().transpose(-1, -2))
    scores = scores.view(batch, num_kv_heads, group, num_queries, num_keys)
    if spec.soft_cap is not None:
        scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
    # [batch, 1, 1, num_queries, num_keys]
    distance = (key_positions[:, None, :] - query_positions[:, :, None])[:, None, None]
    if spec.alibi_slopes is not None:
        slopes = spec.alibi_slopes.to(scores.device).view(1, num_kv_heads, group, 1, 1)
        scores = scores + slopes * distance
    hidden = (key_positions < 0)[:, None, None, None, :]
    if spec.causal:
        hidden = hidden | (distance > 0)
    if spec.window is not None:
        hidden = hidden | (distance <= -spec.window)
    weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
    # An empty slot may hold anything, NaN too, and 0 · NaN is NaN.
    stored = value.float().masked_fill((key_positions < 0)[:, None, :, None], 0.0)
    out = torch.matmul(weights.view(batch, num_kv_heads, group * num_queries, num_keys), stored)
    return out.view(batch, num_heads, num_queries, head_size).to(query.dtype)


def gather(kv_cache: torch.Tensor, block_tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather the keys and values of block tables, in the order of their positions.

    Args:
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_size].
        block_tables: integer [batch, max_blocks].

    Returns:
        key, value: [batch, num_kv_heads, max_blocks · block_size, head_size].
    """
    num_kv_heads, block_size, head_size = kv_cache.shape[2:]
    batch, max_blocks = block_tables.shape
    gathered = kv_cache[:, block_tables.long()].transpose(2, 3)
    key, value = gathered.reshape(2, batch, num_kv_heads, max_blocks * block_size, head_size).unbind(0)
    return key, value


def prefill_reference(
    out: torch.Tensor,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    max_query_len: int,
    spec: AttentionSpec,
) -> None:
    """Compute the attention of the new tokens of a batch of sequences over their cached and new tokens.

    Args:
        out, query: [num_tokens, num_heads, head_size]; query i of sequence s is token query_start_loc[s] + i and stands
            at position seq_lens[s] - query_len[s] + i.
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_size]; holds the new tokens as well.
        block_tables: int32 [num_seqs, max_blocks].
        query_start_loc: int32 [num_seqs + 1].
        seq_lens: int32 [num_seqs]: cached and new tokens.
        max_query_len: new tokens of the longest prefill, known without a copy from the device.
    """
    starts = query_start_loc.tolist()
    num_heads, block_size = query.shape[1], kv_cache.shape[3]
    for seq, seq_len in enumerate(seq_lens.tolist()):
        begin, end = starts[seq], starts[seq + 1]
        context_len = seq_len - (end - begin)
        blocks = -(-seq_len // block_size)
        key, value = gather(kv_cache, block_tables[seq : seq + 1, :blocks])
        position = torch.arange(seq_len, device=query.device)[None]
        chunk = max(1, MAX_SCORES // (num_heads * seq_len))
        for start in range(begin, end, chunk):
            stop = min(start + chunk, end)
            first, last = context_len + start - begin, context_len + stop - begin
            seen = slice(
                0 if spec.window is None else max(0, first - spec.window + 1), last if spec.causal else seq_len
            )
            out[start:stop] = attend(
                query[start:stop].transpose(0, 1)[None], key[:, :, seen], value[:, :, seen],
                position[:, first:last], position[:, seen], spec,
            )[0].transpose(0, 1)


def prefill_kernel(
    out: torch.Tensor,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    max_query_len: int,
    spec: AttentionSpec,
) -> None:
    """As prefill_reference on a GPU, in no memory of its own."""
    num_kv_heads, block_size, head_size = kv_cache.shape[2:]
    library().attention_prefill(
        *_tensors(out, query, kv_cache, block_tables), query_start_loc.data_ptr(), seq_lens.data_ptr(),
        seq_lens.numel(), max_query_len, query.shape[1], num_kv_heads, head_size, block_size, spec.causal,
        *_variants(spec), stream_of(query),
    )


prefill = by_device(prefill_reference, prefill_kernel)


def decode_reference(
    out: torch.Tensor,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    max_seq_len: int,
    spec: AttentionSpec,
) -> None:
    """Compute the attention of one new token a sequence over its block table.

    Args:
        out, query: [num_seqs, num_heads, head_size].
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_size]; holds the new token as well.
        block_tables: int32 [num_seqs, max_blocks].
        seq_lens: int32 [num_seqs]: tokens of each sequence, the new one included.
        max_seq_len: the largest of seq_lens, known without a copy from the device.
    """
    num_kv_heads, block_size, head_size = kv_cache.shape[2:]
    blocks = (max_seq_len + block_size - 1) // block_size
    position = torch.arange(blocks * block_size, device=query.device)[None]
    chunk = max(1, MAX_SCORES // (blocks * block_size * max(num_kv_heads * head_size, query.shape[1])))
    for start in range(0, query.shape[0], chunk):
        rows = slice(start, start + chunk)
        key, value = gather(kv_cache, block_tables[rows, :blocks])
        last = seq_lens[rows, None].long() - 1
        out[rows] = attend(
            query[rows, :, None], key, value, last, torch.where(position <= last, position, -1), spec
        )[:, :, 0]


def decode_kernel(
    out: torch.Tensor,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    max_seq_len: int,
    spec: AttentionSpec,
) -> None:
    """As decode_reference, on a GPU."""
    num_seqs, num_heads, head_size = query.shape
    num_kv_heads, block_size = kv_cache.shape[2:4]
    size = _workspace(num_seqs, num_heads, num_kv_heads, head_size, max_seq_len)
    workspace = torch.empty(size, dtype=torch.uint8, device=query.device) if size else None
    library().attention_decode(
        *_tensors(out, query, kv_cache, block_tables), seq_lens.data_ptr(), num_seqs, num_heads, num_kv_heads,
        head_size, block_size, max_seq_len, *_variants(spec), pointer(workspace), size, stream_of(query),
    )


decode = by_device(decode_reference, decode_kernel)


@functools.lru_cache(maxsize=64)
def _workspace(num_seqs: int, num_heads: int, num_kv_heads: int, head_size: int, max_seq_len: int) -> int:
    """Return the bytes that a decoding step of these sizes needs: the library is asked once for all layers."""
    size = ctypes.c_size_t()
    library().attention_decode_workspace(
        num_seqs, num_heads, num_kv_heads, head_size, max_seq_len, ctypes.addressof(size)
    )
    return size.value


def _tensors(
    out: torch.Tensor, query: torch.Tensor, kv_cache: torch.Tensor, block_tables: torch.Tensor
) -> tuple[int, ...]:
    """Return the first arguments of both launchers."""
    return (
        out.data_ptr(), query.data_ptr(), out.stride(0), query.stride(0), DTYPES[query.dtype],
        *halves(kv_cache), DTYPES[kv_cache.dtype], block_tables.data_ptr(), block_tables.stride(0),
    )


def _variants(spec: AttentionSpec) -> tuple[float, float, int, int | None]:
    return spec.scale, spec.soft_cap or 0.0, spec.window or 0, pointer(spec.alibi_slopes)
