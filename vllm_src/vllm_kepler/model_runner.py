"""Upstream's GPU model runner, which makes a decoding step's inputs without what the step before has left.

Upstream builds each step anew: a dozen lists and copies, 22 tensors for sampling, and tables that seldom change. Of the
steps of a batch each is like the last but for one token a sequence, so that is all that is made here.
"""

from __future__ import annotations

from functools import cached_property
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch
from vllm.attention.backends.utils import PAD_SLOT_ID, is_block_tables_empty
from vllm.distributed import get_pp_group
from vllm.model_executor.sampling_metadata import SamplingMetadata
from vllm.multimodal import MultiModalKwargs
from vllm.sampling_params import SamplingParams
from vllm.sequence import SequenceData, SequenceGroupMetadata
from vllm.worker.model_runner import ModelInputForGPUWithSamplingMetadata, ModelRunner

from .attention.metadata import KeplerMetadata


class Decoding(NamedTuple):
    """A step in which each sequence has one new token.

    Attributes:
        sequences, params: of each sequence; the same objects from step to step, so that they tell batches apart.
        tokens, positions, slots, lens: of each sequence's new token, and the sequence's length with it.
        tables: of each sequence, the numbers of its blocks.
    """

    sequences: list[SequenceData]
    params: list[SamplingParams]
    tokens: list[int]
    positions: list[int]
    slots: list[int]
    lens: list[int]
    tables: list[list[int]]


def decoding_of(groups: list[SequenceGroupMetadata], block_size: int) -> Decoding | None:
    """Return what is new in a step, or None where it does more than to decode one token of each sequence."""
    step = Decoding([], [], [], [], [], [], [])
    for group in groups:
        if group.is_prompt or not group.do_sample or is_block_tables_empty(group.block_tables):
            return None
        for name, sequence in group.seq_data.items():
            length = sequence.get_len()
            position = sequence.get_num_computed_tokens()
            if position != length - 1 or sequence.prompt_embeds is not None:
                return None
            table = group.block_tables[name]
            step.sequences.append(sequence)
            step.params.append(group.sampling_params)
            step.tokens.append(sequence.get_last_token_id())
            step.positions.append(position)
            step.slots.append(table[position // block_size] * block_size + position % block_size)
            step.lens.append(length)
            step.tables.append(table)
    return step if step.sequences else None


class BlockTables:
    """Tables of a batch, which are copied to the GPU where one of them has changed."""

    def __init__(self, device: torch.device, pin_memory: bool) -> None:
        self.device, self.pin_memory = device, pin_memory
        self.rows = np.zeros((0, 0), dtype=np.int32)
        self.known: list[list[int]] = []
        self.copied: torch.Tensor | None = None

    def copy(self, tables: list[list[int]], batch: int) -> torch.Tensor:
        """int32 [batch, longest of tables] on the GPU. What lies beyond a sequence's blocks is never read."""
        width = max(map(len, tables))
        if batch > self.rows.shape[0] or width > self.rows.shape[1]:
            self.rows = np.zeros((max(batch, self.rows.shape[0]), 2 * width), dtype=np.int32)
            self.known = [[] for _ in self.rows]
            self.copied = None
        for row, table in enumerate(tables):
            if self.known[row] != table:
                self.rows[row, : len(table)] = table
                self.known[row] = table.copy()
                self.copied = None
        if self.copied is None or self.copied.shape != (batch, width):
            copy = torch.from_numpy(self.rows[:batch, :width].copy())
            self.copied = (copy.pin_memory() if self.pin_memory else copy).to(self.device, non_blocking=True)
        return self.copied


class KeplerModelRunner(ModelRunner):
    """Makes the inputs of decoding steps itself; those of all others are upstream's."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.tables = BlockTables(self.device, self.pin_memory)
        self.start = torch.zeros(1, dtype=torch.int32, device=self.device)
        self.last: tuple[Decoding, SamplingMetadata] | None = None

    @cached_property
    def decodes(self) -> bool:
        """Whether a step's inputs are those of Decoding alone."""
        config = self.model_config
        return (
            self.lora_config is None and self.prompt_adapter_config is None and self.sliding_window is None
            and not (config.is_encoder_decoder or config.is_multimodal_model or config.uses_mrope)
        )

    def prepare_model_input(
        self,
        seq_group_metadata_list: list[SequenceGroupMetadata],
        virtual_engine: int = 0,
        finished_requests_ids: list[str] | None = None,
    ) -> ModelInputForGPUWithSamplingMetadata:
        """As upstream's, whose result it equals."""
        step = decoding_of(seq_group_metadata_list, self.block_size) if self.decodes else None
        if step is None:
            self.last = None
            return super().prepare_model_input(seq_group_metadata_list, virtual_engine, finished_requests_ids)
        count = len(step.sequences)
        longest = max(step.lens)
        builder = self.builder
        builder.decode_only = True
        padding = builder._get_cuda_graph_pad_size(num_seqs=count, max_decode_seq_len=longest)
        graph, padding = padding >= 0, max(padding, 0)
        rows = [
            values + [pad] * padding
            for values, pad in ((step.tokens, 0), (step.positions, 0), (step.slots, PAD_SLOT_ID), (step.lens, 1))
        ]
        # Pinned, so that the copy does not wait for the step before; upstream makes one such tensor for each row.
        packed = torch.tensor(rows, dtype=torch.long, pin_memory=self.pin_memory)
        tokens, positions, slots, lens = packed.to(self.device, non_blocking=True).unbind()
        lens = lens.to(torch.int32)
        tables = self.tables.copy(step.tables, count + padding)
        metadata = KeplerMetadata(
            num_prefills=0, num_prefill_tokens=0, num_decode_tokens=count + padding, slot_mapping=slots,
            multi_modal_placeholder_index_maps=None, enable_kv_scales_calculation=False,
            query_start_loc=self.start, max_query_len=0, prefill_seq_lens=lens[:0],
            prefill_block_tables=tables[:0], decode_seq_lens=lens, decode_block_tables=tables,
            max_decode_seq_len=longest, use_cuda_graph=graph,
        )  # fmt: skip
        return ModelInputForGPUWithSamplingMetadata(
            input_tokens=tokens, input_positions=positions, attn_metadata=metadata, seq_lens=rows[3],
            query_lens=[1] * count, lora_requests=set(), prompt_adapter_requests=set(),
            multi_modal_kwargs=MultiModalKwargs.batch([]),
            request_ids_to_seq_ids={group.request_id: list(group.seq_data) for group in seq_group_metadata_list},
            finished_requests_ids=finished_requests_ids,
            sampling_metadata=self.sampling(step, seq_group_metadata_list, finished_requests_ids),
            is_prompt=False, virtual_engine=virtual_engine,
        )  # fmt: skip

    def sampling(
        self, step: Decoding, groups: list[SequenceGroupMetadata], finished: list[str] | None
    ) -> SamplingMetadata | None:
        """Of the step before, if it had the same sequences: the sampler then has its tensors still."""
        generators = self.get_generators(finished)
        if not get_pp_group().is_last_rank:
            return None
        if self.last and same(self.last[0].sequences, step.sequences) and same(self.last[0].params, step.params):
            found = self.last[1]
            # Upstream's sampler changes the shape of the tensor of min_p where it uses it.
            found.reuse_sampling_tensors = not any(params.min_p for params in step.params)
        else:
            found = SamplingMetadata.prepare(
                groups, step.lens, [1] * len(step.lens), self.device, self.pin_memory, generators
            )
        self.last = step, found
        return found


def same(before: list[Any], now: list[Any]) -> bool:
    return len(before) == len(now) and all(map(is_, before, now))

