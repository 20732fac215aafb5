"""Lend this host's GPUs to a server of another host: one node of the server's cluster, for as long as its head lives.

The unit vllm-stage@NAME runs `python -m vllm_serving.stage NAME` and starts it again whenever it ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

from .cluster import RAYLET, Cluster, answers, node_command, read_cluster
from .errors import ConfigError
from .instance import CONFIGURATION
from .supervisor import show
from .systemd import notify

USAGE = "usage: python -m vllm_serving.stage NAME"
# Seconds between two looks at the head; looks without an answer after which it counts as lost, and those refused.
LOOK, LOST, REFUSED = 2.0, 4, 2
# Seconds that a node gets to stop.
STOP = 10


class Stage:
    """One run of one host's node."""

    def __init__(self, name: str, cluster: Cluster) -> None:
        self.name, self.cluster, self.stop = name, cluster, threading.Event()
        self.head = f"{cluster.head}:{cluster.port}"

    def say(self, text: str) -> None:
        """Report to the journal and to `systemctl status`."""
        show(f"vllm-stage@{self.name} {text}")
        notify(STATUS=text)

    def run(self) -> int:
        """Wait for the head, then be its node until one of them ends. Returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop.set())
        waits = False
        while not answers(self.cluster.head, self.cluster.port):
            if not waits:
                waits = True
                self.say(f"waits for the server at {self.head}")
            if self.stop.wait(LOOK):
                return 0
        node = subprocess.Popen(node_command(self.cluster), stdin=subprocess.DEVNULL, env=self.cluster.environment)
        try:
            return self.watch(node)
        finally:
            # A node whose head is gone looks for it before it ends. What it started ends with the control group.
            if answers(self.cluster.head, self.cluster.port):
                node.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    node.wait(STOP)
            node.kill()

    def watch(self, node: subprocess.Popen[bytes]) -> int:
        """Return the exit status when the node or the head has ended, or the unit is stopped."""
        is_ready, lost, refused = False, 0, 0
        while not self.stop.wait(LOOK):
            if node.poll() is not None:
                self.say(f"ends: the node ended with status {node.returncode}")
                return 1
            if not is_ready and answers(self.cluster.address, self.cluster.first + RAYLET):
                is_ready = True
                self.say(f"lends {self.cluster.ranks} GPUs to {self.head}")
                notify(READY=1)
            found = answers(self.cluster.head, self.cluster.port)
            lost, refused = (lost + 1 if found is None else 0), (refused + 1 if found is False else 0)
            if lost >= LOST or refused >= REFUSED:
                # A node outlives its head by a minute, and its ranks wait for ever for those that a cut has parted.
                self.say(f"ends: the server at {self.head} {'refuses connections' if refused else 'does not answer'}")
                return 1
        self.say("stopped as asked")
        return 0


def main(arguments: list[str]) -> int:
    """Be one host's node of the instance NAME. Returns the exit status."""
    if len(arguments) != 1:
        print(USAGE, file=sys.stderr)
        return CONFIGURATION
    try:
        cluster = read_cluster(os.environ)
        if cluster is None:
            raise ConfigError("VLLM_SERVING_HEAD: found nothing; expected ADDRESS:PORT. Run the play again.")
    except ConfigError as refused:
        show(f"vllm-stage@{arguments[0]} ends: {refused}")
        notify(STATUS=f"ended: {refused}")
        return CONFIGURATION
    return Stage(arguments[0], cluster).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
