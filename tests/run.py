#!/usr/bin/env python3
"""Run the parts of `make test`, two at a time, and end with a table: part, tests, minutes.

usage: run.py [PART]...     all parts where none is named

A part's whole output, with the seconds since its start, is in the cache, `logs/PART.log`. Of a single part it is shown
as it comes. KEPLER_TEST_LANES: how many parts run at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

PROJECT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("KEPLER_CACHE") or Path.home() / ".cache" / "vllm-kepler")
LOGS = CACHE / "logs"
# Where Python finds the program of the stand-ins.
STANDIN = str(PROJECT / "molecule" / "shared")
# Every process of a run has it in its environment, however it was started.
MARK = "KEPLER_TEST_RUN"
# What a run writes, downloads included.
FREE_GIB = 40
PROGRAMS = ("git", "curl", "tar", "xz", "openssl", "unshare")
SLOWEST = 15
NEWS_SECONDS = 60
STOP_SECONDS = 60

COLORS = re.compile(r"\x1b\[[0-9;]*m")
# The border that molecule draws before each line.
BORDER = re.compile(r"^ *│ ?")
# What begins a step: molecule's own line, or a heading of ours.
STEP = re.compile(r"^(?:INFO +\S+ ➜ (\w+): Executing|== (.+))$")
PERCENT = re.compile(r"\[ *(\d+)%\]$")
# A task with the first lines of its result; a test, with the lines that say why.
FAILURE = re.compile(r"^(?:fatal: .*(?:\n {4}.*){0,20}|E {3}.*|(?:FAILED|ERROR) \S+::.*)$", re.MULTILINE)
DISK_FULL = "No space left on device"


@dataclass(frozen=True)
class Part:
    """One part of the run.

    Attributes:
        name: as the command line has it.
        command: what runs it, in the project's directory.
        after: parts that must have ended well before, where they are asked for too.
    """

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()


def scenario(name: str, *after: str) -> Part:
    return Part(name, ("python", "-m", "standin", "molecule", "test", "--scenario-name", name), ("prepare", *after))


# In the order in which a free lane takes them: what others wait for, then the longest first.
PARTS = {
    part.name: part
    for part in (
        Part("prepare", ("tests/prepare.sh",)),
        Part("lint", ("tests/lint.sh",)),
        scenario("default"),
        Part("kernels", ("tests/kernels.sh",), ("prepare",)),
        Part("port", ("tests/port.sh",), ("prepare", "kernels")),
        scenario("builder"),
        Part("unit", ("tests/unit.sh",), ("prepare",)),
        scenario("upgrade_rollback"),
        scenario("offline"),
        scenario("kernel_update"),
        scenario("volta"),
        # Of what that has unpacked.
        Part("stock", ("tests/stock.sh",), ("prepare", "volta")),
        Part("host", ("tests/host.sh",), ("prepare",)),
    )
}


@dataclass
class Result:
    """What became of a part.

    Attributes:
        status: exit status of its command; negative: the signal that ended it. None: it did not start.
        seconds: how long it took.
        steps: (name, seconds) of each of its steps.
        lines: all that it printed, without colors and borders.
        tests: (seconds, name, outcome) of each of its tests; outcome: passed, failed or skipped.
    """

    status: int | None = None
    seconds: float = 0
    steps: list[tuple[str, float]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    tests: list[tuple[float, str, str]] = field(default_factory=list)

    def count(self, outcome: str) -> int:
        return sum(found == outcome for _, _, found in self.tests)


class Running:
    """A part that runs: its output goes to its log, with the seconds since its start, and is kept."""

    def __init__(self, part: Part, show: bool) -> None:
        self.part, self.show = part, show
        self.result = Result()
        self.started = time.monotonic()
        self.stepped = self.started
        self.report = LOGS / f"{part.name}.xml"
        self.report.unlink(missing_ok=True)
        environment = {
            **os.environ,
            MARK: str(CACHE),
            "PYTHONPATH": STANDIN,
            "PYTHONUNBUFFERED": "1",
            # What passed leaves no directory behind.
            "PYTEST_ADDOPTS": f"{os.environ.get('PYTEST_ADDOPTS', '')} -o tmp_path_retention_policy=failed "
            f"--junitxml={self.report}",
            # Molecule breaks lines at the width of a terminal, and would break those that are looked for.
            "COLUMNS": "240",
        }
        self.process = subprocess.Popen(
            part.command, cwd=PROJECT, env=environment, text=True, errors="replace", start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        with (LOGS / f"{self.part.name}.log").open("w") as log:
            for line in self.process.stdout or ():
                now = time.monotonic()
                if self.show:
                    print(line, end="", flush=True)
                print(f"{now - self.started:7.1f} {line}", end="", file=log, flush=True)
                plain = BORDER.sub("", COLORS.sub("", line.rstrip("\n")))
                self.result.lines.append(plain)
                if step := STEP.match(plain):
                    self.end_step(now)
                    self.result.steps.append((step[1] or step[2], 0))

    def end_step(self, now: float) -> None:
        if self.result.steps:
            name, _ = self.result.steps[-1]
            self.result.steps[-1] = (name, now - self.stepped)
        self.stepped = now

    def at(self) -> str:
        """Where it is: its step, or how many of its tests are done."""
        step = self.result.steps[-1][0] if self.result.steps else ""
        percent = next((found[1] for line in self.result.lines[-1:] if (found := PERCENT.search(line))), "")
        return " ".join(filter(None, (step, percent and f"{percent} %"))) or "running"

    def minutes(self) -> str:
        return f"{(time.monotonic() - self.started) / 60:.1f} min"

    def end(self) -> Result:
        """Take in what is left of its output and its tests."""
        # A process that outlives its part may hold the pipe.
        self.reader.join(10)
        now = time.monotonic()
        self.end_step(now)
        self.result.status, self.result.seconds = self.process.returncode, now - self.started
        self.result.tests = read_tests(self.report)
        return self.result

    def stop(self) -> None:
        """End the part and all processes of its group."""
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
                return


def read_tests(report: Path) -> list[tuple[float, str, str]]:
    """(seconds, name, outcome) of each test in a JUnit report; none where the part did not get to write it."""
    try:
        cases = ElementTree.parse(report).getroot().iter("testcase")
    except (OSError, ElementTree.ParseError):
        return []
    found = []
    for case in cases:
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found.append((float(case.get("time", 0)), f"{case.get('classname')}::{case.get('name')}", outcome))
    return found


def failures(lines: list[str]) -> list[str]:
    """What Ansible and pytest say of failures, of all that a part printed."""
    return [match[0] for match in FAILURE.finditer("\n".join(lines))]


def say(text: str) -> None:
    print(text, flush=True)


def ended(name: str, status: int) -> str:
    """How a part ended that did not end well."""
    if status < 0:
        return f"{name} was ended by {signal.Signals(-status).name}"
    return f"{name} failed with status {status}"


def marked() -> Iterator[int]:
    """Processes that runs with this cache have started."""
    wanted = f"{MARK}={CACHE}".encode()
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (directory / "environ").read_bytes().split(b"\0"):
                yield int(directory.name)


def remove_stand_ins() -> None:
    """Remove the stand-ins of tests, and with the last of all the engine that we started. A demo stays."""
    command = [sys.executable, "-m", "standin", "down", "--tests"]
    subprocess.run(command, cwd=PROJECT, env={**os.environ, "PYTHONPATH": STANDIN}, stdout=subprocess.DEVNULL)


def end_leftovers() -> None:
    """End every process that a run has left, this one or one that was killed."""
    for pid in marked():
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            os.kill(pid, signal.SIGKILL)
            say(f"Ended what a run had left: {pid} {command[:100]}")


def clean() -> None:
    remove_stand_ins()
    end_leftovers()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the cache against other runs."""
    LOGS.mkdir(parents=True, exist_ok=True)
    path = CACHE / "test.lock"
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            sys.exit(
                f"run.py: found another run in {CACHE} (process {lock.read().strip()}); expected none. Wait for it, or "
                "set KEPLER_CACHE to another directory."
            )
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def chosen(names: list[str]) -> list[Part]:
    """The named parts in the order of PARTS; all without a name. Exits for a name that is none."""
    for name in names:
        if name not in PARTS:
            sys.exit(f"run.py: found the part {name}; expected some of {', '.join(PARTS)}")
    return [part for part in PARTS.values() if not names or part.name in names]


