"""Count of starts in a row that failed before the server was ready, for the back-off and the limit."""

from __future__ import annotations

import contextlib
from pathlib import Path

# Failed starts in a row; after the last one the unit stays failed.
LIMIT = 5
# Seconds before the second start; each later one waits twice as long.
PAUSE = 10


class Starts:
    """A file in the unit's runtime directory, which systemd keeps from one automatic restart to the next.

    Attributes:
        count: starts before this one.
        reason: why the last of them ended.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "starts"
        self.count, self.reason = 0, ""
        with contextlib.suppress(OSError, ValueError):
            count, _, self.reason = self.path.read_text().partition("\n")
            self.count = int(count)

    def pause(self) -> float:
        """Return the seconds to wait before this start."""
        return PAUSE * 2.0 ** (self.count - 1) if self.count else 0.0

    def write(self, reason: str) -> None:
        """Count this start, and record why it ended."""
        self.path.write_text(f"{self.count + 1}\n{reason}")

    def forget(self) -> None:
        """Begin anew: the server became ready, or was stopped."""
        self.path.unlink(missing_ok=True)
