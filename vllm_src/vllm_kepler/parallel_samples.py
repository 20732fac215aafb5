"""Streams of several samples of one prompt, without losing tokens.

`register` replaces vLLM's function. With its V1 engine this can go.
"""

from __future__ import annotations

import functools
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind


def from_seq_group(upstream: Any) -> Any:
    """Make a new output for each step of a request of several samples, of those samples that have something new.

    When the first sample ends upstream makes two outputs in a step, and the second one, without tokens, overwrites the
    first. And the API cannot stream log-probabilities of a sample without a token.
    """

    @functools.wraps(upstream)
    def from_seq_group(cls: type[RequestOutput], seq_group: Any, use_cache: bool, several: dict[str, Any]) -> Any:
        group = several.get(seq_group.request_id)
        if group is None or seq_group.sampling_params.output_kind != RequestOutputKind.DELTA:
            return upstream(cls, seq_group, use_cache, several)
        found = upstream(cls, seq_group, False, several)
        if found is None:
            return None
        begun = [sample.get_output_len() > 0 for sample in group.assembled_seq_group.seqs]
        found.outputs = [output for output in found.outputs if output.token_ids or not begun[output.index]]
        return found if found.outputs else None

    return from_seq_group


def register() -> None:
    """Replace upstream's function; a second call changes nothing."""
    plain = RequestOutput.from_seq_group.__func__
    if not hasattr(plain, "__wrapped__"):
        RequestOutput.from_seq_group = classmethod(from_seq_group(plain))
