"""Options of the roles' argument_specs, and whether a value is of the type that an option names."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from .findings import is_integer

ROLES = Path(__file__).resolve().parents[2] / "roles"
TRUTH = {"true", "yes", "on", "false", "no", "off"}
NUMBERS = {"int": "-?[0-9]+", "float": "-?[0-9]+([.][0-9]+)?"}


def is_number(value: Any) -> bool:
    """Return whether `value` is an integer or a float; True and False are not."""
    return isinstance(value, float) or is_integer(value)


# Type of an option -> (test of a value, what is expected). Ansible converts values before it tests them: it takes
# true for an integer and a text for a list.
TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "true or false, without quotes"),
    "int": (is_integer, "an integer, without quotes"),
    "float": (is_number, "a number, without quotes"),
    "str": (lambda value: isinstance(value, str), "a text"),
    "path": (lambda value: isinstance(value, str), "a path"),
    "list": (lambda value: isinstance(value, list), "a list"),
    "dict": (lambda value: isinstance(value, dict), "a mapping"),
    "raw": (lambda value: True, "anything"),
}


@functools.cache
def entry_points(role: str) -> dict[str, dict[str, dict]]:
    """Options of a role by entry point."""
    specs = yaml.load((ROLES / role / "meta" / "argument_specs.yml").read_text(), yaml.CSafeLoader)["argument_specs"]
    return {name: entry.get("options") or {} for name, entry in specs.items()}


def has_type(value: Any, option: dict) -> bool:
    """Return whether a value, and each element of a list, is of the type that an option names."""
    return TYPES[option["type"]][0](value) and (
        "elements" not in option or all(TYPES[option["elements"]][0](element) for element in value)
    )


def reads_as(value: Any, kind: str) -> bool:
    """Return whether the text of a value reads as one of the type `kind`."""
    if kind == "bool":
        return str(value).lower() in TRUTH
    return kind in NUMBERS and bool(re.fullmatch(NUMBERS[kind], str(value)))


def correction(value: Any, kind: str) -> str:
    """Next step for a value that is not of the type `kind`."""
    quoted = isinstance(value, str) and (kind == "bool" or reads_as(value, kind))
    return "Take the quotes away." if quoted else "Correct the value."
