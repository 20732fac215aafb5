"""Progress lines of action plugins."""

from __future__ import annotations

import time

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
