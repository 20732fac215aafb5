"""Parse vLLM's log: start phases, errors, progress."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import ModuleType

from .client import PROBE_MARK

Phases = Sequence[tuple[str, str]]
COLOR = re.compile(r"\x1b\[[0-9;]*m")
# As Python, in a worker too, argparse and pydantic write an error, and as this project does.
ERROR = re.compile(
    r"(?:^(?:\(\w+ pid=\d+\) )?|\] |^\S+(?: \w+)?: )((?:[\w.]*(?:Error|Exception|Exit)|error): .+)"
    r"|(Value error, .+)|^(\S+: found .+; expected .+)"
)
# Lines that report an error without naming it.
EMPTY = re.compile(r"[Ss]ee (?:the )?stack ?trace|Inspect the stacktrace|validation errors? for|CancelledError")

# Lines of a server over several hosts (vllm_serving.head).
HOSTS_MISSING, HOSTS_COMPLETE = "waits for hosts", "all hosts are there"
# More patterns than a start has: a server that runs for months must not keep them all.
MOST_PATTERNS = 10_000


def phase_of(line: str, phases: Phases) -> str | None:
    """Return the phase that a line begins, or None."""
    for pattern, phase in phases:
        if found := re.search(pattern, line):
            return phase.format(*found.groups())
    return None


def error_of(line: str) -> str | None:
    """Return the error that a line names, or None."""
    found = ERROR.search(line.strip())
    message = found[1] or found[2] or found[3] if found else None
    return message[:300] if message and not EMPTY.search(message) else None


def is_probe(line: str) -> bool:
    """Return whether a line of the access log is about a probe of the supervisor."""
    return PROBE_MARK in line


class Log:
    """The output of a server, line by line.

    table: of vLLM's version: phases of a start, and which lines are errors of requests or the end of an engine.

    Attributes:
        phase: what the server is doing.
        error: the last error that it reported of itself.
        engine_ended: whether it reported that an engine or a rank is gone.
        waits_for_hosts: whether other hosts of the server are missing.
        seen_patterns: the lines so far without their numbers: one that only repeats is no progress.
    """

    def __init__(self, table: ModuleType) -> None:
        self.phases, self.phase = table.PHASES, "starting vLLM"
        self.request_faults = re.compile(table.REQUEST_FAULTS)
        self.engine_ends = [re.compile(pattern) for pattern in table.ENGINE_ENDS]
        self.error: str | None = None
        self.engine_ended = False
        self.waits_for_hosts = False
        self.seen_patterns: set[str] = set()
        self._rest = b""

    def feed(self, output: bytes) -> list[str]:
        """Take more output; return the whole lines to pass on. A progress bar's carriage returns end lines too."""
        *whole, self._rest = re.split(b"[\r\n]+", self._rest + output)
        lines = [line.decode("utf-8", "replace") for line in whole if line]
        for line in lines:
            plain = COLOR.sub("", line)
            self.phase = phase_of(plain, self.phases) or self.phase
            if plain.startswith((HOSTS_MISSING, HOSTS_COMPLETE)):
                self.waits_for_hosts = plain.startswith(HOSTS_MISSING)
                self.phase = plain if self.waits_for_hosts else "starting vLLM"
            self.note_fault(plain)
            if len(self.seen_patterns) < MOST_PATTERNS:
                self.seen_patterns.add(re.sub(r"\d+", "0", plain))
        return [line for line in lines if not is_probe(line)]

    def note_fault(self, line: str) -> None:
        """Keep the error of the server that a line names. What follows the end of an engine is its consequence."""
        if self.engine_ended or self.request_faults.search(line):
            return
        self.error = error_of(line) or self.error
        if ended := next(filter(None, (pattern.search(line) for pattern in self.engine_ends)), None):
            self.engine_ended, self.error = True, self.error or ended[0]
