#!/usr/bin/env python3
"""Apply small changes that break the product, one by one, to a clone, and say which of them no test notices.

usage: tests/mutants.py [--list] [--only ID...] [--jobs N] [--markdown FILE]

The changes stand in tests/mutants.toml. Each names the tests that must fail with it; without it they must pass. Runs
on the controller's Python (source "$(make -s tools)"). Ends with 0 if every change is noticed, with 1 if one survives,
and with 2 if one cannot be judged.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path("tests/mutants.toml")
# Seconds for the tests of one mutant; a change that lets them hang is no noticed one.
LIMIT = 900
# Exit statuses of pytest: all passed, and some failed.
PASSED, FAILED = 0, 1
NOTICED, SURVIVED, NOT_RUN = "noticed", "SURVIVED", "not run"
DOCUMENT = """# Mutants: what the tests notice

A test that cannot fail holds nothing. [`tests/mutants.py`](../tests/mutants.py) makes small changes that break the
product, each in a clone, and runs the tests that must fail with it. The changes stand in
[`tests/mutants.toml`](../tests/mutants.toml): what is replaced, what that would let through, and which tests look.

```console
$ source "$(make -s tools | tail -n 1)"
$ tests/mutants.py                          # all of them; exit status 1 if one survives
$ tests/mutants.py --only H3 admission-key  # these two
$ tests/mutants.py --markdown docs/mutants.md
```

It is no part of `make test`, which checks only that every change still applies. Mutants of the port need the serving
environment that `tests/port.sh` builds, those of the kernels' build nvcc; without them they are not run. After a
change of the product that moves the text of a mutant, write the mutant anew. If one survives, write the test that
holds the whole kind of promise, not this one line.

Last run: {date}. {summary}

| id | change | what it would let through | noticed by |
|---|---|---|---|
{rows}
"""


class Unusable(Exception):
    """A mutant, or the tests without one, that says nothing; the message is one line for the user."""


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        id: short name.
        file: path in the repository.
        text: what is replaced; occurs once in the file.
        becomes: what stands there instead.
        lets: what the change would let through, in one sentence.
        tests: arguments of pytest, relative to the repository.
        runner: `unit`, `kernels` or `port`.
    """

    id: str
    file: str
    text: str
    becomes: str
    lets: str
    tests: tuple[str, ...]
    runner: str = "unit"


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: `result`, the first test that failed, and seconds."""

    mutant: Mutant
    result: str
    test: str = ""
    seconds: float = 0.0


def read_table(path: Path) -> list[Mutant]:
    """The mutants of a table. Raises Unusable for an entry that lacks something, or an id that comes twice."""
    found: list[Mutant] = []
    for number, entry in enumerate(tomllib.loads(path.read_text()).get("mutant", []), 1):
        try:
            mutant = Mutant(**{**entry, "tests": tuple(entry["tests"])})
        except (KeyError, TypeError) as error:
            raise Unusable(f"{path.name}: entry {number}: found {sorted(entry)}: {error}") from None
        if mutant.id in {other.id for other in found}:
            raise Unusable(f"{path.name}: found the id {mutant.id} twice; expected each once")
        if mutant.runner not in RUNNERS:
            raise Unusable(f"{mutant.id}: found the runner {mutant.runner}; expected one of {', '.join(RUNNERS)}")
        found.append(mutant)
    return found


def mutated(mutant: Mutant, root: Path) -> str:
    """Text of the file with the change made. Raises Unusable where it no longer applies."""
    try:
        text = (root / mutant.file).read_text()
    except OSError as error:
        raise Unusable(f"{mutant.id}: {mutant.file}: {error.strerror}; the mutant no longer applies") from None
    count = text.count(mutant.text)
    if count != 1:
        raise Unusable(
            f"{mutant.id} no longer applies: {mutant.file}: found {count} times; expected once: {mutant.text!r}"
        )
    if mutant.text == mutant.becomes:
        raise Unusable(f"{mutant.id}: {mutant.file}: found a replacement that changes nothing: {mutant.text!r}")
    return text.replace(mutant.text, mutant.becomes)


# -- Running tests ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """How pytest runs in a clone: the program, its environment, and the directory that it runs in."""

    argv: list[str]
    environment: dict[str, str]
    directory: str = "."


def cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("KEPLER_CACHE") or home / "vllm-kepler")


def common(clone: Path) -> dict[str, str]:
    """The environment that the Makefile gives the tests, for a clone; no file of it is compiled to the disk.

    Python takes a compiled file for fresh whose source has the same size and second: a mutant may.
    """
    programs = cache() / "programs" / "usr"
    path = f"{Path(sys.executable).parent}:{programs}/sbin:{programs}/bin:{os.environ.get('PATH', '/usr/bin:/bin')}"
    return {
        **os.environ, "PATH": path, "LC_ALL": "C.UTF-8", "ANSIBLE_CONFIG": str(clone / "ansible.cfg"),
        "KEPLER_CACHE": str(cache()), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip


def unit(clone: Path) -> Command | str:
    """The controller's Python."""
    return Command([sys.executable], common(clone))


