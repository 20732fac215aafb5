"""The backend: prefill and decode over the paged cache."""

from __future__ import annotations

from typing import Any

import torch
from vllm.attention.backends.abstract import (
    AttentionBackend,
    AttentionImpl,
    AttentionLayer,
    AttentionMetadataBuilder,
    AttentionType,
)
from vllm.platforms import current_platform

from ..checkpoint.limits import HEAD_MULTIPLE, LARGEST_HEAD
from ..errors import reject_if
from ..ops import attention as paged
from ..ops import cache
from ..settings import CACHE_DTYPES
from .graphs import KeplerState
from .metadata import CpuMetadataBuilder, GpuMetadataBuilder, KeplerMetadata

HEAD_SIZES = range(HEAD_MULTIPLE, LARGEST_HEAD + 1, HEAD_MULTIPLE)


class KeplerBackend(AttentionBackend):
    """The port's attention under upstream's name TORCH_SDPA, which operators look for; torch's SDPA is not called."""

    @staticmethod
    def get_name() -> str:
        return "TORCH_SDPA"

    @staticmethod
    def get_impl_cls() -> type[KeplerImpl]:
        return KeplerImpl

    @staticmethod
    def get_metadata_cls() -> type[KeplerMetadata]:
        return KeplerMetadata

    @staticmethod
    def get_state_cls() -> type[KeplerState]:
        return KeplerState

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder]:
        return CpuMetadataBuilder if current_platform.is_cpu() else GpuMetadataBuilder

    @staticmethod
    def get_kv_cache_shape(num_blocks: int, block_size: int, num_kv_heads: int, head_size: int) -> tuple[int, ...]:
        return cache.kv_cache_shape(num_blocks, block_size, num_kv_heads, head_size)

    @staticmethod
    def swap_blocks(src_kv_cache: torch.Tensor, dst_kv_cache: torch.Tensor, src_to_dst: torch.Tensor) -> None:
        cache.swap_blocks(src_kv_cache, dst_kv_cache, src_to_dst)

    @staticmethod
    def copy_blocks(kv_caches: list[torch.Tensor], src_to_dists: torch.Tensor) -> None:
        cache.copy_blocks(src_to_dists, kv_caches)


class KeplerImpl(AttentionImpl[KeplerMetadata]):
    """One attention layer.

    Raises ModelError at start for a layer that the port cannot serve.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        blocksparse_params: dict[str, Any] | None = None,
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        use_irope: bool = False,
    ) -> None:
        refused = {
            f"head size {head_size} (a multiple of 8 up to 512 is expected)": head_size not in HEAD_SIZES,
            f"KV cache type {kv_cache_dtype} (auto is expected)": kv_cache_dtype not in CACHE_DTYPES,
            "block-sparse attention": blocksparse_params is not None,
            "a KV cache that layers share": kv_sharing_target_layer_name is not None,
            "attention in chunks of the context (Llama 4)": use_irope,
            f"attention of type {attn_type}": attn_type not in (AttentionType.DECODER, AttentionType.ENCODER_ONLY),
        }
        for what, is_asked in refused.items():
            reject_if(is_asked, what)
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        self.head_size = head_size
        self.spec = paged.AttentionSpec(
            scale=float(scale),
            window=sliding_window,
            soft_cap=logits_soft_cap or None,
            alibi_slopes=(
                None if alibi_slopes is None
                else torch.tensor(alibi_slopes, dtype=torch.float32, device=current_platform.device_type)
            ),
            causal=attn_type == AttentionType.DECODER,
        )

    def forward(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: KeplerMetadata,
        output: torch.Tensor | None = None,
        output_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the attention of one step.

        Args:
            query: [num_tokens, num_heads · head_size]; prefill tokens first, as the metadata says.
            key, value: [num_tokens, num_kv_heads · head_size].
            kv_cache: as ops.cache describes it; empty in the run that measures memory.

        Returns:
            [num_tokens, num_heads · head_size].
        """
        # From the next step on vLLM calls this without torch's dispatcher.
        if not layer.use_direct_call:
            layer.use_direct_call = True
        query = query.view(-1, self.num_heads, self.head_size)
        key = key.view(-1, self.num_kv_heads, self.head_size)
        value = value.view(-1, self.num_kv_heads, self.head_size)
        block_tables = attn_metadata.prefill_block_tables
        if kv_cache.numel():
            cache.write_kv(kv_cache, key, value, attn_metadata.slot_mapping)
        else:
            kv_cache, block_tables = cache.temporary_cache(
                key, value, attn_metadata.query_start_loc, attn_metadata.max_query_len
            )
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        prefills = attn_metadata.num_prefill_tokens
        if attn_metadata.num_prefills:
            paged.prefill(
                out[:prefills],
                query[:prefills],
                kv_cache,
                block_tables,
                attn_metadata.query_start_loc,
                attn_metadata.prefill_seq_lens,
                attn_metadata.max_query_len,
                self.spec,
            )
        if attn_metadata.num_decode_tokens:
            paged.decode(
                out[prefills:] if prefills else out,
                query[prefills:] if prefills else query,
                kv_cache,
                attn_metadata.decode_block_tables,
                attn_metadata.decode_seq_lens,
                attn_metadata.max_decode_seq_len,
                self.spec,
            )
        return out.view(-1, self.num_heads * self.head_size)
