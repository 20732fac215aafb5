"""The options of extra_args: what vLLM makes of them, and how they are written for it."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "module_utils"))
from host.engine_models import FLAGS, SWITCHES

NO = "no-"
# Options that hold keys of config.json, as JSON.
MAPPINGS = ("rope-scaling", "hf-overrides")


def meant(extra: dict[str, Any]) -> dict[str, Any]:
    """Options by the names that vLLM has inside, with no-NAME: true as NAME: false."""
    found = {}
    for name, value in extra.items():
        if name.startswith(NO) and name[len(NO):] in SWITCHES:
            name, value = name[len(NO):], value is not True
        found[name.replace("-", "_")] = value
    return found


def written(extra: dict[str, Any]) -> dict[str, Any]:
    """Options as vLLM's file of options takes them: there it drops each false without a word."""
    found = {}
    for name, value in extra.items():
        if value is not False:
            found[name] = value
        elif name in SWITCHES:
            found[NO + name] = True
    return found


def faults(extra: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Options that would not hold, as (option, what is expected, next step)."""
    for name, value in extra.items():
        switch = name[len(NO):] if name.startswith(NO) else ""
        if switch in SWITCHES and value is not True:
            yield name, "true", f"Write {switch}: true or {switch}: false."
        elif switch in SWITCHES and switch in extra:
            yield name, f"{switch} or {name}, not both", "Leave one of them out."
        elif name in SWITCHES | FLAGS and not isinstance(value, bool):
            yield name, "true or false, without quotes", "Correct the value."
        elif value is False and name not in SWITCHES | FLAGS:
            yield name, "a value that vLLM takes for it: false would be dropped without a word", "Leave it out."
        elif name == "rope-theta" and "rope_theta" not in overrides({name: value}):
            yield name, "a number", "Correct the value."
        elif name in MAPPINGS and mapping(value) is None:
            yield name, "a text that holds a JSON mapping", "Correct the text."
        elif name == "hf-overrides" and "rope_parameters" in (mapping(value) or {}):
            yield name, "rope_theta and rope_scaling in place of rope_parameters, which the engine does not know", \
                "Write them so."


def mapping(value: Any) -> dict[str, Any] | None:
    """The mapping in a JSON text; None where there is none."""
    try:
        said = json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def overrides(extra: dict[str, Any]) -> dict[str, Any]:
    """Keys that the options put in place of config.json's."""
    found: dict[str, Any] = {}
    if (scaling := mapping(extra.get("rope-scaling"))) is not None:
        found["rope_scaling"] = scaling
    with contextlib.suppress(KeyError, TypeError, ValueError):
        found["rope_theta"] = float(extra["rope-theta"])
    return {**found, **(mapping(extra.get("hf-overrides")) or {})}