def lanes() -> int:
    value = os.environ.get("KEPLER_TEST_LANES") or "2"
    if not value.isdigit() or not 1 <= int(value) <= 8:
        sys.exit(f"KEPLER_TEST_LANES: found {value}; expected a number of 1 to 8. Correct it, or leave it out.")
    return int(value)


def look_at_the_machine() -> None:
    """Exit with one line where something is missing that would end a part half-way."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        sys.exit(f"run.py: found no {', '.join(missing)} on PATH; expected these programs. Install them, run again.")
    free = shutil.disk_usage(CACHE).free >> 30
    if free < FREE_GIB:
        sys.exit(
            f"run.py: found {free} GiB free on the disk of {CACHE}; expected {FREE_GIB}. Make room, or set "
            "KEPLER_CACHE to a directory of another disk."
        )


def run(parts: list[Part], many: int) -> dict[str, Result]:
    """Run the parts, `many` at a time; a part whose conditions failed is left out."""
    names = {part.name for part in parts}
    results: dict[str, Result] = {}
    waiting, running = list(parts), list[Running]()
    news = time.monotonic()
    try:
        while waiting or running:
            for part in list(waiting):
                before = [results.get(name) for name in part.after if name in names]
                if any(result is not None and result.status != 0 for result in before):
                    say(f"== {part.name}: left out: {' or '.join(part.after)} failed")
                    results[part.name] = Result()
                    waiting.remove(part)
                elif all(before) and len(running) < many:
                    running.append(Running(part, len(parts) == 1))
                    say(f"== {part.name}: begins")
                    waiting.remove(part)
            time.sleep(0.2)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                result = results[one.part.name] = one.end()
                if result.status == 0:
                    say(f"== {one.part.name}: passed after {one.minutes()}")
                else:
                    say(f"== {ended(one.part.name, result.status or 0)} after {one.minutes()}")
                    if not one.show:
                        say("\n".join(result.lines[-20:]))
            if running and time.monotonic() - news > NEWS_SECONDS:
                news = time.monotonic()
                say("   " + "; ".join(f"{one.part.name} ({one.minutes()}): {one.at()}" for one in running))
    finally:
        for one in running:
            one.stop()
            results[one.part.name] = one.end()
    return results


def processors() -> tuple[float, float]:
    """Time that this machine's processors have spent, in their own unit: busy, and in all."""
    values = list(map(float, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
    idle = values[3] + values[4]  # waiting for a disk is idle
    return sum(values) - idle, sum(values)


def table(results: dict[str, Result], seconds: float, busy: float) -> None:
    """Print what each part took, the slowest tests, and last what failed. busy: share of the processors' time."""
    print(f"\n{'part':18}{'tests':>7}{'failed':>8}{'skipped':>9}{'minutes':>9}   steps of more than 5 s")
    for name, result in results.items():
        counts = [len(result.tests), result.count("failed"), result.count("skipped")] if result.tests else ["", "", ""]
        steps = ", ".join(f"{step} {took:.0f} s" for step, took in result.steps if took > 5)
        print(f"{name:18}{counts[0]:>7}{counts[1]:>8}{counts[2]:>9}{result.seconds / 60:>9.1f}   {steps}")
    print(f"{'all':42}{seconds / 60:>9.1f}   processors busy for {busy:.0%} of it")
    every = [(took, f"{part}: {name}") for part, result in results.items() for took, name, _ in result.tests]
    if every:
        print(f"\nThe slowest {SLOWEST} of {len(every)} tests, in seconds")
        for took, name in sorted(every, reverse=True)[:SLOWEST]:
            print(f"{took:8.1f}  {name}")
    for name, result in results.items():
        if result.status:
            print(f"\n{ended(name, result.status)}; all that it printed: {LOGS / f'{name}.log'}")
            if any(DISK_FULL in line for line in result.lines):
                print(f"A disk is full: make room on the disk of {CACHE}, or of /tmp, and run again.")
            print("\n".join(failures(result.lines)))
    broken = 0
    for name, result in results.items():
        names = [test for _, test, outcome in result.tests if outcome == "failed"]
        if result.status != 0 and not names:
            names = ["did not run" if result.status is None else "no test of it failed"]
            broken += 1
        for test in names:
            print(f"FAILED {name}: {test}")
    passed, failed, skipped = (
        sum(result.count(outcome) for result in results.values()) for outcome in ("passed", "failed", "skipped")
    )
    print(f"\n{passed} passed, {failed + broken} failed, {skipped} skipped")


def interrupt(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(number)


def main(arguments: list[str]) -> int:
    parts, many = chosen(arguments), lanes()
    began, before = time.monotonic(), processors()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    with alone():
        look_at_the_machine()
        clean()
        try:
            results = run(parts, many)
        except KeyboardInterrupt as stopped:
            say("run.py: interrupted; all parts were ended, and the next run starts clean")
            return 128 + int(stopped.args[0] if stopped.args else signal.SIGINT)
        finally:
            clean()
        busy, whole = (after - then for after, then in zip(processors(), before, strict=True))
        table({part.name: results[part.name] for part in parts}, time.monotonic() - began, busy / whole)
    return 0 if all(result.status == 0 for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
