"""The runner of the parts: what it says, in which order it runs them, and that nothing is left of them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]
# The real runner with parts of the test; no stand-in is touched.
DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import run
run.PARTS = {name: run.Part(name, tuple(command), tuple(after)) for name, command, after in json.loads(sys.argv[2])}
run.remove_stand_ins = lambda: None
run.FREE_GIB = int(sys.argv[3])
run.STOP_SECONDS = 5
sys.exit(run.main(sys.argv[4:]))
"""
SUITE = """
import pytest
def test_good(): pass
def test_bad(): assert 1 == 2, "what is wrong"
@pytest.mark.skip(reason="not here")
def test_left_out(): pass
"""


def shell(script):
    return ["bash", "-c", script]


class Runner:
    def __init__(self, directory):
        self.directory = directory
        self.cache = directory / "cache"

    def command(self, parts, *arguments, free=0):
        return [sys.executable, "-c", DRIVER, str(TESTS), json.dumps(parts), str(free), *arguments]

    def environment(self, **variables):
        return {**os.environ, "KEPLER_CACHE": str(self.cache), "DIRECTORY": str(self.directory), **variables}

    def run(self, parts, *arguments, free=0, **variables):
        """Exit status and output."""
        done = subprocess.run(
            self.command(parts, *arguments, free=free), env=self.environment(**variables), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        assert "Traceback" not in done.stdout, done.stdout
        return done.returncode, done.stdout

    def start(self, parts):
        """A run in the background that has begun."""
        process = subprocess.Popen(
            self.command(parts), env=self.environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdout.readline().endswith("begins\n")
        return process


@pytest.fixture
def runner(tmp_path):
    return Runner(tmp_path)


def is_gone(pid):
    """Whether a process has ended; its parent may not have asked for its status yet."""
    status = Path("/proc", pid, "status")
    return not status.exists() or "\nState:\tZ" in status.read_text()


def wait_for(path):
    while not path.exists():
        time.sleep(0.05)


def test_table_has_tests_minutes_and_slowest(runner):
    suite = runner.directory / "test_suite.py"
    suite.write_text(SUITE.replace("1 == 2", "2 == 2"))
    pytest_part = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(suite)]
    status, printed = runner.run([["unit", pytest_part, []], ["lint", shell("echo '== ruff'; sleep 0.1"), []]])
    assert status == 0, printed
    (row,) = [line.split() for line in printed.splitlines() if line.startswith("unit ")]
    assert row[:4] == ["unit", "3", "0", "1"]
    assert "The slowest 15 of 3 tests" in printed
    assert "test_suite::test_good" in printed
    assert printed.splitlines()[-1] == "2 passed, 0 failed, 1 skipped"
    assert re.search(r"\d\.\d == ruff$", (runner.cache / "logs" / "lint.log").read_text(), re.MULTILINE)


def test_failing_part_names_its_tests_last(runner):
    suite = runner.directory / "test_suite.py"
    suite.write_text(SUITE)
    parts = [["unit", [sys.executable, "-m", "pytest", "-q", f"--rootdir={runner.directory}", str(suite)], []],
             ["lint", shell("echo fine"), []]]
    status, printed = runner.run(parts)
    assert status == 1
    lines = printed.splitlines()
    assert lines[-1] == "1 passed, 1 failed, 1 skipped"
    assert [line for line in lines[-3:] if line] == ["FAILED unit: test_suite::test_bad", lines[-1]]
    assert "what is wrong" in printed.partition("The slowest")[2]
    assert f"unit failed with status 1; all that it printed: {runner.cache}/logs/unit.log" in printed


PLAY = """
- hosts: box
  gather_facts: false
  tasks:
    - command: /no/such
      ignore_errors: true
    - fail: {msg: 'what a task says'}
"""


def test_failed_tasks_are_found_within_molecules_border(runner):
    """In color, as molecule draws what Ansible prints."""
    (runner.directory / "play.yml").write_text(PLAY)
    play = "cd $DIRECTORY && ANSIBLE_FORCE_COLOR=1 python -m ansible playbook -i box, -c local play.yml"
    border = "sed $'s/^/  \\033[2m│\\033[0m /'"
    status, printed = runner.run([["default", shell(f"set -o pipefail; {play} | {border}"), []]])
    assert status == 1
    end = printed.partition("all that it printed")[2]
    for text in ("fatal: [box]: FAILED!", "what a task says", "FAILED default: no test of it failed"):
        assert text in end
    assert "PLAY" not in end


def test_failure_without_tests_is_counted(runner):
    status, printed = runner.run([["lint", shell("echo broken; exit 3"), []]])
    assert status == 1
    assert "lint failed with status 3" in printed
    assert printed.splitlines()[-1] == "0 passed, 1 failed, 0 skipped"


def test_part_waits_for_its_condition(runner):
    parts = [
        ["second", shell("test -e $DIRECTORY/done"), ["first"]],
        ["first", shell("sleep 0.5; touch $DIRECTORY/done"), []],
    ]
    assert runner.run(parts)[0] == 0
    # Alone it has none.
    assert runner.run(parts, "second")[0] == 0


def test_part_is_left_out_if_its_condition_failed(runner):
    parts = [["first", shell("exit 1"), []], ["second", shell("touch $DIRECTORY/ran"), ["first"]]]
    status, printed = runner.run(parts)
    assert status == 1
    assert "second: left out: first failed" in printed
    assert "FAILED second: did not run" in printed
    assert not (runner.directory / "ran").exists()


@pytest.mark.parametrize(("lanes", "together"), [("1", False), ("2", True)])
def test_as_many_parts_run_as_there_are_lanes(runner, lanes, together):
    meet = "touch $DIRECTORY/{0}; for i in $(seq 20); do test -e $DIRECTORY/{1} && exit 0; sleep 0.1; done; exit 1"
    parts = [["a", shell(meet.format("a", "b")), []], ["b", shell(meet.format("b", "a")), []]]
    printed = runner.run(parts, KEPLER_TEST_LANES=lanes)[1]
    assert ("a: passed" in printed) == together


def test_killed_part_is_named_with_its_signal(runner):
    status, printed = runner.run([["port", shell("kill -KILL $$"), []], ["lint", shell("true"), []]])
    assert status == 1
    assert "port was ended by SIGKILL" in printed


def test_full_disk_is_named(runner):
    status, printed = runner.run([["unit", shell("echo 'x: No space left on device'; exit 1"), []]])
    assert status == 1
    assert f"A disk is full: make room on the disk of {runner.cache}, or of /tmp, and run again." in printed


def test_interrupted_run_leaves_no_process(runner):
    script = "sleep 600 & echo $! > $DIRECTORY/part; mv $DIRECTORY/part $DIRECTORY/pid; wait"
    process = runner.start([["unit", shell(script), []], ["lint", shell("sleep 600"), []]])
    wait_for(runner.directory / "pid")
    process.send_signal(signal.SIGTERM)
    printed = process.communicate()[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert "interrupted; all parts were ended, and the next run starts clean" in printed
    assert is_gone((runner.directory / "pid").read_text().strip())


def test_next_run_ends_what_a_killed_one_left(runner):
    """Even what has left the part's process group."""
    script = "setsid sleep 600 & echo $! > $DIRECTORY/part; mv $DIRECTORY/part $DIRECTORY/pid; wait"
    process = runner.start([["unit", shell(script), []]])
    wait_for(runner.directory / "pid")
    process.kill()
    process.communicate()
    left = (runner.directory / "pid").read_text().strip()
    assert not is_gone(left)
    status, printed = runner.run([["lint", shell("true"), []]])
    assert status == 0, printed
    assert f"Ended what a run had left: {left} sleep 600" in printed
    assert is_gone(left)


def test_second_run_in_the_same_cache_is_refused(runner):
    process = runner.start([["unit", shell("sleep 600"), []]])
    try:
        status, printed = runner.run([["lint", shell("true"), []]])
        assert status == 1
        assert f"found another run in {runner.cache} (process {process.pid}); expected none" in printed
    finally:
        process.terminate()
        process.communicate()


def test_unknown_part_is_named_with_the_known_ones(runner):
    status, printed = runner.run([["lint", shell("true"), []], ["unit", shell("true"), []]], "units")
    assert status == 1
    assert printed == "run.py: found the part units; expected some of lint, unit\n"


@pytest.mark.parametrize("value", ["0", "two", "99"])
def test_wrong_number_of_lanes_is_refused(runner, value):
    printed = runner.run([["lint", shell("true"), []]], KEPLER_TEST_LANES=value)[1]
    assert printed.startswith(f"KEPLER_TEST_LANES: found {value}; expected a number of 1 to 8.")


def test_disk_without_room_is_refused_before_anything_runs(runner):
    status, printed = runner.run([["lint", shell("touch $DIRECTORY/ran"), []]], free=10**9)
    assert status == 1
    assert f"GiB free on the disk of {runner.cache}; expected {10**9}." in printed
    assert not (runner.directory / "ran").exists()


def test_missing_program_is_named(runner, tmp_path):
    (tmp_path / "bin").mkdir()
    printed = runner.run([["lint", shell("true"), []]], PATH=str(tmp_path / "bin"))[1]
    assert printed.startswith("run.py: found no git, curl, tar, xz, openssl, unshare on PATH; expected these programs.")
