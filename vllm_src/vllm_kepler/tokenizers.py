"""One tokenizer for a model and its adapters, and tokenizers as transformers 5 writes them.

vLLM 0.9.2 and transformers are unchanged: `register` puts this in place of their functions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from vllm.transformers_utils.tokenizer_group import TokenizerGroup


def own(self: TokenizerGroup, lora_request: Any = None) -> Any:
    """Return the model's tokenizer.

    Upstream takes the one beside the adapter, whose further tokens the model's embedding may lack: such a token ends
    the engine.
    """
    return self.tokenizer


async def own_async(self: TokenizerGroup, lora_request: Any = None) -> Any:
    """As `own`."""
    return self.tokenizer


def take_lists(plain: Callable[..., None]) -> Callable[..., None]:
    """Take a list of special tokens without names, which transformers 4 has under another key of its config."""

    def set_special_tokens(self: PreTrainedTokenizerBase, special_tokens: Any) -> None:
        if isinstance(special_tokens, list):
            self.extra_special_tokens = {}
            self._special_tokens_map["additional_special_tokens"] += special_tokens
        else:
            plain(self, special_tokens)

    set_special_tokens.takes_lists = True  # type: ignore[attr-defined]
    return set_special_tokens


def register() -> None:
    """Put these in the place of upstream's; once more changes nothing."""
    TokenizerGroup.get_lora_tokenizer, TokenizerGroup.get_lora_tokenizer_async = own, own_async
    # The name that the class has in transformers 5, in the module in which transformers looks for it.
    sys.modules["transformers"].TokenizersBackend = PreTrainedTokenizerFast  # type: ignore[attr-defined]
    plain = PreTrainedTokenizerBase._set_model_specific_special_tokens
    if not getattr(plain, "takes_lists", False):
        PreTrainedTokenizerBase._set_model_specific_special_tokens = take_lists(plain)
