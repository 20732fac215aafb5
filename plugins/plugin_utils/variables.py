"""Names of the variables that roles and playbooks read, and of their tags."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from ..module_utils.findings import finding
from .argument_specs import ROLES, entry_points

PLAYBOOKS = ROLES.parent / "playbooks"
# Names of the project that are no option of a role, and that no playbook has a default for.
OTHERS = ("kepler_lock", "profile", "qualification")


@functools.cache
def options() -> dict[str, dict]:
    """Every variable of every role, as its argument_specs describe it."""
    found: dict[str, dict] = {}
    for tasks in sorted(ROLES.glob("*/tasks")):
        for entry, variables in entry_points(tasks.parent.name).items():
            if (tasks / f"{entry}.yml").is_file():
                found.update(variables)
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


@functools.cache
def exported() -> set[str]:
    """Names of the facts that roles export."""
    files = ROLES.glob("*/tasks/*.yml")
    return {name for path in files for name in facts(yaml.load(path.read_text(), yaml.CSafeLoader))}


@functools.cache
def of_playbooks() -> set[str]:
    """Names that playbooks have a default for."""
    found = (re.findall(r"(?<![\w.])([a-z]\w+) \| default", path.read_text()) for path in PLAYBOOKS.glob("*.yml"))
    return {name for names in found for name in names}


@functools.cache
def known() -> tuple[set[str], tuple[str, ...]]:
    """Every name, and the beginnings of names that roles have as their own."""
    prefixes = (f"{path.name}_" for path in ROLES.iterdir())
    return (
        {*options(), *exported(), *of_playbooks(), *OTHERS},
        tuple(prefix for prefix in prefixes if any(name.startswith(prefix) for name in options())),
    )


@functools.cache
def tags() -> set[str]:
    """Tags of all tasks."""
    lists = (re.findall(r"\btags: \[(.*?)\]", path.read_text())
             for path in (*ROLES.glob("*/tasks/*.yml"), *PLAYBOOKS.glob("*.yml")))
    return {name for found in lists for name in re.findall(r"\w+", " ".join(found))}


def near(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelled one means."""
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.85)), None)


def unknown_names(names: Iterable[str]) -> list[dict[str, str]]:
    """Findings about names that nothing reads: an error where a known one is near, a warning within a role's own."""
    found = []
    everything, prefixes = known()
    for name in names:
        if name in everything or name.startswith(("_", "ansible_")):
            continue
        if meant := near(name, everything):
            found.append(finding(
                "error", name, "a variable that nothing reads", meant, f"Did you mean {meant}? Correct the name.",
            ))
        elif name.startswith(prefixes):
            role = next(prefix for prefix in prefixes if name.startswith(prefix)).rstrip("_")
            found.append(finding(
                "warning", name, "a variable that nothing reads", f"a variable of roles/{role}/README.md",
                "Correct the name, or take it out.",
            ))
    return found
