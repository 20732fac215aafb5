"""The last play of playbooks/upgrade.yml: when it stops servers, how it goes back, and what it says then."""

import json
from pathlib import Path

import pytest
import yaml

PLAYBOOK = Path(__file__).resolve().parents[3] / "playbooks" / "upgrade.yml"

# Servers that note when they are stopped, and fail on the generations in `bad` as the real ones do: within a loop.
STOP = [{"name": "Stop", "ansible.builtin.debug": {"msg": "servers are stopped"}}]
SERVE = [
    {"name": "Look", "ansible.builtin.stat": {"path": "{{ store_root }}/current"}, "register": "active"},
    {
        "name": "Ask",
        "ansible.builtin.assert": {
            "that": "item == 'first' or active.stat.lnk_target | basename | int not in bad",
            "fail_msg": "vllm@{{ item }}: answers garbage", "success_msg": "vllm@{{ item }}: answers sense",
        },
        "loop": ["first", "second"],
    },
]
ROLES = {
    "vllm_service": {"main": SERVE, "stop": STOP},
    "models": {"main": []},
    "qualification": {"main": []},
}

# Of an output that refers to nothing.
MANIFEST = {
    **dict.fromkeys(("key", "name", "version"), "new"), "sources": [], "references": [], "files": [],
    "recipe": {
        **dict.fromkeys(("name", "version", "system", "builder"), "new"), "environment": {}, "inputs": {},
        "toolchain": [],
    },
}


@pytest.fixture
def upgrade(play, overlay, tmp_path):
    """Function that runs the play with other roles than the store's: (exit status, output in one line).

    bad: generations on which the servers fail. outputs: of the generation that is built.
    """
    for role, parts in ROLES.items():
        (overlay / "roles" / role / "tasks").mkdir(parents=True)
        for name, tasks in parts.items():
            (overlay / "roles" / role / "tasks" / f"{name}.yml").write_text(yaml.safe_dump(tasks))
    (tmp_path / "store" / "locks").mkdir(parents=True)
    (asked,) = (part for part in yaml.safe_load(PLAYBOOK.read_text()) if "tasks" in part)

    def run(*options, bad=(), outputs=()):
        for name in outputs:
            path = tmp_path / "store" / "store" / name
            path.mkdir(parents=True, exist_ok=True)
            (path / ".kepler-manifest.json").write_text(json.dumps(MANIFEST))
        paths = {name: str(tmp_path / "store" / "store" / name) for name in outputs}
        settings = {"store_root": str(tmp_path / "store"), "store_outputs": paths, "bad": list(bad)}
        status, output = play(
            asked["tasks"], "-e", json.dumps(settings), *options, vars=asked["vars"], roles=asked["roles"],
        )
        assert "Traceback" not in output
        return status, " ".join(output.split())

    return run


def generation(tmp_path):
    return (tmp_path / "store" / "current").readlink().name


def test_servers_of_a_host_that_is_up_to_date_go_on(upgrade, tmp_path):
    status, output = upgrade()
    assert (status, "servers are stopped" in output) == (0, True), output
    status, output = upgrade()
    assert (status, "servers are stopped" in output, "changed=0" in output) == (0, False, True), output

    status, output = upgrade(bad=[1])
    assert status != 0
    assert "nothing to go back to: the host had this generation already. The reason: vllm@second: answers" in output
    assert generation(tmp_path) == "1"


def test_the_reason_is_that_of_the_server(upgrade, tmp_path):
    assert upgrade()[0] == 0
    status, output = upgrade(bad=[2], outputs=["new"])
    assert status != 0
    assert "servers are stopped" in output
    assert "back on generation 1, which answers." in output
    assert "The reason: vllm@second: answers garbage" in output
    assert generation(tmp_path) == "1"


def test_no_generation_before(upgrade):
    status, output = upgrade(bad=[1])
    assert status != 0
    assert "nothing to go back to: the host had no generation before." in output
    assert "The reason: vllm@second: answers garbage" in output


def test_a_kernel_that_has_moved_bars_the_way_back(upgrade, tmp_path):
    assert upgrade()[0] == 0
    path = tmp_path / "store" / "generations" / "1" / "generation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "kernel": "4.18.0-old"}))
    status, output = upgrade(bad=[2])
    assert status != 0
    said = output.partition("TASK [Report why the rollback failed]")[2]
    assert "could not go back to generation 1." in said
    assert "The reason: vllm@second: answers garbage" in said
    assert "it was proven with 4.18.0-old." in said
    assert "grubby --set-default=" in said
    assert "store_generation_force=true" in said
    assert generation(tmp_path) == "2"


def test_rollout_ends_at_the_first_host_that_fails():
    """Whatever number of hosts is upgraded at once."""
    (play,) = (part for part in yaml.safe_load(PLAYBOOK.read_text()) if "tasks" in part)
    assert play["max_fail_percentage"] == 0
    assert "upgrade_serial | default(1)" in play["serial"]
