"""Names that no role knows, and values of another type than the role asks for."""

import re
from pathlib import Path

import kepler_variables
import pytest
import yaml
from ansible.utils.context_objects import CLIArgs
from kepler_variables import exported, options, variable_findings

ROOT = Path(__file__).resolve().parents[3]
OTHERS = yaml.safe_load((ROOT / "roles/preflight/vars/main.yml").read_text())["__preflight_other_variables"]


def judge(**values):
    return variable_findings(values, OTHERS, ["vllm_service_instances"])


def only(**values):
    (found,) = judge(**values)
    assert all(found.values())
    return found


@pytest.fixture
def command_line(monkeypatch):
    def give(*texts):
        monkeypatch.setattr(kepler_variables.context, "CLIARGS", CLIArgs({"extra_vars": texts}))

    return give


def test_what_the_roles_know_is_no_finding():
    assert judge(
        vllm_service_instances="judged elsewhere", nvidia_driver_reboot=False, pytorch_jobs=8, store_root="/opt/kepler",
        store_artifacts=[], pytorch_provider="wheel", qualification="skip", store_activate=True,
        ansible_host="k80-1", _private=1, __internal=2, site_contact="me", proxy="http://proxy",
    ) == []


def test_the_inventories_of_the_project_are_sound():
    for path in ROOT.glob("inventory/**/group_vars/*.yml"):
        assert judge(**yaml.safe_load(path.read_text())) == [], path


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("vllm_service_instnces", "vllm_service_instances"),
        ("vlm_service_instances", "vllm_service_instances"),
        ("nvidia_driver_reboots", "nvidia_driver_reboot"),
        ("pytorch_providers", "pytorch_provider"),
        ("store_rooot", "store_root"),
    ],
)
def test_a_misspelt_name(name, meant):
    found = only(**{name: 1})
    assert (found["severity"], found["variable"], found["expected"]) == ("error", name, meant)
    assert f"Did you mean {meant}?" in found["next_step"]


def test_a_name_like_a_roles_and_unlike_all_of_its_variables():
    found = only(store_colour="red")
    assert found["severity"] == "warning"
    assert "roles/store/README.md" in found["expected"]


@pytest.mark.parametrize(
    ("name", "value", "expected", "quotes"),
    [
        ("nvidia_driver_reboot", "yes", "true or false, without quotes", True),
        ("nvidia_driver_reboot", "true", "true or false, without quotes", True),
        ("nvidia_driver_reboot", 1, "true or false, without quotes", False),
        ("pytorch_jobs", "8", "an integer, without quotes", True),
        ("pytorch_jobs", 2.5, "an integer, without quotes", False),
        ("pytorch_jobs", True, "an integer, without quotes", False),
        ("store_artifacts", "/srv/a", "a list", False),
        ("preflight_disk_gib", [], "a mapping", False),
        ("store_root", 7, "a path", False),
        ("vllm_service_user", ["vllm"], "a text", False),
        ("nvidia_driver_reboot", None, "true or false, without quotes", False),
    ],
)
def test_a_value_of_another_type(name, value, expected, quotes):
    found = only(**{name: value})
    assert (found["severity"], found["variable"], found["expected"]) == ("error", name, expected)
    assert ("quotes" in found["next_step"]) == quotes


@pytest.mark.parametrize(
    ("name", "value"),
    [("pytorch_provider", "conda"), ("python310_provider", "wheel"), ("nvidia_driver_provider", "rpm"),
     ("vllm_service_device", "gpu")],
)
def test_a_value_that_is_no_choice(name, value):
    assert only(**{name: value})["expected"].startswith("one of ")


def test_a_template_is_left_to_the_role():
    assert judge(nvidia_driver_reboot="{{ reboots | bool }}") == []


def test_a_text_of_the_command_line_counts_as_what_it_reads_as(command_line):
    assert judge(nvidia_driver_reboot="true") != []
    command_line("nvidia_driver_reboot=true pytorch_jobs=8", "@file.yml", '{"a": 1}')
    assert judge(nvidia_driver_reboot="true", pytorch_jobs="8") == []
    assert only(nvidia_driver_reboot="maybe")
    command_line("nvidia_driver_reboot=perhaps")
    assert only(nvidia_driver_reboot="perhaps")


def test_facts_that_roles_export_are_known():
    assert {"preflight_dies", "repos_missing", "store_share"} <= exported()
    assert judge(preflight_dies=4, repos_missing=[], store_share={}) == []


def test_every_variable_of_a_playbook_is_known():
    known = {*options(), *exported(), *OTHERS}
    roles = "|".join(path.name for path in (ROOT / "roles").iterdir())
    named = {
        name
        for path in ROOT.glob("playbooks/*.yml")
        for name in re.findall(rf"(?<![\w.])((?:{roles}|upgrade)_\w+) \| default", path.read_text())
    }
    assert "store_activate" in named
    assert sorted(named - known) == []
