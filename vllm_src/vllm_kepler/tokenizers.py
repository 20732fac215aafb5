"""One tokenizer for a model and its adapters.

vLLM 0.9.2 is unchanged: `register` puts this in place of its functions.
"""

from __future__ import annotations

from typing import Any

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


def register() -> None:
    """Put these in the place of upstream's; once more changes nothing."""
    TokenizerGroup.get_lora_tokenizer, TokenizerGroup.get_lora_tokenizer_async = own, own_async
