"""How often a host is looked at while it works, and what is said meanwhile."""

import threading
from itertools import pairwise
from types import SimpleNamespace

import pytest
from ansible_collections.kepler.vllm.plugins.action import waiting
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


def test_work_that_tells_nothing_is_seen_to_last(monkeypatch):
    lines, seen = [], threading.Event()

    class Action(waiting.ActionModule):
        def _execute_module(self, **_how):
            return {"changed": True, "seen": seen.wait(10)}

    def display(line, **_how):
        lines.append(line)
        seen.set()

    monkeypatch.setattr(waiting, "QUIET", 0.01)
    monkeypatch.setattr(polling.display, "display", display)
    monkeypatch.setattr(waiting.ActionBase, "run", lambda *_: {"before": True})
    action = object.__new__(Action)
    action._task = SimpleNamespace(name="Verify the stores")
    assert action.run(None, {"inventory_hostname": "box"}) == {"before": True, "changed": True, "seen": True}
    assert lines[0] == "  box: Verify the stores: at work · 0 s"
    assert not any(thread.name.endswith("(follow)") for thread in threading.enumerate())
