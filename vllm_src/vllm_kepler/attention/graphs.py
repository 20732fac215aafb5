"""Decoding steps as CUDA graphs: the calls of upstream's GPU model runner to capture and replay them.

A graph is captured for each number of sequences up to 64, and replayed with the values that its input tensors have
then. A batch between two captured sizes is padded: its rows beyond the sequences have one token, which lies in no
slot.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.attention.backends.utils import CommonAttentionState
from vllm.logger import init_logger

from ..errors import StartError
from .metadata import KeplerMetadata

logger = init_logger("vllm.kepler.graphs")

# A thread of PyTorch 2.0's NCCL groups queries unfinished collectives each second, which breaks a capture on any other
# thread. Those within the graphs are not its own: vLLM calls NCCL itself.
WATCHDOG_SECONDS = 2.5
# Tensors of a graph that the port fills anew for each step, by their names in the metadata.
INPUTS = ("decode_seq_lens", "decode_block_tables")


class KeplerState(CommonAttentionState):
    """Upstream's state of an attention backend, for the port's metadata."""

    @contextmanager
    def graph_capture(self, max_batch_size: int) -> Iterator[None]:
        """Wrap the capture of all sizes, and log the memory that they take.

        Raises StartError, with the next step, if a step cannot be captured.
        """
        if self.runner.parallel_config.world_size > 1:
            torch.cuda.synchronize()
            time.sleep(WATCHDOG_SECONDS)
        # torch's cache of the profiling run would hide the memory of the graphs.
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        # torch collects garbage before each capture: 64 times all objects of the engine, some 0.3 s each.
        gc.collect()
        gc.freeze()
        try:
            with super().graph_capture(max_batch_size):
                yield
        except RuntimeError as error:
            raise StartError(
                f"CUDA graphs: the decoding step could not be captured: {error}. Serve without graphs (leave "
                "VLLM_KEPLER_CUDA_GRAPHS out), or lower gpu_memory_utilization if memory ran out."
            ) from error
        finally:
            gc.unfreeze()
        torch.cuda.empty_cache()
        logger.info(
            "CUDA graphs: captured decoding steps of 1 to %d sequences, up to %d tokens each; they take %.0f MiB "
            "beside the KV cache.",
            max(self.runner.vllm_config.compilation_config.cudagraph_capture_sizes), self.runner.max_seq_len_to_capture,
            (free - torch.cuda.mem_get_info()[0]) / (1 << 20),
        )

    def graph_capture_get_metadata_for_batch(
        self, batch_size: int, is_encoder_decoder_model: bool = False
    ) -> KeplerMetadata:
        """Return the metadata of a decoding step, on the tensors that every replay reads.

        The launch is for the longest context: blocks past a sequence's length end at once.
        """
        lens = self._graph_seq_lens[:batch_size]
        tables = self._graph_block_tables[:batch_size]
        return KeplerMetadata(
            num_prefills=0,
            num_prefill_tokens=0,
            num_decode_tokens=batch_size,
            slot_mapping=self._graph_slot_mapping[:batch_size],
            multi_modal_placeholder_index_maps=None,
            enable_kv_scales_calculation=False,
            query_start_loc=lens.new_zeros(1),
            max_query_len=0,
            prefill_seq_lens=lens[:0],
            prefill_block_tables=tables[:0],
            decode_seq_lens=lens,
            decode_block_tables=tables,
            max_decode_seq_len=self.runner.max_seq_len_to_capture,
            use_cuda_graph=True,
        )

    def get_graph_input_buffers(
        self, attn_metadata: KeplerMetadata, is_encoder_decoder_model: bool = False
    ) -> dict[str, Any]:
        """Return the tensors that a graph reads; upstream fills slot_mapping itself."""
        return {name: getattr(attn_metadata, name) for name in ("slot_mapping", *INPUTS)}

    def prepare_graph_input_buffers(
        self, input_buffers: dict[str, Any], attn_metadata: KeplerMetadata, is_encoder_decoder_model: bool = False
    ) -> None:
        """Fill the graph's tensors before a replay; its tables are as wide as its longest context."""
        for name in INPUTS:
            step, graph = getattr(attn_metadata, name), input_buffers[name]
            graph[..., : step.shape[-1]].copy_(step[..., : graph.shape[-1]], non_blocking=True)
