"""The paged KV cache.

One layer's cache is one tensor [2, num_blocks, num_kv_heads, block_size, head_size]: keys, then values. The tokens
of one head lie together within a block, so that a warp reads them in whole lines. Upstream reaches the cache
through the attention backend alone, which calls these functions: they are no registered operators.
"""

from __future__ import annotations

import torch


def kv_cache_shape(num_blocks: int, block_size: int, num_kv_heads: int, head_size: int) -> tuple[int, ...]:
    """Shape of one layer's cache."""
    return 2, num_blocks, num_kv_heads, block_size, head_size


def write_kv(kv_cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slot_mapping: torch.Tensor) -> None:
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


def copy_blocks(kv_caches: list[torch.Tensor], block_mapping: torch.Tensor) -> None:
    """Copy whole blocks within each layer's cache: block_mapping int64 [pairs, 2] of (from, to)."""
    source, target = block_mapping.unbind(1)
    for kv_cache in kv_caches:
        kv_cache[:, target] = kv_cache[:, source]


def swap_blocks(source: torch.Tensor, target: torch.Tensor, block_mapping: torch.Tensor) -> None:
    """Copy whole blocks from one cache to another, on another device or the same: block_mapping as copy_blocks'."""
    source_block, target_block = block_mapping.unbind(1)
    blocks = source[:, source_block.to(source.device)]
    target[:, target_block.to(target.device)] = blocks.to(target.device)
