"""Upstream's CPU worker, with a KV cache that may be float16 and is no larger than its sequences need."""

from __future__ import annotations

import torch
from vllm.config import CacheConfig, ModelConfig
from vllm.utils import STR_DTYPE_TO_TORCH_DTYPE, cdiv
from vllm.worker.cpu_worker import CPUCacheEngine, CPUWorker


def kv_cache_dtype(cache_config: CacheConfig, model_config: ModelConfig) -> torch.dtype:
    """Return the cache's dtype as upstream's GPU worker does; its CPU worker knows auto and fp8 alone."""
    cache_dtype = cache_config.cache_dtype
    return model_config.dtype if cache_dtype == "auto" else STR_DTYPE_TO_TORCH_DTYPE[cache_dtype]


# Replaced in place: the worker makes this class by name, so a subclass would not be used.
CPUCacheEngine.get_kv_cache_dtype = staticmethod(kv_cache_dtype)


class KeplerCpuWorker(CPUWorker):
    """Named by the platform, so that every process of the engine imports this module."""

    def determine_num_available_blocks(self) -> tuple[int, int]:
        """Return (blocks, 0): those that fit, but no more than all sequences at their longest fill.

        Every byte of the cache is written at start, and every block is a Python object: a gigabyte of them takes longer
        than the rest of a tiny model's start.
        """
        fitting, swapped = super().determine_num_available_blocks()
        longest = cdiv(self.model_config.max_model_len, self.cache_config.block_size)
        return min(fitting, longest * self.scheduler_config.max_num_seqs), swapped
