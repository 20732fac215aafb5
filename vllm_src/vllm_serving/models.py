"""Whether a model's files name what the engine does not know: no further start would repair that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .engine import unknown
from .model_config import Refused, translate


def directory_of(options: Mapping[str, Any], environment: Mapping[str, str]) -> Path:
    """Where the model's files lie: its own directory, or the hub's cache. It need not be there."""
    name = str(options["model"])
    if name.startswith("/"):
        return Path(name)
    cache = Path(environment.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"
    model = cache / f"models--{name.replace('/', '--')}"
    revision = str(options.get("revision") or "main")
    branch = model / "refs" / revision
    return model / "snapshots" / (branch.read_text().strip() if branch.is_file() else revision)


def content(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None where there is none: vLLM says what is wrong with it."""
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def refusal(options: Mapping[str, Any], environment: Mapping[str, str]) -> str | None:
    """What keeps the engine from ever serving the model, in one sentence; None where its files say nothing of it."""
    directory = directory_of(options, environment)
    config = content(directory / "config.json")
    # Overrides may give it another architecture.
    if config is None or {"hf-overrides", "hf-config-path", "config-format"} & set(options):
        return None
    tokenizer = None if "tokenizer" in options else content(directory / "tokenizer_config.json")
    try:
        translate(config)
        found = unknown(config, tokenizer, options.get("trust-remote-code") is True, any(directory.glob("*.gguf")))
    except Refused as refused:
        found = [(refused.found, refused.expected)]
    if not found:
        return None
    what, expected = found[0]
    return f"{directory}: found {what}; expected {expected}. Choose another checkpoint of the model."
