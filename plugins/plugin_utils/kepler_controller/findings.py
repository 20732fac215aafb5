"""One form for all that is found wrong.

A finding is a mapping of five strings: severity (`error` or `warning`), variable (what to look at: a variable, or
`host` where no variable has a say), found, expected and next_step. A judgement returns all findings, never the first.
"""

from __future__ import annotations

import json
from typing import Any

SEVERITIES = ("error", "warning")


def finding(severity: str, variable: str, found: str, expected: str, next_step: str) -> dict[str, str]:
    """One finding."""
    return {"severity": severity, "variable": variable, "found": found, "expected": expected, "next_step": next_step}


def shown(value: Any) -> str:
    """A value of the inventory as JSON, so that "4" and 4 differ."""
    return json.dumps(value, default=str)


def is_integer(value: Any) -> bool:
    """Whether `value` is an integer; True and False, which Python counts as such, are not."""
    return isinstance(value, int) and not isinstance(value, bool)
