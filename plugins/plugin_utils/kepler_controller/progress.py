"""Progress lines of action plugins."""

from __future__ import annotations

import time

from ansible.utils.display import Display

display = Display()

POLL = 2.0  # seconds between two looks at a host
SILENCE = 10.0  # longest time in seconds without a line


class Progress:
    """Prints a line when something moved, at most every two seconds and at least every ten."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.started = time.time()
        self.shown = ("", 0.0)

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.time() - self.started

    def show(self, text: str) -> None:
        now = time.time()
        if now - self.shown[1] < (SILENCE if text == self.shown[0] else POLL):
            return
        self.shown = (text, now)
        minutes, seconds = divmod(int(self.seconds()), 60)
        spent = f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
        display.display(f"  {self.what}: {text} · {spent}", color="cyan")
