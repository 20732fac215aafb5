"""The scheduler of a server that speculates: upstream's, which decides for each sequence of a step whether it does.

vLLM has to know before a step runs: it handles the output of a plain step while the GPU works at the next one, and that
of a step that checks proposals, which may be several tokens of a sequence, at once.
"""

from __future__ import annotations

from typing import Any

from vllm.config import SpeculativeConfig
from vllm.core.scheduler import Scheduler, SchedulerOutputs
from vllm.sequence import SequenceGroupMetadata

from .lookup import Balance, proposal

# Of prompt lookup: in a text that repeats nothing, one proposal in so many steps.
LONGEST_REST = 127
# Whole proposals that a draft model may fail with before it is left alone for the rest of an answer.
DRAFT_TRIES = 8


class SpeculativeScheduler(Scheduler):
    """Lets the sequences speculate where that pays.

    A sequence does not speculate while it rests (see Balance), where nothing is found, or next to its longest length.
    A request with a seed or a guide never does: the seed promises what plain decoding samples, and a guide takes each
    token once.
    """

    def __init__(self, speculative: SpeculativeConfig, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.most = speculative.num_speculative_tokens
        self.disable_by_batch_size = speculative.disable_by_batch_size
        self.sizes = None
        if speculative.method == "ngram":
            self.sizes = speculative.prompt_lookup_min, speculative.prompt_lookup_max
        self.balances: dict[str, Balance] = {}

    def schedule(self) -> tuple[list[SequenceGroupMetadata], SchedulerOutputs, bool]:
        groups, outputs, overlaps = super().schedule()
        outputs.num_lookahead_slots = self.choose(groups, outputs.running_queue_size < self.disable_by_batch_size)
        return groups, outputs, overlaps and not outputs.num_lookahead_slots

    def get_and_reset_finished_requests_ids(self) -> list[str]:
        finished: list[str] = super().get_and_reset_finished_requests_ids()
        for name in finished:
            self.balances.pop(name, None)
        return finished

    def choose(self, groups: list[SequenceGroupMetadata], everywhere: bool) -> int:
        """Say of each sequence of a step whether it speculates, and return the tokens of its proposals, 0 without any.

        All proposals of a step have as many tokens as the longest that a sequence has earned. `everywhere`: whether any
        sequence may speculate.
        """
        wanted = [self.tokens_for(group, everywhere) for group in groups]
        count = max(wanted, default=0)
        for group, tokens in zip(groups, wanted, strict=True):
            group.num_speculative_tokens = count if tokens else 0
            if tokens:
                self.balances[group.request_id].proposed = sequence_of(group).get_len(), count
        return count

    def tokens_for(self, group: SequenceGroupMetadata, everywhere: bool) -> int:
        """Return how many tokens to propose for a sequence in this step."""
        if group.is_prompt:
            # Of a sequence that was thrown out of the cache nothing is known.
            self.balances.pop(group.request_id, None)
            return 0
        if group.sampling_params.seed is not None or group.sampling_params.logits_processors:
            return 0
        balance = self.balances.get(group.request_id)
        if balance is None:
            tries = DRAFT_TRIES * self.most
            balance = Balance(self.most, LONGEST_REST) if self.sizes else Balance(tries, 0, tries)
            self.balances[group.request_id] = balance
        sequence = sequence_of(group)
        length = sequence.get_len()
        count = min(balance.look(length), self.most)
        if not count or not everywhere or length + self.most >= self.scheduler_config.max_model_len:
            return 0
        if self.sizes and proposal(sequence, self.sizes, count) is None:
            return 0
        return count


def sequence_of(group: SequenceGroupMetadata) -> Any:
    """Data of a group's sequence: several samples of a request are groups of their own."""
    (data,) = group.seq_data.values()
    return data
