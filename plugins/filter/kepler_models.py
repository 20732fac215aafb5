"""Filters for models of the hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ansible_collections.kepler.vllm.plugins.plugin_utils.engine_options import models_of


def hub_models(instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Models of the hub that instances read, drafts too, each once: [{name, revision, engines}].

    A path is a directory; engines: those that shall serve the model.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for instance in instances:
        for named in models_of(instance).values():
            if not named["model"].startswith("/"):
                engines = found.setdefault((named["model"], named["revision"] or "main"), [])
                engines += [engine for engine in [instance.get("engine") or "port"] if engine not in engines]
    return [{"name": name, "revision": revision, "engines": engines} for (name, revision), engines in found.items()]


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
