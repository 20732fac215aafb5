"""Waiting for a server: what of a unit's state is still a start, and what has failed."""

import module_run
import pytest

vllm_ready = module_run.load("vllm_ready")


@pytest.fixture
def look(monkeypatch, capsys):
    """Run the module once on a unit in this state, as systemd shows it; nothing answers on its port."""

    def run(late=False, **state):
        def command(module, arguments, **keywords):
            shown = {"ActiveState": "active", "SubState": "running", **state}
            return 0, "".join(f"{name}={value}\n" for name, value in shown.items()), ""

        monkeypatch.setattr(vllm_ready.AnsibleModule, "run_command", command)
        return module_run.run(vllm_ready, monkeypatch, capsys, name="main", port=9, late=late)

    return run


@pytest.mark.parametrize("state", [
    {"ActiveState": "activating", "NRestarts": "1"}, {"NRestarts": "2"},
    {"ActiveState": "inactive", "Job": "7"}, {"NRestarts": "3", "Job": "7"},
])
def test_unit_on_its_way_is_waited_for(look, state):
    answer = look(**state)
    assert (answer["running"], "failed" in answer) == (True, False)


@pytest.mark.parametrize("state", [
    {"ActiveState": "failed"}, {"ActiveState": "inactive"}, {"NRestarts": "3"},
    {"ActiveState": "activating", "NRestarts": "3"}, {"ActiveState": "activating", "NRestarts": "3", "Job": "7"},
])
def test_unit_that_failed_or_loops_is_given_up(look, state):
    answer = look(**state)
    assert answer["failed"] and "found " in answer["msg"] and "after its last start" in answer["msg"]


def test_unit_that_does_not_exist_is_not_waited_for(look):
    answer = look(ActiveState="inactive", LoadState="not-found")
    assert "found no such unit; expected an answer of http://127.0.0.1:9. Run site.yml" in answer["msg"]


def test_unit_that_is_late_is_given_up(look):
    assert "after 1800 s" in look(late=True)["msg"]
