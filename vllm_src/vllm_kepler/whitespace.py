"""JSON of a guide without whitespace between its tokens.

vLLM 0.9.2 is unchanged: `register` puts this in place of its function. Upstream allows any whitespace there, and small
models fill their answer with it. The compiler's pattern of whitespace is no bound: it may be repeated.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from vllm.model_executor.guided_decoding import guidance_decoding
from vllm.sampling_params import GuidedDecodingParams


def bounding(upstream: Any) -> Any:
    """Make what compiles a guide compile one without whitespace, unless the request has a pattern of it."""

    @functools.wraps(upstream)
    def processor_of(guided: GuidedDecodingParams, tokenizer: Any) -> Any:
        return upstream(replace(guided, disable_any_whitespace=guided.whitespace_pattern is None), tokenizer)

    return processor_of


def register() -> None:
    """Put this in the place of upstream's; once more changes nothing."""
    plain = guidance_decoding.get_local_guidance_guided_decoding_logits_processor
    if not hasattr(plain, "__wrapped__"):
        guidance_decoding.get_local_guidance_guided_decoding_logits_processor = bounding(plain)
