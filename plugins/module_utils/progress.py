"""Progress lines of action plugins. Runs on the controller alone."""

import time

from ansible.utils.display import Display

display = Display()

POLL = 2.0  # seconds between two looks at a host
SILENCE = 10.0  # longest time in seconds without a line


class Progress:
    """Prints a line when something moved, and at least every ten seconds."""

    def __init__(self, what):
        self.what = what
        self.started = time.time()
        self.shown = ("", 0.0)

    def seconds(self):
        """Seconds since the start."""
        return time.time() - self.started

    def show(self, text):
        now = time.time()
        if text == self.shown[0] and now - self.shown[1] < SILENCE:
            return
        self.shown = (text, now)
        minutes, seconds = divmod(int(self.seconds()), 60)
        spent = "%d min %02d s" % (minutes, seconds) if minutes else "%d s" % seconds
        display.display("  %s: %s · %s" % (self.what, text, spent), color="cyan")
