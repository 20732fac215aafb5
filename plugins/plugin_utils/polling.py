"""Action plugins that run a module until its work on the host has ended, and show its progress."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

# Seconds between two looks at a host: a tenth of those spent, for a look takes up to a second of its processor.
SHORTEST, LONGEST = 1.0, 8.0
NEWS = 2.0  # shortest time in seconds between two lines
SAME = 5.0  # shortest time in seconds before a line that was shown is shown again


class Progress:
    """Prints a line when something moved, at most every two seconds; where nothing did, at least every ten."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.started = time.time()
        self.shown = ("", 0.0)

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.time() - self.started

    def silent(self) -> float:
        """Seconds since the last line, or since the start."""
        return time.time() - max(self.started, self.shown[1])

    def show(self, text: str) -> None:
        now = time.time()
        if now - self.shown[1] < (SAME if text == self.shown[0] else NEWS):
            return
        self.shown = (text, now)
        minutes, seconds = divmod(int(self.seconds()), 60)
        spent = f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
        display.display(f"  {self.what}: {text} · {spent}", color="cyan")

    def wait(self) -> None:
        """Until the host is to be looked at again."""
        time.sleep(min(max(self.seconds() / 10, SHORTEST), LONGEST))


class PollingAction(ActionBase):
    """Runs the module of its name again as long as it answers `running`.

    The module's answers: `running`, `progress` (one line), and `started` if that call has started the work. Its option
    `fresh` is true in the first call alone.
    """

    STARTS = 1  # work that was started this often and has ended without a result will end so again

    def title(self) -> str:
        """Names of the host's work, for the lines of progress."""
        raise NotImplementedError

    def ask(self, fresh: bool) -> dict[str, Any]:
        """One answer of the module."""
        return self.execute(self._task.args, fresh=fresh)

    def lost(self, answer: dict[str, Any]) -> str:
        """The message about work that has ended without a result."""
        raise NotImplementedError

    def execute(self, arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
        return self._execute_module(module_args={**arguments, **more}, task_vars=self.variables)

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        self.variables = task_vars or {}
        self.host = self.variables.get("inventory_hostname", "")
        self.progress = Progress(f"{self.host}: {self.title()}")
        changed, starts, fresh = False, 0, True
        while True:
            answer = self.ask(fresh)
            changed = changed or bool(answer.get("changed"))
            if answer.get("failed") or not answer.get("running"):
                break
            starts += answer.get("started", False)
            if starts > self.STARTS:
                answer = {"failed": True, "msg": self.lost(answer)}
                break
            fresh = False
            self.progress.show(answer["progress"])
            self.progress.wait()
        return {**result, **answer, "changed": changed and not answer.get("failed")}
