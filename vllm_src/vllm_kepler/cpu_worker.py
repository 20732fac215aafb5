"""Upstream's CPU worker, with a KV cache that may be float16 and is no larger than its sequences need, and adapters on
several ranks and beside cached prefixes, and stages of a pipeline.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import CacheConfig, ModelConfig
from vllm.distributed import get_pp_group
from vllm.distributed.parallel_state import model_parallel_is_initialized
from vllm.forward_context import set_forward_context
from vllm.lora.layers import LoRAMapping
from vllm.sequence import IntermediateTensors, SequenceGroupMetadata
from vllm.utils import STR_DTYPE_TO_TORCH_DTYPE, cdiv
from vllm.worker.cpu_model_runner import (
    CPUModelRunner,
    ModelInputForCPU,
    ModelInputForCPUBuilder,
    ModelInputForCPUWithSamplingMetadata,
)
from vllm.worker.cpu_worker import CPUCacheEngine, CPUWorker


def kv_cache_dtype(cache_config: CacheConfig, model_config: ModelConfig) -> torch.dtype:
    """Return the cache's dtype as upstream's GPU worker does; its CPU worker knows auto and fp8 alone."""
    cache_dtype = cache_config.cache_dtype
    return model_config.dtype if cache_dtype == "auto" else STR_DTYPE_TO_TORCH_DTYPE[cache_dtype]


def with_adapters(upstream: Any) -> Any:
    """Data of a step that the first rank sends to the others; upstream leaves out the adapters."""

    def as_broadcastable_tensor_dict(self: ModelInputForCPU) -> dict[str, Any]:
        return {**upstream(self), "lora_requests": self.lora_requests, "lora_mapping": self.lora_mapping}

    return as_broadcastable_tensor_dict


def adapters_of_rows(
    self: ModelInputForCPUBuilder, groups: list[SequenceGroupMetadata], is_prompt: bool
) -> LoRAMapping:
    """Which adapter each row of a step has; upstream counts tokens of a prompt that the cache has already."""
    wanted = [group.lora_int_id for group in groups for _ in group.seq_data]
    rows = zip(wanted, self.input_data.query_lens, strict=True)
    return LoRAMapping(tuple(adapter for adapter, count in rows for _ in range(count)), tuple(wanted), is_prompt)


# Replaced in place: the worker makes these classes by name, so subclasses would not be used.
CPUCacheEngine.get_kv_cache_dtype = staticmethod(kv_cache_dtype)
ModelInputForCPUWithSamplingMetadata.as_broadcastable_tensor_dict = with_adapters(
    ModelInputForCPUWithSamplingMetadata.as_broadcastable_tensor_dict
)
ModelInputForCPUBuilder._prepare_lora_input = adapters_of_rows


class KeplerCpuModelRunner(CPUModelRunner):
    """Upstream's, which hands on what the layers of an earlier stage give, as its GPU runner does."""

    @torch.no_grad()
    def execute_model(
        self,
        model_input: ModelInputForCPUWithSamplingMetadata,
        kv_caches: list[torch.Tensor],
        intermediate_tensors: IntermediateTensors | None = None,
        *arguments: Any,
        **named: Any,
    ) -> Any:
        if get_pp_group().is_last_rank:
            return super().execute_model(model_input, kv_caches, intermediate_tensors, *arguments, **named)
        with set_forward_context(model_input.attn_metadata, self.vllm_config, model_input.virtual_engine):
            return self.model(
                input_ids=model_input.input_tokens, positions=model_input.input_positions,
                intermediate_tensors=intermediate_tensors,
            )


class KeplerCpuWorker(CPUWorker):
    """Named by the platform, so that every process of the engine imports this module."""

    def __init__(self, *arguments: Any, rank: int, is_driver_worker: bool = False, **named: Any) -> None:
        # Upstream takes rank 0 alone for a driver, and each stage of a pipeline has one.
        super().__init__(*arguments, rank=rank, is_driver_worker=is_driver_worker and rank == 0, **named)
        if self.parallel_config.pipeline_parallel_size > 1:
            self.is_driver_worker = self.model_runner.is_driver_worker = is_driver_worker
            # Upstream's worker makes its runner by name.
            self.model_runner.__class__ = KeplerCpuModelRunner

    def init_distributed_environment(self) -> None:
        """Once a process: a draft model's worker is the second of rank 0, whose first sum no other rank would join."""
        if not model_parallel_is_initialized():
            super().init_distributed_environment()

    def determine_num_available_blocks(self) -> tuple[int, int]:
        """Return (blocks, 0): those that fit, but no more than all sequences at their longest fill.

        Every byte of the cache is written at start, and every block is a Python object: a gigabyte of them takes longer
        than the rest of a tiny model's start.
        """
        fitting, swapped = super().determine_num_available_blocks()
        longest = cdiv(self.model_config.max_model_len, self.cache_config.block_size)
        # Each stage of a pipeline has sequences of its own in flight, in its own part of the blocks.
        streams = self.parallel_config.pipeline_parallel_size
        return min(fitting, streams * longest * self.scheduler_config.max_num_seqs), swapped
