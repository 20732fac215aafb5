"""The paged KV cache.

One layer's cache is one tensor [2, num_blocks, num_kv_heads, block_size, head_size]: keys, then values. The tokens
of one head lie together within a block, so that a warp reads them in whole lines. Upstream reaches the cache
through the attention backend alone, which calls these functions: they are no registered operators.
"""

from __future__ import annotations

import functools

import torch

from ..checkpoint.limits import TEMPORARY_BLOCK_SIZE
from .library import DTYPES, library, stream_of
from .operator import by_device


def kv_cache_shape(num_blocks: int, block_size: int, num_kv_heads: int, head_size: int) -> tuple[int, ...]:
    """Return the shape of one layer's cache."""
    return 2, num_blocks, num_kv_heads, block_size, head_size


def halves(kv_cache: torch.Tensor) -> tuple[int, int]:
    """Return the addresses of the keys and of the values, without making tensors of them."""
    keys = kv_cache.data_ptr()
    return keys, keys + kv_cache.stride(0) * kv_cache.element_size()


def write_kv_reference(
    kv_cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slot_mapping: torch.Tensor
) -> None:
    """Store new keys and values in their slots.

    Args:
        kv_cache: [2, num_blocks, num_kv_heads, block_size, head_size].
        key, value: [num_tokens, num_kv_heads, head_size].
        slot_mapping: int64 [num_tokens]: block · block_size + offset; -1 for a token that is not stored.
    """
    block_size = kv_cache.shape[3]
    stored = slot_mapping >= 0
    slots = slot_mapping[stored]
    block, offset = torch.div(slots, block_size, rounding_mode="floor"), slots % block_size
    kv_cache[0, block, :, offset] = key[stored].to(kv_cache.dtype)
    kv_cache[1, block, :, offset] = value[stored].to(kv_cache.dtype)


def write_kv_kernel(
    kv_cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slot_mapping: torch.Tensor
) -> None:
    """As write_kv_reference, float32 keys and values on a GPU, into float32 or float16."""
    num_kv_heads, block_size, head_size = kv_cache.shape[2:]
    library().reshape_and_cache(
        key.data_ptr(), value.data_ptr(), *halves(kv_cache), DTYPES[kv_cache.dtype],
        slot_mapping.data_ptr(), slot_mapping.numel(), num_kv_heads, head_size, block_size, key.stride(0),
        value.stride(0), stream_of(kv_cache),
    )


write_kv = by_device(write_kv_reference, write_kv_kernel)


def copy_blocks_reference(block_mapping: torch.Tensor, kv_caches: list[torch.Tensor]) -> None:
    """Copy whole blocks within each layer's cache: block_mapping int64 [pairs, 2] of (from, to)."""
    source, target = block_mapping.unbind(1)
    for kv_cache in kv_caches:
        kv_cache[:, target] = kv_cache[:, source]


def bytes_of_block(kv_cache: torch.Tensor) -> int:
    """Return the bytes of one block's keys, or of its values."""
    return kv_cache[0, 0].numel() * kv_cache.element_size()


@functools.cache
def _addresses(device: torch.device, *addresses: int) -> torch.Tensor:
    """Copy addresses to the GPU, once: caches live as long as the engine."""
    return torch.tensor(addresses, dtype=torch.int64, device=device)


def copy_blocks_kernel(block_mapping: torch.Tensor, kv_caches: list[torch.Tensor]) -> None:
    """As copy_blocks_reference, on a GPU; no block is both source and target."""
    halves = [half.data_ptr() for kv_cache in kv_caches for half in kv_cache]
    pairs = block_mapping.contiguous()
    library().copy_blocks(
        _addresses(pairs.device, *halves).data_ptr(), len(halves), pairs.data_ptr(), len(pairs),
        bytes_of_block(kv_caches[0]), stream_of(pairs),
    )


copy_blocks = by_device(copy_blocks_reference, copy_blocks_kernel)


def swap_blocks(source: torch.Tensor, target: torch.Tensor, block_mapping: torch.Tensor) -> None:
    """Copy whole blocks from one cache to another, on another device or the same: block_mapping as copy_blocks'."""
    on_gpu = next((cache for cache in (source, target) if cache.is_cuda), None)
    if on_gpu is None:
        source_block, target_block = block_mapping.unbind(1)
        target[:, target_block] = source[:, source_block]
        return
    # The launcher reads the pairs while it is called: nothing waits for the GPU.
    pairs = block_mapping.cpu().contiguous()
    for half in range(2):
        library().swap_blocks(
            source[half].data_ptr(), target[half].data_ptr(), pairs.data_ptr(), len(pairs), bytes_of_block(source),
            stream_of(on_gpu),
        )


def temporary_cache(
    key: torch.Tensor, value: torch.Tensor, query_start_loc: torch.Tensor, max_query_len: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a cache of these tokens alone, for a step that has none: encoders, and the run that measures memory.

    Args:
        key, value: [num_tokens, num_kv_heads, head_size].
        query_start_loc: int32 [num_seqs + 1]: index of the first token of each sequence.
        max_query_len: tokens of the longest sequence.

    Returns:
        the cache, and block tables int32 [num_seqs, max_blocks]. Nothing waits for the device.
    """
    num_tokens, num_kv_heads, head_size = key.shape
    device, block_size = key.device, TEMPORARY_BLOCK_SIZE
    starts = query_start_loc.long()
    blocks = (starts[1:] - starts[:-1] + block_size - 1) // block_size
    first_block = blocks.cumsum(0) - blocks
    table = first_block[:, None] + torch.arange(-(-max_query_len // block_size), device=device)
    token = torch.arange(num_tokens, device=device)
    seq = torch.bucketize(token, starts[1:], right=True)
    slots = first_block[seq] * block_size + token - starts[seq]
    most = num_tokens // block_size + len(blocks)
    kv_cache = key.new_zeros(kv_cache_shape(most, block_size, num_kv_heads, head_size))
    write_kv(kv_cache, key, value, slots)
    # Entries past a sequence's own blocks are never read, but name blocks that exist.
    return kv_cache, table.clamp_max(most - 1).int()
