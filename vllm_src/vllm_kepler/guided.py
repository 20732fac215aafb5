"""Guides as the compiler gets them: JSON without whitespace, choices of any characters, and tokens of the very text.

vLLM 0.9.2 and llguidance are unchanged: `register` puts this in place of their functions.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from typing import Any

import llguidance.hf
from transformers import PreTrainedTokenizerFast
from vllm.model_executor.guided_decoding import guidance_decoding
from vllm.sampling_params import GuidedDecodingParams

from .exact_tokenizer import exact


def bounding(upstream: Any) -> Any:
    """Make what compiles a guide compile one without whitespace, unless the request has a pattern of it.

    Upstream allows any, and small models fill their answer with it. The compiler's pattern of whitespace is no bound:
    it may be repeated. Of choices it makes an expression with escapes that the compiler does not know.
    """

    @functools.wraps(upstream)
    def processor_of(guided: GuidedDecodingParams, tokenizer: Any) -> Any:
        if guided.choice:
            choices = "|".join(re.escape(str(choice)) for choice in guided.choice)
            guided = replace(guided, choice=None, regex=f"({choices})")
        return upstream(replace(guided, disable_any_whitespace=guided.whitespace_pattern is None), tokenizer)

    return processor_of


def tokenizer_of(upstream: Any) -> Any:
    """Make what gives the compiler a tokenizer give it one that changes no text."""

    @functools.wraps(upstream)
    def from_tokenizer(tokenizer: Any, n_vocab: int | None = None, eos_token: int | None = None,
                       slices: list[str] | None = None) -> Any:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            return upstream(tokenizer, n_vocab, eos_token, slices)
        end = tokenizer.eos_token_id if eos_token is None else eos_token
        text = exact(tokenizer.backend_tokenizer.to_str())
        return llguidance.LLTokenizer(text, n_vocab=n_vocab, eos_token=end, slices=slices)

    return from_tokenizer


def register() -> None:
    """Put these in the place of upstream's; once more changes nothing."""
    plain = guidance_decoding.get_local_guidance_guided_decoding_logits_processor
    if not hasattr(plain, "__wrapped__"):
        guidance_decoding.get_local_guidance_guided_decoding_logits_processor = bounding(plain)
        llguidance.hf.from_tokenizer = tokenizer_of(llguidance.hf.from_tokenizer)