def kernels(clone: Path) -> Command | str:
    """The controller's Python beside nvcc, as in tests/kernels.sh; or what is missing."""
    if not (cache() / "nvcc-11.2" / "bin" / "nvcc").is_file():
        return "no nvcc in the cache: run tests/kernels.sh once"
    return Command([sys.executable], {**common(clone), "CUDA_HOME": str(cache() / "nvcc-11.2")})


def port(clone: Path) -> Command | str:
    """The serving environment with the clone's port before its own, as in tests/port.sh; or what is missing."""
    tools = sorted((cache() / "venv").glob("port-*/.ready"))
    try:
        serving = (cache() / "store" / "serving").read_text().strip()
    except OSError:
        serving = ""
    if not tools or not Path(serving, "bin", "python").is_file():
        return "no serving environment in the cache: run tests/port.sh once"
    path = f"{clone / 'vllm_src'}:{tools[-1].parent}"
    return Command([f"{serving}/bin/python"], {**common(clone), "PYTHONPATH": path}, "tests/port")


RUNNERS: dict[str, Callable[[Path], Command | str]] = {"unit": unit, "kernels": kernels, "port": port}


class Processes:
    """The processes that run, so that an interrupt ends them all with what they started."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[str]] = set()
        self.lock, self.over = threading.Lock(), False

    def run(self, command: list[str], directory: Path, environment: dict[str, str]) -> tuple[int, str]:
        """Exit status and output; Unusable where it does not end, or all are being ended."""
        with self.lock:
            if self.over:
                raise Unusable("interrupted")
            process = subprocess.Popen(
                command, cwd=directory, env=environment, text=True, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            self.running.add(process)
        try:
            output = process.communicate(timeout=LIMIT)[0]
            return process.returncode, output
        except subprocess.TimeoutExpired:
            raise Unusable(f"no end within {LIMIT} s") from None
        finally:
            self.end(process)
            self.running.discard(process)

    @staticmethod
    def end(process: subprocess.Popen[str]) -> None:
        """Let tests undo what they did to this machine, then end what is left."""
        for number, patience in ((signal.SIGINT, 10), (signal.SIGKILL, 10)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                return

    def end_all(self) -> None:
        with self.lock:
            self.over = True
        for process in list(self.running):
            self.end(process)


def pytest_in(clone: Path, runner: str, tests: tuple[str, ...], processes: Processes) -> tuple[int, str]:
    """Run tests in a clone up to the first failure: pytest's exit status and its output."""
    command = RUNNERS[runner](clone)
    assert isinstance(command, Command)
    directory = clone / command.directory
    paths = [os.path.relpath(clone / one, directory) if one.startswith("tests/") else one for one in tests]
    # Short, since sockets lie below it.
    base = clone.parent / f"t{clone.name}"
    options = ["-m", "pytest", "-q", "-x", "--tb=no", "-rfE", "-p", "no:cacheprovider", f"--basetemp={base}"]
    return processes.run([*command.argv, *options, *paths], directory, command.environment)


def failed_test(output: str) -> str:
    """Name of the first test that failed, by what pytest -rfE prints; empty if it names none."""
    found = re.search(r"^(?:FAILED|ERROR) (?:\S*/)?(\S+?\.py(?:::[^\s\[]+)?)", output, re.MULTILINE)
    return found[1] if found else ""


