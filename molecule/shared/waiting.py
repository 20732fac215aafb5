"""What a fleet does in its own time is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(read: Callable[[], Any], what: str, is_there: Callable[[Any], bool] = bool, seconds: float = 120) -> Any:
    """What `read` says, as soon as `is_there` holds of it; AssertionError, saying `what`, where it never does."""
    end = time.monotonic() + seconds
    while not is_there(found := read()):
        assert time.monotonic() < end, f"{what}: {found}"
        time.sleep(1)
    return found
