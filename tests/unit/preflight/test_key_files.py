"""Key files in preflight and in the role vllm_service: what is reported, and that the key is not."""

import json
import os

import module_run
import pytest
import yaml
from ansible_collections.kepler.vllm.plugins.filter.kepler_host import key_file_findings
from rendered import ROOT, evaluate

GOOD = "VLLM_API_KEY=3f6c0b0011223344\n"
SECRET = "3f6c0b0011223344"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def read(monkeypatch, capsys):
    """Function that gives what the module says of a path, and all that it printed."""

    def run(path):
        answer = module_run.run(module_run.load("key_file_facts"), monkeypatch, capsys, paths=[str(path)])
        return answer["files"][str(path)], json.dumps(answer)

    return run


@needs_root
@pytest.mark.parametrize(
    ("text", "mode", "found"),
    [
        (GOOD, 0o600, None),
        ("VLLM_API_KEY=\n", 0o600, "an empty VLLM_API_KEY"),
        (SECRET + "\n", 0o600, "no line VLLM_API_KEY="),
        (f"API_KEY={SECRET}\n", 0o600, "no line VLLM_API_KEY="),
        (f"VLLM_API_KEY={SECRET} x\n", 0o600, "with a space"),
        (f"{SECRET}=\n", 0o600, "no line VLLM_API_KEY="),
        (GOOD, 0o644, "mode 0644"),
        (GOOD, 0o440, "mode 0440"),
    ],
)
def test_module_says_what_is_wrong_and_never_the_key(read, tmp_path, text, mode, found):
    (tmp_path / "key").write_text(text)
    (tmp_path / "key").chmod(mode)
    fault, printed = read(tmp_path / "key")
    assert SECRET not in printed
    if found is None:
        assert fault is None
    else:
        assert found in fault["found"]
        assert "mode 0600" in fault["expected"]


def test_missing_file_is_reported(read, tmp_path):
    assert "No such file" in read(tmp_path / "key")[0]["found"]


INSTANCES = [
    {"name": "a", "model": "/m", "host": "0.0.0.0", "api_key_file": "/k/a"},
    {"name": "b", "model": "/m"},
    {"name": "c", "model": "/m", "api_key_file": "/k/c"},
]
FAULT = {"found": "an empty VLLM_API_KEY", "expected": "a file of root"}


def test_each_bad_file_makes_one_finding():
    (found,) = key_file_findings({"/k/a": None, "/k/c": FAULT}, INSTANCES)
    assert (found["severity"], found["variable"]) == ("error", "vllm_service_instances[2].api_key_file")
    assert found["found"] == "/k/c: an empty VLLM_API_KEY"
    assert "chmod 0600 /k/c" in found["next_step"]
    assert key_file_findings({"/k/a": None, "/k/c": None}, INSTANCES) == []


CHECK = yaml.safe_load((ROOT / "roles/vllm_service/tasks/check.yml").read_text())
(STOP,) = (task for task in CHECK if "ansible.builtin.fail" in task)


def role_says(instances, files):
    """What the role vllm_service stops with before it changes anything; None if it goes on."""
    known = {
        **STOP["vars"], "__common_instances": instances, "__vllm_service_keys": {"files": files},
        "__vllm_service_link_keys": {"files": {}},
    }  # fmt: skip
    if not evaluate("vllm_service", f"{{{{ {STOP['when']} }}}}", **known):
        return None
    return evaluate("vllm_service", STOP["ansible.builtin.fail"]["msg"], **known)


def test_role_stops_without_preflight_too():
    good = {"name": "a", "model": "/m", "host": "0.0.0.0", "api_key_file": "/k/a"}
    assert role_says([good], {"/k/a": None}) is None
    said = role_says([good], {"/k/a": FAULT})
    assert "1 error(s); nothing was changed" in said
    assert "/k/a: an empty VLLM_API_KEY" in said


@pytest.mark.parametrize("instances", [
    ["demo"], [None], "demo", None, 7, {"name": "a"}, [{"name": "a", "model": "/m", "api_key_file": ["/k"]}],
    [{"name": "a", "model": "/m", "api_key_file": "key"}],
])
def test_malformed_instances_are_left_to_the_inventorys_check(instances):
    """That of the role `common`, on which this one depends."""
    assert role_says(instances, {}) is None
    for task in CHECK:
        if "kepler.vllm.key_file_facts" in task:
            paths = task["kepler.vllm.key_file_facts"]["paths"]
            assert evaluate("vllm_service", paths, __common_instances=instances) == []


def test_roles_ask_about_every_key_file():
    for role, tasks in (("vllm_service", CHECK), ("preflight", yaml.safe_load(
            (ROOT / "roles/preflight/tasks/host.yml").read_text()))):
        task, links = (item for item in tasks if "kepler.vllm.key_file_facts" in item)
        known = {"__common_instances": INSTANCES}
        assert evaluate(role, task["kepler.vllm.key_file_facts"]["paths"], **known) == ["/k/a", "/k/c"]
        linked = {"__common_instances": [{"name": "a", "model": "/m", "link_key_file": "/k/link"}]}
        assert evaluate(role, links["kepler.vllm.key_file_facts"]["paths"], **linked) == ["/k/link"]


def test_role_checks_first_whichever_part_is_run():
    first, *others = yaml.safe_load((ROOT / "roles/vllm_service/tasks/main.yml").read_text())
    assert first["ansible.builtin.import_tasks"] == "check.yml"
    assert {tag for task in others for tag in task["tags"]} <= set(first["tags"])
