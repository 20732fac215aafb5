"""Lend this host's GPUs to a server of another host, for as long as that one lives.

The unit vllm-stage@NAME runs `python -m vllm_serving.stage NAME`, with vLLM's file of options where vLLM starts its
ranks without Ray, and starts it again whenever it ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

from .cluster import RAYLET, TOKEN, Cluster, answers, node_command, read_cluster
from .errors import ConfigError
from .gate import Joined, Lost, node_arguments
from .instance import CONFIGURATION
from .supervisor import command_of, ending, members, show
from .systemd import notify
from .versions import table_of

USAGE = "usage: python -m vllm_serving.stage NAME [OPTIONS.yaml]"
# Seconds between two looks at the head; looks without an answer after which it counts as lost, and those refused.
LOOK, LOST, REFUSED = 2.0, 4, 2
# Seconds that a node gets to stop.
STOP = 10


class RayNode:
    """This host's node of the server's cluster of Ray, which starts its ranks."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.lost, self.refused = cluster, 0, 0
        self.process = subprocess.Popen(node_command(cluster), stdin=subprocess.DEVNULL, env=cluster.environment)

    def is_ready(self) -> bool:
        """Return whether the node can be used."""
        return bool(answers(self.cluster.address, self.cluster.first + RAYLET))

    def ended(self) -> str | None:
        """Return why this host's part is over; None while it goes on."""
        if self.process.poll() is not None:
            return f"the node ended with status {self.process.returncode}"
        found = answers(self.cluster.head, self.cluster.port)
        self.lost, self.refused = (self.lost + 1 if found is None else 0), (self.refused + 1 if found is False else 0)
        # A node outlives its head by a minute, and its ranks wait for ever for those that a cut has parted.
        if self.lost >= LOST or self.refused >= REFUSED:
            return f"the server {'refuses connections' if self.refused else 'does not answer'}"
        return None

    def close(self, reason: str) -> None:
        """End the node. One whose head is gone looks for it before it ends; the control group ends what it started."""
        if answers(self.cluster.head, self.cluster.port):
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP)
        self.process.kill()


class OwnNode:
    """This host's ranks, which vLLM starts here by itself once all hosts have joined.

    title: how that of a rank's process begins. Raises Lost and OSError if the server takes this host in no more.
    """

    def __init__(self, cluster: Cluster, options: Path, title: bytes) -> None:
        self.cluster, self.options, self.title = cluster, options, title
        self.joined = Joined(cluster, os.environ[TOKEN].strip())
        self.process: subprocess.Popen[bytes] | None = None
        self.ranks: set[str] = set()

    def is_ready(self) -> bool:
        """Return True: the server has taken this host in."""
        return True

    def ended(self) -> str | None:
        """Return why this host's part is over; None while it goes on."""
        try:
            number = self.joined.number()
        except Lost as lost:
            return f"the server is lost: {lost}"
        if number is not None:
            self.process = subprocess.Popen(
                command_of(self.options, *node_arguments(self.cluster, number)), stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        if not self.process:
            return None
        if self.process.poll() is not None:
            return f"vLLM {ending(self.process.returncode)}"
        # vLLM notices too, but waits seconds for its other ranks before it ends.
        before, self.ranks = self.ranks, set(ranks_of(self.process.pid, self.title))
        if gone := before - self.ranks:
            return f"{len(gone)} of {len(before)} ranks ended"
        return None

    def close(self, reason: str) -> None:
        """End the ranks, which may wait for those that are lost, and tell the server."""
        self.joined.close(reason)
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def ranks_of(vllm: int, title: bytes) -> Iterator[str]:
    """Yield the process ids of a vLLM's ranks: of its own children, since what a rank starts has its title at first."""
    for directory in members(vllm, parent=vllm):
        with contextlib.suppress(OSError):
            # A process that has ended, and is not waited for yet, has no title.
            if (directory / "cmdline").read_bytes().startswith(title):
                yield directory.name


class Stage:
    """One run of one host's part of a server.

    start: joins the server and returns the part.
    """

    def __init__(self, name: str, cluster: Cluster, start: Callable[[], RayNode | OwnNode]) -> None:
        self.name, self.cluster, self.start, self.stop = name, cluster, start, threading.Event()
        self.head = f"{cluster.head}:{cluster.port}"

    def say(self, text: str) -> None:
        """Report to the journal and to `systemctl status`."""
        show(f"vllm-stage@{self.name} {text}")
        notify(STATUS=text)

    def run(self) -> int:
        """Wait for the head, then be a part of its server until one of them ends. Returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop.set())
        waits = False
        while not answers(self.cluster.head, self.cluster.port):
            if not waits:
                waits = True
                self.say(f"waits for the server at {self.head}")
            if self.stop.wait(LOOK):
                return 0
        try:
            node = self.start()
        except (Lost, OSError) as error:
            self.say(f"ends: the server at {self.head} takes this host in no more: {error}")
            return 1
        reason = "this program failed"
        try:
            reason = self.watch(node)
        finally:
            node.close(reason)
        return 0 if self.stop.is_set() else 1

    def watch(self, node: RayNode | OwnNode) -> str:
        """Return why this host's part is over: its node or the head has ended, or the unit is stopped."""
        is_ready = False
        while not self.stop.wait(LOOK):
            if not is_ready and node.is_ready():
                is_ready = True
                self.say(f"lends {self.cluster.ranks} GPUs to {self.head}")
                notify(READY=1)
            if reason := node.ended():
                self.say(f"ends: {reason} ({self.head})")
                return reason
        self.say("stopped as asked")
        return "stopped as asked"


def main(arguments: list[str]) -> int:
    """Be one host's part of the instance NAME. Returns the exit status."""
    if not 1 <= len(arguments) <= 2:
        print(USAGE, file=sys.stderr)
        return CONFIGURATION
    name, *options = arguments
    try:
        cluster = read_cluster(os.environ)
        if cluster is None:
            raise ConfigError("VLLM_SERVING_HEAD: found nothing; expected ADDRESS:PORT. Run the play again.")
        table = table_of(metadata.version("vllm"))
        if not options and not table.RAY:
            raise ConfigError("OPTIONS.yaml: found none; expected vLLM's options. Run the play again.")
    except (ConfigError, ValueError, metadata.PackageNotFoundError) as refused:
        show(f"vllm-stage@{name} ends: {refused}")
        notify(STATUS=f"ended: {refused}")
        return CONFIGURATION
    start = partial(OwnNode, cluster, Path(options[0]), table.RANK) if options else partial(RayNode, cluster)
    return Stage(name, cluster, start).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
