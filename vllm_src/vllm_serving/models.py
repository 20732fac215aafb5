"""Check of a model's files for what the engine cannot serve, which no further start would repair."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import envs, parsers
from .checkpoint import adapters, speculation
from .checkpoint.engine import Engine, judge
from .checkpoint.errors import FileError
from .checkpoint.files import find_gguf, find_gguf_alone, read_adapter, snapshot_of, split_name, try_json
from .checkpoint.gguf_model import write_model
from .errors import ConfigError


def path_of(options: Mapping[str, Any], environment: Mapping[str, str]) -> Path:
    """Return the directory of the model's files, of its own or in the hub's cache, or a file. It may not exist."""
    name = str(options["model"])
    if name.startswith("/"):
        return Path(name)
    cache = Path(environment.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"
    return Path(snapshot_of(str(cache), name, str(options.get("revision") or "main")))


def with_files(options: Mapping[str, Any], environment: Mapping[str, str], directory: Path) -> Mapping[str, Any]:
    """Return the options of a server, with the files of a model that is a GGUF file alone written to `directory`.

    Raises ConfigError for a file that cannot be served.
    """
    try:
        path = path_of(options, environment)
        found = find_gguf_alone(str(path))
        name = str(options["model"])
        if not name.startswith("/") and split_name(name)[1] and not path.exists():
            raise ConfigError(f"model: found no {path}; expected {name} in the hub's cache. Fetch it with "
                              "playbooks/models.yml, or correct the name.")
        if found is None:
            return options
        write_model(found, str(directory))
    except FileError as error:
        raise ConfigError(str(error)) from None
    return {**options, "model": str(directory)}


def refusal(options: Mapping[str, Any], environment: Mapping[str, str]) -> str | None:
    """Return why the engine can never serve the model and its draft, in one sentence; None if nothing names a reason.

    vLLM reports a text that is no JSON.
    """
    settings = speculation.mapping(options.get(speculation.OPTION)) or {}
    for key, found, expected in speculation.faults(settings) if settings else ():
        return f"{speculation.OPTION}.{key}: found {found}; expected {expected}. Correct extra_args."
    draft = refusal_of(settings, environment) if "model" in settings else None
    return refusal_of(options, environment) or draft


def refusal_of(options: Mapping[str, Any], environment: Mapping[str, str]) -> str | None:
    """Return why the engine can never serve one model, in one sentence; None if its files name no reason."""
    directory = path_of(options, environment)
    # vLLM reports what is wrong with a file that cannot be read.
    config = try_json(str(directory / "config.json"))
    try:
        # Of the server's own model it was made one: a draft is left.
        if find_gguf_alone(str(directory)):
            found, expected = speculation.ALONE
            return f"{directory}: found {found} for a draft model; expected {expected}. Name another draft model."
        in_gguf = config is not None and find_gguf(str(directory)) is not None
    except FileError as error:
        return str(error)
    tokenizer = try_json(str(directory / "tokenizer_config.json"))
    capability = envs.capability(environment)
    engine = Engine("stock" if capability else "port", capability)
    for found, expected in judge(config, (), tokenizer, options, engine, in_gguf):
        return f"{directory}: found {found}; expected {expected}. Choose another checkpoint of the model."
    return None


def parser_arguments(options: Mapping[str, Any], environment: Mapping[str, str]) -> list[str]:
    """Return the arguments with which vLLM parses tool calls and reasoning; none if the instance wants none."""
    if not envs.wants_parsers(environment) or "tokenizer" in options:
        return []
    directory = path_of(options, environment)
    config, tokenizer = (try_json(str(directory / name)) or {} for name in ("config.json", "tokenizer_config.json"))
    return parsers.arguments(directory, options, config, tokenizer)


def adapter_arguments(options: Mapping[str, Any], environment: Mapping[str, str]) -> list[str]:
    """Return the arguments with which vLLM serves the adapters of an instance; none without adapters.

    All are in a batch at once, and of the rank that the largest has, unless the options say otherwise. Raises
    ConfigError for an adapter that cannot be served.
    """
    named = envs.adapters(environment)
    if not named:
        return []
    for option, found, expected in adapters.option_faults(options, len(named)):
        raise ConfigError(f"extra_args.{option}: found {found}; expected {expected}. Correct it, or leave it out.")
    facts = {name: read_adapter(str(directory)) for name, directory in named.items()}
    ranks = [rank for rank in (adapters.rank_of(adapter["config"] or {}) for adapter in facts.values()) if rank]
    room = options.get("max-lora-rank") or adapters.room_for(ranks)
    for name, adapter in facts.items():
        for found, expected in adapters.faults(adapter, room)[:1]:
            raise ConfigError(f"adapter {name} in {named[name]}: found {found}; expected {expected}. Choose another "
                              "adapter, or merge it into its model.")
    at_once = options.get("max-loras", len(named))
    # All stay in the host's memory: their files may be gone when they are wanted again.
    derived = {"max-lora-rank": room, "max-loras": at_once, "max-cpu-loras": max(at_once, len(named))}
    return [
        "--enable-lora",
        *[part for name, value in derived.items() if name not in options for part in (f"--{name}", str(value))],
        "--lora-modules", *[json.dumps({"name": name, "path": str(directory)}) for name, directory in named.items()],
    ]
