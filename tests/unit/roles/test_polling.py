"""How often a host is looked at while it works, and what is said meanwhile."""

import re
from itertools import pairwise

import pytest
import yaml
from ansible_collections.kepler.vllm.plugins.plugin_utils import polling

LOOK = 1.5


@pytest.mark.parametrize("text", ["linking", "{} of 6000 files"])
def test_looks_are_few_and_lines_do_not_stop(monkeypatch, text):
    """Over two hours, where a look takes a second and a half."""
    clock, lines, looks = [1000.0], [1000.0], 0
    monkeypatch.setattr(polling.time, "time", lambda: clock[0])
    monkeypatch.setattr(polling.time, "sleep", lambda seconds: clock.append(clock.pop() + seconds))
    monkeypatch.setattr(polling.display, "display", lambda _line, **_how: lines.append(clock[0]))
    shown = polling.Progress("box: pytorch")
    while clock[0] < 1000 + 7200:
        looks += 1
        shown.show(text.format(looks))
        shown.wait()
        clock[0] += LOOK
    assert looks < 7200 / 9
    gaps = [later - earlier for earlier, later in pairwise(lines)]
    assert max(gaps) <= 10
    assert min(gaps[1:]) >= 2


def test_short_work_is_seen_to_end_at_once(monkeypatch):
    slept = []
    monkeypatch.setattr(polling.time, "sleep", slept.append)
    polling.Progress("box: serving").wait()
    assert slept == [1]


def test_a_task_that_tells_nothing_is_seen_to_last(play, monkeypatch, tmp_path):
    """Under the name that the play shows, in each playbook; one that shows its own lines is left to them."""
    monkeypatch.setenv("ANSIBLE_AT_WORK_QUIET", "1")
    tasks = [
        {"name": "Sleep for {{ time }} s", "ansible.builtin.command": "sleep {{ time }}"},
        {"name": "Build", "kepler.vllm.long_command": {"argv": ["sleep", "3"]}},
        {"name": "Fail", "ansible.builtin.shell": "sleep 3; exit 1"},
    ]
    first = tmp_path / "first.yml"
    first.write_text(yaml.safe_dump([{"name": "First", "hosts": "box", "gather_facts": False, "tasks": []}]))
    status, output = play(tasks, first, variables={"time": 3.1}, gather_facts=False)
    assert status != 0
    lines = [line for line in output.splitlines() if "at work" in line]
    assert re.fullmatch(r"  box: Sleep for 3.1 s: at work · [1-3] s", lines[0])
    assert {line.split(": ")[1] for line in lines} == {"Sleep for 3.1 s", "Fail"}
