"""A tokenizer for the compiler of guides, which changes no text.

The compiler makes tokens of what a guide leaves no choice in. Where the model's tokenizer changes that text first, as
those of Qwen bring it into Unicode's form NFC, the tokens are those of another one: the matcher ends, and vLLM takes
that for the end of the answer.
"""

from __future__ import annotations

import json
from typing import Any


def exact(tokenizer: str) -> str:
    """Return a tokenizer without what changes a text. tokenizer: as the tokenizers library writes it."""
    content = json.loads(tokenizer)
    content["normalizer"] = kept(content.get("normalizer"))
    return json.dumps(content, ensure_ascii=False)


def kept(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return of a normalizer what writes a space as the vocabulary does; None if that is nothing."""
    if normalizer is None:
        return None
    if normalizer["type"] == "Sequence":
        parts = [part for one in normalizer["normalizers"] if (part := kept(one))]
        return {"type": "Sequence", "normalizers": parts} if parts else None
    writes_spaces = normalizer["type"] == "Replace" and normalizer.get("pattern") == {"String": " "}
    return normalizer if writes_spaces or normalizer["type"] == "Prepend" else None
