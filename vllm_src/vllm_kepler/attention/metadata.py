"""Metadata of one step of the engine for the attention layers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from vllm.attention.backends.abstract import AttentionMetadata, AttentionMetadataBuilder
from vllm.attention.backends.utils import CommonMetadataBuilder, is_block_tables_empty
from vllm.utils import make_tensor_with_pad

if TYPE_CHECKING:
    from vllm.worker.cpu_model_runner import ModelInputForCPUBuilder
    from vllm.worker.model_runner import ModelInputForGPUBuilder


@dataclass
class KeplerMetadata(AttentionMetadata):
    """Prefills come first in a batch, one-token decodes after them.

    Attributes:
        query_start_loc: int32 [num_prefills + 1]: index of the first new token of each prefill.
        max_query_len: new tokens of the longest prefill.
        prefill_seq_lens: int32 [num_prefills]: cached and new tokens of each prefill.
        prefill_block_tables: int32 [num_prefills, max_blocks].
        decode_seq_lens: int32 [num_decodes]: tokens of each sequence, the new one included.
        decode_block_tables: int32 [num_decodes, max_blocks].
        max_decode_seq_len: the largest of decode_seq_lens.
        use_cuda_graph: whether the step replays a graph; the batch is then padded to the graph's size.
    """

    query_start_loc: torch.Tensor
    max_query_len: int
    prefill_seq_lens: torch.Tensor
    prefill_block_tables: torch.Tensor
    decode_seq_lens: torch.Tensor
    decode_block_tables: torch.Tensor
    max_decode_seq_len: int
    use_cuda_graph: bool = False

    @property
    def prefill_metadata(self) -> KeplerMetadata | None:
        return self if self.num_prefills else None

    @property
    def decode_metadata(self) -> KeplerMetadata | None:
        return self if self.num_decode_tokens else None


def padded(block_tables: list[list[int] | None], device: torch.device | str) -> torch.Tensor:
    """Return int32 [len(block_tables), longest]; block 0 pads, and is never read beyond a sequence's length.

    A sequence of a model that generates no tokens has nothing in the cache: its table is None.
    """
    return make_tensor_with_pad([table or [] for table in block_tables], pad=0, dtype=torch.int32, device=device)


class CpuMetadataBuilder(AttentionMetadataBuilder[KeplerMetadata]):
    """Builds the metadata from the batch of upstream's V0 CPU model runner."""

    def __init__(self, input_builder: ModelInputForCPUBuilder) -> None:
        self.input_builder = input_builder

    def prepare(self) -> None:
        """Keep nothing between batches."""

    def build(
        self, seq_lens: list[int], query_lens: list[int], cuda_graph_pad_size: int, batch_size: int
    ) -> KeplerMetadata:
        batch = self.input_builder.input_data
        device = self.input_builder.device
        prefills = batch.num_prefills
        index_maps = {
            modality: placeholders.index_map()
            for modality, placeholders in batch.multi_modal_placeholder_maps.items()
        }
        return KeplerMetadata(
            num_prefills=prefills,
            num_prefill_tokens=batch.num_prefill_tokens,
            num_decode_tokens=batch.num_decode_tokens,
            slot_mapping=torch.tensor(batch.slot_mapping, dtype=torch.long, device=device),
            multi_modal_placeholder_index_maps=index_maps or None,
            enable_kv_scales_calculation=False,
            query_start_loc=torch.tensor(list(accumulate(query_lens[:prefills], initial=0)), dtype=torch.int32,
                                         device=device),
            max_query_len=max(query_lens[:prefills], default=0),
            prefill_seq_lens=torch.tensor(seq_lens[:prefills], dtype=torch.int32, device=device),
            prefill_block_tables=padded(batch.prefill_block_tables, device),
            decode_seq_lens=torch.tensor(seq_lens[prefills:], dtype=torch.int32, device=device),
            decode_block_tables=padded(batch.decode_block_tables, device),
            max_decode_seq_len=batch.max_decode_seq_len,
        )


class GpuMetadataBuilder(CommonMetadataBuilder[KeplerMetadata]):
    """Builds the metadata from the batch of upstream's V0 GPU model runner."""

    def __init__(self, input_builder: ModelInputForGPUBuilder) -> None:
        super().__init__(input_builder)
        # Prefill reads all keys of the prompt from the cache: those before a window must be written too.
        self.sliding_window = None

    def _add_seq_group(
        self, inter_data: ModelInputForGPUBuilder.InterDataForSeqGroup, chunked_prefill_enabled: bool
    ) -> None:
        # Upstream passes the block tables of prefills only if they may come in chunks. The port always reads them, but
        # a model that generates no tokens has none.
        super()._add_seq_group(inter_data, chunked_prefill_enabled=not is_block_tables_empty(inter_data.block_tables))

    def build(
        self, seq_lens: list[int], query_lens: list[int], cuda_graph_pad_size: int, batch_size: int
    ) -> KeplerMetadata:
        self.query_lens = query_lens
        return super().build(seq_lens, query_lens, cuda_graph_pad_size, batch_size)

    def _metadata_cls(self, **common: Any) -> KeplerMetadata:  # type: ignore[override]
        """Upstream's builder calls this with the fields that its own backends share."""
        prefills = common["num_prefills"]
        return KeplerMetadata(
            num_prefills=prefills,
            num_prefill_tokens=common["num_prefill_tokens"],
            num_decode_tokens=common["num_decode_tokens"],
            slot_mapping=common["slot_mapping"],
            multi_modal_placeholder_index_maps=common["multi_modal_placeholder_index_maps"] or None,
            enable_kv_scales_calculation=False,
            query_start_loc=common["query_start_loc"][: prefills + 1],
            max_query_len=max(self.query_lens[:prefills], default=0),
            prefill_seq_lens=common["seq_lens_tensor"][:prefills],
            prefill_block_tables=common["block_tables"][:prefills],
            decode_seq_lens=common["seq_lens_tensor"][prefills:],
            decode_block_tables=common["block_tables"][prefills:],
            max_decode_seq_len=common["max_decode_seq_len"],
            use_cuda_graph=common["use_cuda_graph"],
        )
