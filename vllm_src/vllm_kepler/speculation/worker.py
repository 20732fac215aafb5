"""The worker of a server that speculates: upstream's, for the sequences that the scheduler has chosen.

Greedy answers are those of plain decoding: of the proposed tokens those are accepted that the model itself would have
chosen. Proposals are checked as further sequences of the batch, whose steps CUDA graphs can replay.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from vllm.distributed.parallel_state import get_tp_group, init_model_parallel_group
from vllm.model_executor.layers.rejection_sampler import RejectionSampler
from vllm.model_executor.layers.sampler import SamplerOutput
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.sequence import ExecuteModelRequest
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
from .lookup import proposal
from .scheduler import sequence_of


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


class PromptLookup(NGramWorker):
    """Proposes what followed the sequence's last tokens where they stood before."""

    def init_device(self) -> None:
        super().init_device()
        speculative = self.speculative_config
        self.sizes = speculative.prompt_lookup_min, speculative.prompt_lookup_max

    def get_spec_proposals(
        self, execute_model_req: ExecuteModelRequest, seq_ids_with_bonus_token_in_last_step: set[int]
    ) -> SpeculativeProposals:
        """int64 [sequences, count] proposed tokens, -1 for a sequence without, and their probabilities: each is 1."""
        groups, count = execute_model_req.seq_group_metadata_list, execute_model_req.num_lookahead_slots
        found = [
            proposal(sequence_of(group), self.sizes, count) if group.num_speculative_tokens else None
            for group in groups
        ]
        tokens = torch.tensor([ids or [-1] * count for ids in found], dtype=torch.long, device=self.device)
        probabilities = torch.zeros(*tokens.shape, self.vocab_size, device=self.device)
        probabilities.scatter_(2, tokens.clamp(min=0).unsqueeze(2), 1.0)
        lengths = torch.tensor([len(ids or ()) for ids in found], device=self.device)
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
    """Upstream's worker, whose plain steps do what plain decoding does, and no more."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Upstream gives generators to the rows of other sequences where some do not speculate. None here has a seed.
        self.generators = None
        # That a request of the step asks for; None if none does.
        self.most_logprobs: int | None = None

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
        with current_platform.inference_mode():
            return SpecDecodeWorker.execute_model.__wrapped__(self, execute_model_req)

    def start_worker_execution_loop(self) -> None:
        with current_platform.inference_mode():
            while self._run_non_driver_rank():
                pass

    def _configure_model_sampler_for_spec_decode(self) -> None:
        super()._configure_model_sampler_for_spec_decode()
        self.give_probabilities(False)

    def give_probabilities(self, given: bool) -> None:
        """Say whether the sampler gives what proposals are checked by, for which it waits for the GPU twice."""
        sampler = self.scorer_worker.model_runner.sampler
        sampler.include_gpu_probs_tensor = sampler.should_modify_greedy_probs_inplace = given

    def _run_speculative_decoding_step(
        self, execute_model_req: ExecuteModelRequest, num_lookahead_slots: int
    ) -> list[SamplerOutput]:
        groups = execute_model_req.seq_group_metadata_list
        self._metrics.proposals += sum(group.num_speculative_tokens > 0 for group in groups)
        asked = [group.sampling_params.logprobs for group in groups]
        self.most_logprobs = max((count for count in asked if count is not None), default=None)
        self.give_probabilities(True)
        try:
            return super()._run_speculative_decoding_step(execute_model_req, num_lookahead_slots)
        finally:
            self.give_probabilities(False)

    def _create_logprob_lists_from_tensors(
        self, target_logprobs_by_step: torch.Tensor, accepted_token_ids_by_step: torch.Tensor, num_top_k: int
    ) -> tuple[list[Any], ...]:
        """As many as a request of the step asks for: upstream always sorts all logits for the most that one may."""
        if self.most_logprobs is None:
            steps, sequences = accepted_token_ids_by_step.shape
            return self._create_dummy_logprob_lists(sequences, steps, 0)
        return super()._create_logprob_lists_from_tensors(
            target_logprobs_by_step, accepted_token_ids_by_step, self.most_logprobs
        )

    def _run_no_spec(self, execute_model_req: ExecuteModelRequest, skip_proposer: bool) -> list[SamplerOutput]:
        """A plain step. The draft model sees prompts alone: who does not speculate will not again."""
        prompts = any(group.is_prompt for group in execute_model_req.seq_group_metadata_list)
        return super()._run_no_spec(execute_model_req, skip_proposer or not prompts)
