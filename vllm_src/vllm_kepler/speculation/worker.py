"""The worker of a server that speculates: upstream's, which decides for each sequence whether it does.

Greedy answers are those of plain decoding: of the proposed tokens those are accepted that the model itself would have
chosen. Proposals are checked as further sequences of the batch, whose steps CUDA graphs can replay.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.distributed.parallel_state import get_tp_group, init_model_parallel_group
from vllm.model_executor.layers.rejection_sampler import RejectionSampler
from vllm.model_executor.layers.sampler import SamplerOutput
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.sequence import ExecuteModelRequest, SequenceGroupMetadata
from vllm.spec_decode.interfaces import SpeculativeProposals
from vllm.spec_decode.metrics import AsyncMetricsCollector, SpecDecodeWorkerMetrics
from vllm.spec_decode.multi_step_worker import MultiStepWorker
from vllm.spec_decode.ngram_worker import NGramWorker
from vllm.spec_decode.proposer_worker_base import ProposerWorkerBase
from vllm.spec_decode.smaller_tp_proposer_worker import SmallerTpProposerWorker
from vllm.spec_decode.spec_decode_worker import SpecDecodeWorker
from vllm.spec_decode.target_model_runner import TargetModelRunner
from vllm.utils import resolve_obj_by_qualname

from ..checkpoint.limits import CHECKED_BYTES
from .config import draft_config
from .lookup import Balance, look_up

# Of prompt lookup: in a text that repeats nothing, one proposal in so many steps.
LONGEST_REST = 127
# Proposals that a draft model may fail with before it is left alone for the rest of an answer.
DRAFT_TRIES = 8


def create_worker(*args: Any, **options: Any) -> SpeculativeWorker:
    """The worker of a rank; arguments are those of upstream's workers. Named by the platform."""
    config = options["vllm_config"]
    speculative, parallel = config.speculative_config, config.parallel_config
    draft = draft_config(config) if speculative.method == "draft_model" else None
    target = resolve_obj_by_qualname(parallel.sd_worker_cls)(*args, model_runner_cls=TargetModelRunner, **options)
    target.model_runner.disable_logprobs = speculative.disable_logprobs
    proposer: ProposerWorkerBase
    if draft:
        proposer = DraftModel(*args, **{**options, "vllm_config": draft})
        if parallel.tensor_parallel_size > 1:
            proposer = FirstRank(proposer, [0])
    else:
        proposer = PromptLookup(*args, **options, device_type=current_platform.device_type)
    sampler = RejectionSampler()
    return SpeculativeWorker(
        proposer, target, sampler, disable_mqa_scorer=True,
        metrics_collector=Metrics(sampler, speculative.num_speculative_tokens),
        disable_logprobs=speculative.disable_logprobs, disable_log_stats=speculative.disable_log_stats,
        disable_by_batch_size=speculative.disable_by_batch_size,
    )


def sequence_of(group: SequenceGroupMetadata) -> Any:
    """Data of a group's sequence: several samples of a request are groups of their own."""
    (data,) = group.seq_data.values()
    return data


class PromptLookup(NGramWorker):
    """Proposes what followed the sequence's last tokens where they stood before."""

    def init_device(self) -> None:
        super().init_device()
        speculative = self.speculative_config
        self.sizes = speculative.prompt_lookup_min, speculative.prompt_lookup_max
        self.found: dict[str, list[int]] = {}

    def look(self, group: SequenceGroupMetadata, count: int) -> bool:
        """Return whether there is a proposal for the group, which is kept for get_spec_proposals."""
        data = sequence_of(group)
        ids: array = data.prompt_token_ids_array + data.output_token_ids_array
        found = look_up(ids, *self.sizes, count)
        if found is None:
            return False
        self.found[group.request_id] = found
        return True

    def get_spec_proposals(
        self, execute_model_req: ExecuteModelRequest, seq_ids_with_bonus_token_in_last_step: set[int]
    ) -> SpeculativeProposals:
        """int64 [sequences, count] proposed tokens, -1 for a sequence without, and their probabilities: each is 1."""
        groups, count = execute_model_req.seq_group_metadata_list, execute_model_req.num_lookahead_slots
        found = [self.found.get(group.request_id, ())[:count] for group in groups]
        tokens = torch.tensor([ids or [-1] * count for ids in found], dtype=torch.long, device=self.device)
        probabilities = torch.zeros(*tokens.shape, self.vocab_size, device=self.device)
        probabilities.scatter_(2, tokens.clamp(min=0).unsqueeze(2), 1.0)
        lengths = torch.tensor([len(ids) for ids in found], device=self.device)
        return SpeculativeProposals(tokens, probabilities, lengths, no_proposals=not any(found))


class DraftModel(MultiStepWorker):
    """Proposes what a smaller model would say."""

    def execute_model(self, execute_model_req: ExecuteModelRequest | None = None) -> list[SamplerOutput]:
        """Fill the draft's KV cache for prompts; what it samples there is nobody's, and no guide may see it."""
        if execute_model_req is not None:
            groups = [copy.copy(group) for group in execute_model_req.seq_group_metadata_list]
            for group in groups:
                group.sampling_params = SamplingParams(temperature=0)
            execute_model_req = execute_model_req.clone(groups)
        return super().execute_model(execute_model_req)


class FirstRank(SmallerTpProposerWorker):
    """The draft model on rank 0; the others have none."""

    def init_device(self) -> None:
        """Upstream makes a group on the first rank alone, where PyTorch 2.0 waits for all: each gets one of its own."""
        ranks = get_tp_group()
        self._is_dummy = ranks.rank not in self._draft_ranks
        self._tp_group = init_model_parallel_group(
            [[rank] for rank in ranks.ranks], ranks.local_rank, torch.distributed.get_backend(ranks.device_group)
        )
        if not self._is_dummy:
            with self._patch_tensor_parallel_group():
                self._worker.init_device()


