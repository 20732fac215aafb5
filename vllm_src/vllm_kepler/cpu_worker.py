"""Upstream's CPU worker, with a KV cache that may be float16 and is no larger than its sequences need."""

from __future__ import annotations

import torch
from vllm.config import CacheConfig, ModelConfig
from vllm.utils import STR_DTYPE_TO_TORCH_DTYPE, cdiv
from vllm.worker.cpu_worker import CPUCacheEngine, CPUWorker


def kv_cache_dtype(cache_config: CacheConfig, model_config: ModelConfig) -> torch.dtype:
    """As upstream's GPU worker has it; its CPU worker knows auto and fp8 alone."""
    cache_dtype = cache_config.cache_dtype
    return model_config.dtype if cache_dtype == "auto" else STR_DTYPE_TO_TORCH_DTYPE[cache_dtype]


# The worker names this class, and the class this function, in so many words: no subclass would be asked.
CPUCacheEngine.get_kv_cache_dtype = staticmethod(kv_cache_dtype)


class KeplerCpuWorker(CPUWorker):
    """Named by the platform, so that every process of the engine imports this module."""

    def determine_num_available_blocks(self) -> tuple[int, int]:
        """(blocks, 0): those that fit, but no more than all sequences at their longest fill.

        Every byte of the cache is written at start, and every block is an object of Python: for a tiny model a
        gigabyte of them takes longer than all else.
        """
        fitting, swapped = super().determine_num_available_blocks()
        longest = cdiv(self.model_config.max_model_len, self.cache_config.block_size)
        return min(fitting, longest * self.scheduler_config.max_num_seqs), swapped
