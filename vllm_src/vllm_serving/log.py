"""Parse vLLM's log: start phases, errors, progress."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .client import PROBE_MARK

Phases = Sequence[tuple[str, str]]
COLOR = re.compile(r"\x1b\[[0-9;]*m")
# As Python (a worker, too), argparse and pydantic write it, and as this project does.
ERROR = re.compile(
    r"(?:^(?:\(\w+ pid=\d+\) )?|\] |^\S+(?: \w+)?: )((?:[\w.]*(?:Error|Exception|Exit)|error): .+)"
    r"|(Value error, .+)|^(\S+: found .+; expected .+)"
)
# These say that there is an error, and not which.
EMPTY = re.compile(r"[Ss]ee (?:the )?stack ?trace|Inspect the stacktrace|validation errors? for|CancelledError")

# More shapes than a start has; a server that runs for months must not keep them all.
SHAPES = 10_000


def phase_of(line: str, phases: Phases) -> str | None:
    """What the server is at after this line; None where the line does not say."""
    for pattern, phase in phases:
        if found := re.search(pattern, line):
            return phase.format(*found.groups())
    return None


def error_of(line: str) -> str | None:
    """The error that a line names; None for any other line."""
    found = ERROR.search(line.strip())
    message = found[1] or found[2] or found[3] if found else None
    return message[:300] if message and not EMPTY.search(message) else None


def is_probe(line: str) -> bool:
    """Return whether a line of the access log is about a probe of the supervisor."""
    return PROBE_MARK in line


class Log:
    """The output of a server, line by line.

    phases: of a start, as vLLM's table has them: pattern of a line, text.

    Attributes:
        phase: what the server is at.
        error: the last error that it named.
        shapes: the lines so far, without their numbers: a line that only repeats is no progress.
    """

    def __init__(self, phases: Phases) -> None:
        self.phases, self.phase = phases, "starting vLLM"
        self.error: str | None = None
        self.shapes: set[str] = set()
        self._rest = b""

    def feed(self, output: bytes) -> list[str]:
        """Take more output; return the whole lines to pass on. A progress bar's carriage returns end lines too."""
        *whole, self._rest = re.split(b"[\r\n]+", self._rest + output)
        lines = [line.decode("utf-8", "replace") for line in whole if line]
        for line in lines:
            plain = COLOR.sub("", line)
            self.phase = phase_of(plain, self.phases) or self.phase
            self.error = error_of(plain) or self.error
            if len(self.shapes) < SHAPES:
                self.shapes.add(re.sub(r"\d+", "0", plain))
        return [line for line in lines if not is_probe(line)]