def remove(directory: Path) -> None:
    """Remove a directory; parts of it may have lost their right to be written."""
    for path in [directory, *directory.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.chmod(0o755)
    shutil.rmtree(directory, ignore_errors=True)


def clone_of(root: Path, clone: Path) -> None:
    """Make a clone with what the working tree has, committed or not."""
    git = ["git", "-C", str(root)]
    subprocess.run([*git, "clone", "--quiet", "--shared", str(root), str(clone)], check=True)
    listed = subprocess.run(
        [*git, "ls-files", "-z", "--modified", "--others", "--exclude-standard"], check=True, capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        (clone / name).unlink(missing_ok=True)
        if (root / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, clone / name)


@contextlib.contextmanager
def clones(root: Path, count: int) -> Iterator[queue.Queue[Path]]:
    """So many clones, which are gone in the end."""
    directory = Path(tempfile.mkdtemp(prefix="mutants-"))
    try:
        free: queue.Queue[Path] = queue.Queue()
        for number in range(count):
            clone_of(root, directory / str(number))
            free.put(directory / str(number))
        yield free
    finally:
        remove(directory)


def judge(mutant: Mutant, free: queue.Queue[Path], processes: Processes) -> Verdict:
    """Run the tests of one mutant in a clone that is free. Raises Unusable where they say nothing."""
    clone, began = free.get(), time.monotonic()
    path = clone / mutant.file
    before = path.read_text()
    try:
        path.write_text(mutated(mutant, clone))
        status, output = pytest_in(clone, mutant.runner, mutant.tests, processes)
    except Unusable as fault:
        raise Unusable(f"{mutant.id}: {fault}") from None
    finally:
        path.write_text(before)
        free.put(clone)
    if status not in (PASSED, FAILED):
        raise Unusable(f"{mutant.id}: pytest ended with status {status}: {output.strip().splitlines()[-1:]}")
    seconds = time.monotonic() - began
    if status == PASSED:
        return Verdict(mutant, SURVIVED, "", seconds)
    return Verdict(mutant, NOTICED, failed_test(output), seconds)


def together(mutants: list[Mutant]) -> list[tuple[str, tuple[str, ...]]]:
    """(runner, arguments of pytest) that run all tests of these mutants, those of the same files at once."""
    chosen: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for mutant in mutants:
        paths, _, expression = " ".join(mutant.tests).partition(" -k ")
        chosen.setdefault((mutant.runner, tuple(paths.split())), set()).add(expression)
    return sorted(
        (runner, paths if "" in every else (*paths, "-k", " or ".join(f"({one})" for one in sorted(every))))
        for (runner, paths), every in chosen.items()
    )


def baseline(todo: list[Mutant], free: queue.Queue[Path], processes: Processes, pool: ThreadPoolExecutor) -> None:
    """Raise Unusable where tests fail without any mutant."""

    def look(one: tuple[int, tuple[str, tuple[str, ...]]]) -> str:
        (number, (runner, tests)), clone, began = one, free.get(), time.monotonic()
        try:
            status, output = pytest_in(clone, runner, tests, processes)
        finally:
            free.put(clone)
        print(f"[{number:>3}/{len(wanted)}] no mutant: {shown(' '.join(tests))} {time.monotonic() - began:6.1f} s",
              flush=True)
        if status == PASSED:
            return ""
        return f"{' '.join(tests)}: {failed_test(output) or output.strip().splitlines()[-1:]} (status {status})"

    wanted = together(todo)
    faults = list(filter(None, pool.map(look, enumerate(wanted, 1))))
    if faults:
        raise Unusable("tests that do not pass without a mutant: " + "; ".join(faults))


# -- Reporting --------------------------------------------------------------------------------------------------------


def summary(verdicts: list[Verdict]) -> str:
    counts = {result: sum(one.result == result for one in verdicts) for result in (NOTICED, SURVIVED, NOT_RUN)}
    return f"{len(verdicts)} mutants: " + ", ".join(f"{count} {result}" for result, count in counts.items())


def shown(text: str) -> str:
    """Text of a mutant in one short line."""
    line = " ".join(text.split()).replace("|", "\\|").replace("`", "'")
    return line if len(line) <= 60 else line[:57] + "..."


def markdown(verdicts: list[Verdict], known: list[Mutant], before: str = "") -> str:
    """The document of a run. before: the one until now, whose results count for mutants that did not run again."""
    results = {one.mutant.id: f"`{one.test}`" if one.test else one.result for one in verdicts}
    rows = []
    for mutant in known:
        change = f"`{mutant.file.rsplit('/', 1)[-1]}`: `{shown(mutant.text)}`"
        change += f" becomes `{shown(mutant.becomes)}`" if mutant.becomes.strip() else " goes"
        row = f"| {mutant.id} | {change} | {mutant.lets} | "
        earlier = next((line[len(row):-2] for line in before.splitlines() if line.startswith(row)), NOT_RUN)
        rows.append(f"{row}{results.get(mutant.id, earlier)} |")
    counts = {result: sum(row.endswith(f"| {result} |") for row in rows) for result in (SURVIVED, NOT_RUN)}
    said = f"{len(rows)} mutants: {len(rows) - sum(counts.values())} noticed"
    said += "".join(f", {count} {result}" for result, count in counts.items() if count)
    return DOCUMENT.format(date=time.strftime("%Y-%m-%d"), summary=said + ".", rows="\n".join(rows))


def run(chosen: list[Mutant], root: Path, jobs: int) -> list[Verdict]:
    """Judge all chosen mutants, a line for each. Raises Unusable."""
    for mutant in chosen:
        mutated(mutant, root)
    missing = {name: why for name, find in RUNNERS.items() if isinstance(why := find(root), str)}
    verdicts = [Verdict(mutant, NOT_RUN) for mutant in chosen if mutant.runner in missing]
    for runner in sorted({one.mutant.runner for one in verdicts}):
        print(f"not run: mutants of {runner}: {missing[runner]}", flush=True)
    todo = [mutant for mutant in chosen if mutant.runner not in missing]
    processes = Processes()
    with clones(root, jobs) as free, ThreadPoolExecutor(jobs) as pool:
        try:
            print(f"{len(todo)} mutants; first their tests without any", flush=True)
            baseline(todo, free, processes, pool)
            for number, verdict in enumerate(pool.map(lambda one: judge(one, free, processes), todo), 1):
                print(f"[{number:>3}/{len(todo)}] {verdict.mutant.id:<24} {verdict.result:<8} {verdict.seconds:6.1f} s "
                      f" {verdict.test}", flush=True)
                verdicts.append(verdict)
        except BaseException:
            processes.end_all()
            pool.shutdown(cancel_futures=True)
            raise
    order = {mutant.id: place for place, mutant in enumerate(chosen)}
    return sorted(verdicts, key=lambda one: order[one.mutant.id])


def main(arguments: list[str], root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("--list", action="store_true", help="list the mutants and end")
    parser.add_argument("--only", metavar="ID", nargs="+", action="extend", default=[], help="these mutants alone")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many at once (1)")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE",
        help="write the result there as a document; mutants that did not run keep the one that stands there",
    )
    asked = parser.parse_args(arguments)
    try:
        known = read_table(root / TABLE)
        unknown = sorted(set(asked.only) - {mutant.id for mutant in known})
        if unknown:
            raise Unusable(f"--only: found {', '.join(unknown)}; expected ids of {TABLE} (--list shows them)")
        if asked.jobs < 1:
            raise Unusable(f"--jobs: found {asked.jobs}; expected 1 or more")
        chosen = [mutant for mutant in known if not asked.only or mutant.id in asked.only]
        if asked.list:
            for mutant in chosen:
                print(f"{mutant.id:<24} {mutant.runner:<7} {mutant.file}: {mutant.lets}")
            return 0
        verdicts = run(chosen, root, asked.jobs)
    except Unusable as fault:
        print(f"mutants.py: {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mutants.py: interrupted", file=sys.stderr)
        return 130
    print(f"\n{'id':<24} {'result':<8}  noticed by")
    for one in verdicts:
        print(f"{one.mutant.id:<24} {one.result:<8}  {one.test}")
    print(summary(verdicts))
    if asked.markdown:
        before = asked.markdown.read_text() if asked.markdown.is_file() else ""
        asked.markdown.write_text(markdown(verdicts, known, before))
    return 1 if any(one.result == SURVIVED for one in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
