"""Supervisor of one `vllm serve`: reports readiness and liveness to systemd, drains the server, logs why it ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from .admission import DRAINING, RUNNING, AdmissionMiddleware
from .client import PROBE, ask, has_token, refuses, total
from .cluster import read_cluster
from .errors import ConfigError
from .instance import CONFIGURATION, Instance, read_instance
from .log import Log
from .starts import LIMIT, Starts
from .systemd import listens, notify
from .versions import table_of

USAGE = "usage: python -m vllm_serving NAME OPTIONS.yaml GENERATION"
# Upstream's command line, and the middleware in front of its API. A port of vLLM may name its own.
ENTRY_POINTS = {
    "command": "vllm.entrypoints.cli.main:main",
    "middleware": f"{AdmissionMiddleware.__module__}:{AdmissionMiddleware.__qualname__}",
}
# Exit status after too many starts that failed: systemd does not start the unit again.
GAVE_UP = 69
# Seconds between two polls of the server while it starts or drains, and while it serves without a watchdog.
POLL, IDLE_POLL = 1.0, 30.0
# Seconds between two looks at the port of a server that serves. An engine that has failed closes it, and may then hang.
PORT_POLL = 5.0
# Seconds that vLLM gets to stop once no request runs.
STOP = 30


def command_of(options: Path, *arguments: str, model: Path | None = None) -> list[str]:
    """Return the command that starts vLLM with our middleware in front of its API.

    model: directory that is served in the place of the model that the options name.
    """
    own = {found.name: found.value for found in metadata.entry_points(group="vllm_serving")}
    command, middleware = ({**ENTRY_POINTS, **own}[name] for name in ("command", "middleware"))
    module, _, function = command.partition(":")
    named = [str(model)] if model else []
    # Not `-m`: each spawned process would import the module of the command line again.
    return [sys.executable, "-c", f"from {module} import {function}; {function}()", "serve", *named,
            "--config", str(options), "--middleware", middleware.replace(":", "."), *arguments]


def port_holder(instance: Instance) -> str | None:
    """Return why the server cannot have its port, or None if the port is free.

    vLLM binds with SO_REUSEPORT: two servers of one user would share the port, and answer each other's requests.
    """
    family = socket.AF_INET6 if ":" in instance.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((instance.host, instance.port))
    except OSError as error:
        return f"port {instance.port} of {instance.host} cannot be had: {os.strerror(error.errno or 0)}"
    return None


def members(group: int, parent: int | None = None) -> Iterator[Path]:
    """Yield the directories in /proc of the processes of a group; with a parent, of its own children among them."""
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            # The name in brackets may hold anything. State, parent and group come after it.
            of, its_group = map(int, (directory / "stat").read_text().rpartition(")")[2].split()[1:3])
            if its_group == group and parent in (None, of):
                yield directory


def mebibytes_read(group: int) -> int:
    """Return the MiB that the processes of a group have read from disks."""
    found = 0
    for directory in members(group):
        with contextlib.suppress(OSError, ValueError):
            for line in (directory / "io").read_text().splitlines():
                if line.startswith("read_bytes:"):
                    found += int(line.split()[1])
    return found >> 20


def ending(status: int) -> str:
    """Describe how a process ended, by the status that subprocess gives."""
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended by itself with status {status}"


def show(line: str) -> None:
    """Write a line in one piece: two threads do."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Supervisor:
    """One run of one server.

    table: phases and metrics of this version of vLLM.
    """

    def __init__(self, instance: Instance, command: list[str], table: ModuleType) -> None:
        self.instance, self.command = instance, command
        self.metrics, self.warm_ups = table.METRICS, table.WARM_UP
        self.log, self.starts = Log(table), Starts(instance.directory)
        self.group = 0
        self.is_ready = False
        self.started_at = self.progress_at = time.monotonic()
        self.tokens: float | None = None
        self.serving = "serving"

    def say(self, text: str) -> None:
        """Write a line for the journal."""
        show(f"vllm@{self.instance.name} {text}")

    def stalled(self) -> str | None:
        """Return why a start gets no more time, or None while it makes progress."""
        now = time.monotonic()
        # systemd's clock and ours may differ by one poll.
        if now - self.progress_at > self.instance.stall_timeout - 2 * POLL:
            return f"no progress for {now - self.progress_at:.0f} s"
        if now - self.started_at > self.instance.start_timeout - 2 * POLL:
            return f"not ready after {now - self.started_at:.0f} s"
        return None

    async def run(self) -> int:
        """Run the server to its end. Returns the exit status."""
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if self.starts.count >= LIMIT:
            return self.end(GAVE_UP, f"gave up after {LIMIT} starts in a row; the last one: {self.starts.reason}")
        if self.starts.count and await self.pause(stop):
            return 0
        if reason := port_holder(self.instance):
            return self.end(1, reason)
        self.say(f"starts: {self.instance}")
        # Overwritten with the reason at the end.
        self.starts.write("the supervisor was killed")
        child = self.spawn()
        signal.signal(signal.SIGABRT, self.abort)
        # In a thread: a journal that takes no more lines must not stop the watch.
        relay = threading.Thread(target=self.relay, args=(child,), daemon=True)
        relay.start()
        # Not asyncio's subprocess: it waits for the pipe to close, and a rank that hangs keeps it open.
        gone = loop.run_in_executor(None, child.wait)
        stopping, watch = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(self.watch())
        events: set[asyncio.Future[Any]] = {stopping, gone, watch}
        try:
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done() and watch.done() and not gone.done():
                return self.end(1, watch.result())
            if stopping.done() and not gone.done():
                watch.cancel()
                return await self.finish(child, gone)
            # The last lines of a dead server name the reason.
            self.kill()
            relay.join(1)
            status = gone.result()
            error = f": {self.log.error}" if self.log.error else ""
            reason = f"vLLM {ending(status)} while {self.current_phase}{error}"
            # Status 0 is no success either: nobody stopped the server.
            return self.end(status if status > 0 else 128 - status if status else 1, reason)
        finally:
            self.kill()
            relay.join(1)

    @property
    def current_phase(self) -> str:
        return "serving" if self.is_ready else self.log.phase

    def end(self, status: int, reason: str) -> int:
        """Report why the server ends to the journal, `systemctl status` and the next start. Returns the status."""
        self.say(f"ends: {reason}")
        notify(STATUS=f"ended: {reason}")
        if status and not self.is_ready:
            self.starts.write(reason)
        else:
            self.starts.forget()
        return status

    async def pause(self, stop: asyncio.Event) -> bool:
        """Wait before another start. Returns True if the unit was stopped meanwhile."""
        seconds = self.starts.pause()
        number = self.starts.count + 1
        text = f"waits {seconds:.0f} s before start {number} of {LIMIT}; the last one: {self.starts.reason}"
        self.say(text)
        notify(STATUS=text, EXTEND_TIMEOUT_USEC=int((seconds + self.instance.stall_timeout) * 1e6))
        await asyncio.wait({asyncio.ensure_future(stop.wait())}, timeout=seconds)
        if stop.is_set():
            self.starts.forget()
        return stop.is_set()

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start vLLM as a process group of its own, with a clean directory for temporary files in memory."""
        directory = self.instance.directory
        (directory / DRAINING).unlink(missing_ok=True)
        shutil.rmtree(directory / "tmp", ignore_errors=True)
        (directory / "tmp").mkdir()
        ours = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        child = subprocess.Popen(
            self.command, env={**environment, "TMPDIR": str(directory / "tmp")}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        self.group = child.pid
        self.started_at = self.progress_at = time.monotonic()
        return child

    def relay(self, child: subprocess.Popen[bytes]) -> None:
        """Pass the server's output on to the journal, and parse it."""
        assert child.stdout is not None
        while output := os.read(child.stdout.fileno(), 1 << 16):
            for line in self.log.feed(output):
                show(line)

    async def watch(self) -> str:
        """Report the server's state to systemd. Returns why it must end: it can never be ready, or hangs."""
        if reason := await self.until_ready():
            return reason
        self.is_ready = True
        # What a start complained of is no reason of a later end.
        self.log.error = None
        # Requests can end a server that is ready, so only failed starts count towards giving up.
        self.starts.forget()
        self.say(f"is ready after {time.monotonic() - self.started_at:.0f} s")
        notify(READY=1, STATUS=self.serving)
        while True:
            if await self.closes_within(self.instance.watchdog / 6 or IDLE_POLL):
                error = f": {self.log.error}" if self.log.error else ""
                return f"vLLM hangs: it has closed its port and goes on running{error}"
            if await self.is_alive():
                self.progress_at = time.monotonic()
                notify(WATCHDOG=1, STATUS=self.serving)
                continue
            silent = time.monotonic() - self.progress_at
            if not listens() and 0 < self.instance.watchdog < silent:
                return f"hung: no sign of life for {silent:.0f} s while {self.current_phase}"
            notify(STATUS=f"no sign of life for {silent:.0f} s")

    async def closes_within(self, seconds: float) -> bool:
        """Wait that long. Returns True at once if nothing listens on the server's port, twice in a row."""
        end, closed = time.monotonic() + seconds, 0
        while (left := end - time.monotonic()) > 0 or closed:
            await asyncio.sleep(PORT_POLL if closed else min(PORT_POLL, left))
            closed = closed + 1 if await refuses(self.instance) else 0
            if closed == 2:
                return True
        return False

    async def until_ready(self) -> str | None:
        """Wait for the first token; extend the start while it makes progress. Returns why there can never be one."""
        before: object = None
        while True:
            if self.log.waits_for_hosts:
                # They may be away for days: the start begins when they are there.
                self.started_at, before = time.monotonic(), None
            now = (self.log.phase, len(self.log.seen_patterns), mebibytes_read(self.group))
            stalled = self.stalled()
            if now != before and not stalled:
                before, self.progress_at = now, time.monotonic()
                end = self.started_at + self.instance.start_timeout
                left = min(self.instance.stall_timeout, end - self.progress_at)
                notify(STATUS=self.log.phase, EXTEND_TIMEOUT_USEC=int(left * 1e6))
            elif stalled and not listens():
                return f"{self.log.phase}; {stalled}"
            elif stalled:
                notify(STATUS=f"{self.log.phase}; {stalled}")
            if await self.is_healthy():
                answer = await ask(self.instance, "/v1/completions", PROBE, self.instance.stall_timeout)
                if has_token(answer):
                    await self.warm_up()
                    # An engine that a request of the warm-up ended counts as a failed start.
                    if await self.is_healthy():
                        return None
                if answer is not None and 400 <= answer.status < 500:
                    return f"the server answered {answer.status} instead of a token: {answer.body[:200]}"
            await asyncio.sleep(POLL)

    async def is_healthy(self) -> bool:
        """Return whether the server says that its engine lives."""
        health = await ask(self.instance, "/health")
        return health is not None and health.status == 200

    async def warm_up(self) -> None:
        """Ask for what would be compiled at a user's first request. An answer that is an error is one all the same."""
        for number, (what, request) in enumerate(self.warm_ups, 1):
            self.log.phase = f"warm-up {number} of {len(self.warm_ups)}: {what}"
            self.say(f"is at {self.log.phase}")
            notify(STATUS=self.log.phase, EXTEND_TIMEOUT_USEC=int(self.instance.stall_timeout * 1e6))
            await ask(self.instance, "/v1/completions", request, self.instance.stall_timeout)

    async def is_alive(self) -> bool:
        """Return whether the server has made tokens since the last poll, or answers a probe with one.

        A server busy with long requests makes tokens and gets no probe. One whose ranks hang can do neither.
        """
        before = self.tokens
        if not await self.read_tokens():
            return False
        if self.tokens != before:
            return True
        before = self.tokens
        answer = await ask(self.instance, "/v1/completions", PROBE, self.instance.watchdog / 3 or IDLE_POLL)
        # Tokens of other requests count as well.
        return await self.read_tokens() and (has_token(answer) or self.tokens != before)

    async def read_tokens(self) -> bool:
        """Read the server's counters. Returns whether they could be read."""
        answer = await ask(self.instance, "/metrics")
        if answer is None or answer.status != 200:
            return False
        with contextlib.suppress(ValueError):
            names = self.metrics
            self.tokens = total(answer.body, names["prompt_tokens"], names["generation_tokens"])
            running, waiting = (total(answer.body, names[f"requests_{what}"]) for what in ("running", "waiting"))
            self.serving = f"serving: {running:.0f} running, {waiting:.0f} waiting"
            return True
        return False

    async def finish(self, child: subprocess.Popen[bytes], gone: asyncio.Future[int]) -> int:
        """Drain the server, then end vLLM. Returns the exit status."""
        if not self.is_ready:
            stalled = self.stalled()
            reason = f"stopped while {self.log.phase}" + (f"; {stalled}" if stalled else "")
            return self.end(1 if stalled else 0, reason)
        left = await self.drain(gone)
        child.terminate()
        notify(STATUS="stopping vLLM")
        await asyncio.wait({gone}, timeout=STOP)
        return self.end(0, f"stopped as asked, {left} requests cut off" if left else "stopped as asked")

    async def drain(self, gone: asyncio.Future[int]) -> int:
        """Refuse new requests until the running ones have ended. Returns how many still run after the timeout."""
        (self.instance.directory / DRAINING).touch()
        notify(STOPPING=1, STATUS="draining")
        end, running = time.monotonic() + self.instance.drain_timeout, 0
        while not gone.done():
            answer = await ask(self.instance, "/health")
            if answer is not None and RUNNING in answer.headers:
                running = int(answer.headers[RUNNING])
                if not running:
                    return 0
            left = end - time.monotonic()
            if left <= 0:
                return running
            notify(WATCHDOG=1, STATUS=f"draining: {running} running, at most {left:.0f} s more")
            await asyncio.wait({gone}, timeout=min(POLL, left))
        return 0

    def kill(self) -> None:
        """Kill every process of the server, stopped ones too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGKILL)

    def abort(self, *_: object) -> None:
        """Handle the signal of systemd's watchdog: no sign of life for too long."""
        self.kill()
        self.end(1, f"hung: no sign of life for {time.monotonic() - self.progress_at:.0f} s while {self.current_phase}")
        os._exit(1)


def main(arguments: list[str]) -> int:
    """Supervise a server: its name, file of options and number of the generation. Returns the exit status."""
    if len(arguments) != 3:
        print(USAGE, file=sys.stderr)
        return CONFIGURATION
    name, options, generation = arguments
    return supervise(name, lambda: read_instance(name, Path(options), generation, os.environ))


def supervise(name: str, read: Callable[[], Instance], arguments: Sequence[str] = ()) -> int:
    """Supervise the server that `read` returns, with these arguments of `vllm serve` too. Returns the exit status."""
    try:
        instance = read()
        table = table_of(metadata.version("vllm"))
        cluster = read_cluster(os.environ)
    except (ConfigError, ValueError, metadata.PackageNotFoundError) as refused:
        print(f"vllm@{name} ends: {refused}", flush=True)
        notify(STATUS=f"ended: {refused}")
        return CONFIGURATION
    command = command_of(instance.options, *arguments, *instance.arguments, model=instance.files)
    if cluster:
        command = [sys.executable, "-m", "vllm_serving.head", *command]
    return asyncio.run(Supervisor(instance, command, table).run())
