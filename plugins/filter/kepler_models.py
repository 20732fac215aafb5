"""Filters for models of the hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ansible_collections.kepler.vllm.plugins.plugin_utils.engine_options import models_of

# Options of vLLM with which the same files are another model for the engine.
JUDGED = ("hf-overrides", "rope-scaling", "rope-theta", "tokenizer")


def hub_models(instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Models of the hub that instances read, drafts too, each once: [{name, revision, uses}].

    A path is a directory; uses: engine of each server of it, and its options that decide what the engine reads.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for instance in instances:
        extra = instance.get("extra_args") or {}
        for key, named in models_of(instance).items():
            if not named["model"].startswith("/"):
                options = {name: value for name, value in extra.items() if key == "model" and name in JUDGED}
                use = {"engine": instance.get("engine") or "port", "options": options}
                uses = found.setdefault((named["model"], named["revision"] or "main"), [])
                uses += [use] if use not in uses else []
    return [{"name": name, "revision": revision, "uses": uses} for (name, revision), uses in found.items()]


def model_record_file(asked: dict[str, str], directory: str) -> str:
    """File of what was recorded for a model and revision."""
    return f"{directory}/{re.sub('[^A-Za-z0-9._-]', '--', asked['name'])}@{asked['revision'].replace('/', '-')}.json"


def model_record(record: dict[str, Any]) -> dict[str, Any]:
    """Of a host's record what holds everywhere: name, revision, sha256 of each file."""
    return {
        "name": record["name"], "revision": record["revision"],
        "files": {name: file["sha256"] for name, file in sorted(record["files"].items())},
    }


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {"hub_models": hub_models, "model_record": model_record, "model_record_file": model_record_file}
