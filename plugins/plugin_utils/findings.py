"""Values in findings, and checks that more than one filter makes."""

from __future__ import annotations

import json
import re
from typing import Any


def shown(value: Any) -> str:
    """A value of the inventory as JSON, so that "4" and 4 differ."""
    try:
        return json.dumps(value, default=str)
    except TypeError:  # YAML has keys that JSON has not, such as dates.
        return str(value)


# Paths that nginx and systemd's units take as they are: no specifier, glob, quote, blank or line break.
# Neither `//` nor `.` or `..` as a part: such a path means another directory than it seems to, the root at worst.
PLAIN_PATH = re.compile(r"(/(?!\.{1,2}(/|\Z))[A-Za-z0-9._+@-]+)+/?")
PLAIN_PATH_FORM = "an absolute path of letters, digits and ._+@-, without . or .. as a part"


def is_plain_path(value: Any) -> bool:
    """Return whether `value` is a path that can stand in a unit or in nginx's configuration."""
    return isinstance(value, str) and bool(PLAIN_PATH.fullmatch(value))


def is_integer(value: Any) -> bool:
    """Return whether `value` is an integer; True and False, which Python counts as such, are not."""
    return isinstance(value, int) and not isinstance(value, bool)