class Metrics(AsyncMetricsCollector):
    """Upstream's figures, of proposals that do not all have as many tokens.

    Attributes:
        longest: tokens of the longest proposal.
        proposals: all so far.
    """

    def __init__(self, sampler: RejectionSampler, longest: int) -> None:
        super().__init__(sampler)
        self.longest = longest
        self.proposals = 0

    def maybe_collect_rejsample_metrics(self, k: int) -> SpecDecodeWorkerMetrics | None:
        return super().maybe_collect_rejsample_metrics(self.longest)

    def get_max_num_emitted_tokens(self, draft_tokens: int, k: int) -> int:
        """Each proposal may give one token more than it has."""
        return draft_tokens + self.proposals


class SpeculativeWorker(SpecDecodeWorker):
    """Upstream's worker, which speculates for the sequences where that pays.

    A sequence does not speculate while it rests (see Balance), where nothing is found, or next to its longest length.
    A request with a seed or a guide never does: the seed promises what plain decoding samples, and a guide takes each
    token once.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.balances: dict[str, Balance] = {}
        self.longest = self.scorer_worker.speculative_config.num_speculative_tokens
        # Upstream gives generators to the rows of other sequences where some do not speculate. None here has a seed.
        self.generators = None

    @property
    def lookup(self) -> PromptLookup | None:
        return self.proposer_worker if isinstance(self.proposer_worker, PromptLookup) else None

    def determine_num_available_blocks(self) -> tuple[int, int]:
        """Upstream counts neither the draft model's weights nor what the check of proposals holds."""
        if current_platform.is_cuda():
            runner = self.scorer_worker.model_runner.model_runner
            runner.model_memory_usage += self.beside()
        return super().determine_num_available_blocks()

    def beside(self) -> int:
        """Bytes on this GPU beside the model: the draft's weights, and what is held while proposals are checked."""
        speculative = self.scorer_worker.speculative_config
        if self.rank != self._driver_rank:
            return 0
        most = min(self.scorer_worker.scheduler_config.max_num_seqs, speculative.disable_by_batch_size - 1)
        rows = (speculative.num_speculative_tokens + 1) * most
        draft = getattr(self.proposer_worker, "_worker", self.proposer_worker)
        weights = draft.model_runner.model_memory_usage if isinstance(draft, DraftModel) else 0
        return weights + CHECKED_BYTES * rows * self._vocab_size

    def execute_model(self, execute_model_req: ExecuteModelRequest | None = None) -> list[SamplerOutput]:
        """A step; upstream's own mode without gradients is one that gloo's threads, on the CPU, cannot work in."""
        if self.rank == self._driver_rank and execute_model_req is not None:
            self.choose(execute_model_req)
        with current_platform.inference_mode():
            return SpecDecodeWorker.execute_model.__wrapped__(self, execute_model_req)

    def start_worker_execution_loop(self) -> None:
        with current_platform.inference_mode():
            while self._run_non_driver_rank():
                pass

    def choose(self, request: ExecuteModelRequest) -> None:
        """Say of each sequence of a step whether it speculates; where none does, the step is a plain one.

        All proposals of a step have as many tokens as the longest that a sequence has earned.
        """
        for name in request.finished_requests_ids:
            self.balances.pop(name, None)
        if self.lookup:
            self.lookup.found.clear()
        groups, most = request.seq_group_metadata_list, request.num_lookahead_slots
        if self._should_disable_all_speculation(request):
            most = 0
        tokens = [self.tokens_for(group, most) for group in groups]
        request.num_lookahead_slots = count = max(tokens, default=0)
        for group, wanted in zip(groups, tokens, strict=True):
            if wanted:
                self.balances[group.request_id].proposed = sequence_of(group).get_len(), count
                self._metrics.proposals += 1
            else:
                group.num_speculative_tokens = 0

    def tokens_for(self, group: SequenceGroupMetadata, most: int) -> int:
        """Return how many tokens to propose for a sequence in this step, up to `most`."""
        if group.is_prompt:
            # Of a sequence that was thrown out of the cache nothing is known.
            self.balances.pop(group.request_id, None)
            return 0
        if group.sampling_params.seed is not None or group.sampling_params.logits_processors:
            return 0
        balance = self.balances.get(group.request_id)
        if balance is None:
            tries = DRAFT_TRIES * self.longest
            balance = Balance(self.longest, LONGEST_REST) if self.lookup else Balance(tries, 0, tries)
            self.balances[group.request_id] = balance
        length = sequence_of(group).get_len()
        count = min(balance.look(length), most)
        if length + most >= self.scorer_worker.model_config.max_model_len:
            return 0
        if count and self.lookup and not self.lookup.look(group, most):
            return 0
        return count

    def _run_no_spec(self, execute_model_req: ExecuteModelRequest, skip_proposer: bool) -> list[SamplerOutput]:
        """A plain step. The draft model sees prompts alone: who does not speculate will not again.

        Nobody asks for its probabilities, and to write them upstream's sampler waits for the GPU twice.
        """
        prompts = any(group.is_prompt for group in execute_model_req.seq_group_metadata_list)
        with self.without_probabilities():
            return super()._run_no_spec(execute_model_req, skip_proposer or not prompts)

    @contextmanager
    def without_probabilities(self) -> Iterator[None]:
        """Let the model's sampler do what plain decoding needs, and no more."""
        sampler = self.scorer_worker.model_runner.sampler
        sampler.include_gpu_probs_tensor = sampler.should_modify_greedy_probs_inplace = False
        try:
            yield
        finally:
            sampler.include_gpu_probs_tensor = sampler.should_modify_greedy_probs_inplace = True
