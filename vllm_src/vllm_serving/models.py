"""Check of a model's files for what the engine cannot serve, which no further start would repair."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoint.engine import refusals
from .checkpoint.errors import FileError
from .checkpoint.files import find_gguf, snapshot_of, try_json


def directory_of(options: Mapping[str, Any], environment: Mapping[str, str]) -> Path:
    """Return the directory of the model's files, of its own or in the hub's cache. It may not exist."""
    name = str(options["model"])
    if name.startswith("/"):
        return Path(name)
    cache = Path(environment.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"
    return Path(snapshot_of(str(cache), name, str(options.get("revision") or "main")))


def refusal(options: Mapping[str, Any], environment: Mapping[str, str]) -> str | None:
    """Return why the engine can never serve the model, in one sentence; None if its files name no reason."""
    directory = directory_of(options, environment)
    # vLLM reports what is wrong with a file that cannot be read.
    config = try_json(str(directory / "config.json"))
    # Overrides may give it another architecture.
    if config is None or {"hf-overrides", "hf-config-path", "config-format"} & set(options):
        return None
    tokenizer = None if "tokenizer" in options else try_json(str(directory / "tokenizer_config.json"))
    try:
        in_gguf = find_gguf(str(directory)) is not None
    except FileError as error:
        return str(error)
    for found, expected in refusals(config, tokenizer, options.get("trust-remote-code") is True, in_gguf):
        return f"{directory}: found {found}; expected {expected}. Choose another checkpoint of the model."
    return None
