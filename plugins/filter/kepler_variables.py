"""Filter that judges the inventory's variables by what the roles say of theirs, without a host."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from ansible import context
from ansible.parsing.splitter import parse_kv

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugin_utils"))
from kepler_controller.findings import finding, is_integer, shown

ROLES = Path(__file__).resolve().parents[2] / "roles"
TRUTH = {"true", "yes", "on", "false", "no", "off"}
# Type of an option -> (test of a value, what is expected).
TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "true or false, without quotes"),
    "int": (is_integer, "an integer, without quotes"),
    "str": (lambda value: isinstance(value, str) or is_integer(value), "a text"),
    "path": (lambda value: isinstance(value, str), "a path"),
    "list": (lambda value: isinstance(value, list), "a list"),
    "dict": (lambda value: isinstance(value, dict), "a mapping"),
    "raw": (lambda value: True, "anything"),
}


def options() -> dict[str, dict]:
    """Every variable of every role, as its argument_specs describe it."""
    found: dict[str, dict] = {}
    for path in sorted(ROLES.glob("*/meta/argument_specs.yml")):
        for entry in yaml.safe_load(path.read_text())["argument_specs"].values():
            found.update(entry.get("options") or {})
    return found


def facts(node: Any) -> Iterator[str]:
    """Names that the tasks below `node` of a task file set as facts."""
    if isinstance(node, dict):
        made = node.get("ansible.builtin.set_fact")
        yield from made if isinstance(made, dict) else ()
        for part in node.values():
            yield from facts(part)
    elif isinstance(node, list):
        for part in node:
            yield from facts(part)


def exported() -> set[str]:
    """Names of the facts that roles export."""
    files = ROLES.glob("*/tasks/*.yml")
    return {name for path in files for name in facts(yaml.load(path.read_text(), yaml.CSafeLoader))}


def given_as_text() -> set[str]:
    """Names that the command line gives as `-e name=value`, which makes every value a text."""
    texts = context.CLIARGS.get("extra_vars") or ()
    return {name for text in texts if text[:1] not in ("@", "{", "[", "/", ".") for name in parse_kv(text)}


def reads_as(value: Any, kind: str) -> bool:
    """Whether a text of the command line reads as a value of the type `kind`."""
    if kind == "bool":
        return str(value).lower() in TRUTH
    return kind == "int" and str(value).removeprefix("-").isdigit()


def typed_findings(name: str, value: Any, option: dict, as_text: bool) -> list[dict[str, str]]:
    """Findings about the value of a variable that a role knows."""
    if isinstance(value, str) and "{{" in value:  # its type shows where it is rendered
        return []
    accepts, expected = TYPES[option["type"]]
    if not accepts(value) and not (as_text and reads_as(value, option["type"])):
        quoted = isinstance(value, str) and (reads_as(value, option["type"]) or option["type"] == "bool")
        return [finding(
            "error", name, shown(value), expected, "Take the quotes away." if quoted else "Correct the value.",
        )]
    choices = option.get("choices", [value])
    if value not in choices:
        return [finding("error", name, shown(value), f"one of {', '.join(choices)}", "Correct the value.")]
    return []


def variable_findings(values: dict[str, Any], others: Iterable[str], judged: Iterable[str]) -> list[dict[str, str]]:
    """Findings about names that no role knows, and about values of another type than the role asks for.

    values: what inventory, facts and command line say of a host, not rendered. others: what playbooks take beside
    the options of roles. judged: options that somebody else judges.
    """
    known = options()
    names = {*known, *exported(), *others}
    prefixes = tuple(f"{path.name}_" for path in ROLES.iterdir() if path.is_dir())
    as_text = given_as_text()
    found = []
    for name, value in sorted(values.items()):
        if name in known:
            if name not in judged:
                found += typed_findings(name, value, known[name], name in as_text)
        elif name not in names and not name.startswith(("_", "ansible_")):
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.85)
            if near:
                found.append(finding(
                    "error", name, "a variable that no role has", near[0], f"Did you mean {near[0]}? Correct the name.",
                ))
            elif name.startswith(prefixes):
                role = next(prefix for prefix in prefixes if name.startswith(prefix)).rstrip("_")
                found.append(finding(
                    "warning", name, "a variable that no role has", f"a variable of roles/{role}/README.md",
                    "Correct the name, or take it out.",
                ))
    return found


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {"variable_findings": variable_findings}
