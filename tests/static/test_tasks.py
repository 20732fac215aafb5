"""Rules that every task keeps, beside those of ansible-lint (names, errors, versions, changes)."""

import re

import pytest
from repository import BLOCKS, KEYWORDS, ROOT, load, module_of, name_of, task_files, tasks_of

FILES = pytest.mark.parametrize("path", task_files(), ids=name_of)
PROGRAMS = {"command", "shell", "raw", "script"}


def label(task):
    return task.get("name") or str(task)[:80]


@FILES
def test_programs_that_only_read_run_in_check_mode_too(path):
    """What follows depends on their answers."""
    for task in tasks_of(path):
        if module_of(task) in PROGRAMS and task.get("changed_when") is False:
            assert task.get("check_mode") is False, label(task)


@FILES
def test_what_is_installed_is_signed_or_has_a_hash(path):
    """No repository without signatures, no package past them, and no download that is not the lock's."""
    for task in tasks_of(path):
        arguments = next((value for key, value in task.items() if key not in KEYWORDS), {})
        if module_of(task) == "yum_repository" and arguments.get("state") != "absent":
            assert arguments.get("gpgcheck") is True, label(task)
        if module_of(task) == "get_url":
            assert str(arguments.get("checksum")).startswith("sha256:"), label(task)
        assert not re.search("nogpgcheck|disable_gpg_check", str(arguments)), label(task)


STORE = "group/kepler.vllm.store"


def with_defaults(path):
    """Whether the tasks of a file are imported with defaults of the modules of the store."""
    importers = [task for other in path.parent.glob("*.yml") for task in tasks_of(other)
                 if task.get("ansible.builtin.import_tasks") == path.name]
    return bool(importers) and all("root" in task.get("module_defaults", {}).get(STORE, {}) for task in importers)


@FILES
def test_store_modules_get_the_root_of_the_store(path):
    """Their own default is a path that the inventory may have changed."""
    group = load(ROOT / "meta" / "runtime.yml")["action_groups"]["store"]
    rootless = [
        label(task) for task in tasks_of(path)
        if module_of(task) in group and "root" not in (task.get(f"kepler.vllm.{module_of(task)}") or {})
    ]
    assert rootless == [] or with_defaults(path)


# What makes a secret, or holds one that was made.
SECRET = re.compile(r"lookup\('ansible\.builtin\.password'|__\w+_password\b|keys\.conf\.j2")


def secret(task):
    return bool(SECRET.search(str({key: value for key, value in task.items() if key not in (*BLOCKS, "name")})))


@FILES
def test_task_with_a_secret_shows_it_to_nobody(path):
    for task in filter(secret, tasks_of(path)):
        assert task.get("no_log") is True, label(task)
        arguments = next((value for key, value in task.items() if key not in KEYWORDS), {})
        # Whatever is written is closed to others; a task that writes a file says so.
        if "dest" in arguments:
            assert re.fullmatch("0[0-7][0-7]0", arguments["mode"]), label(task)


def test_secrets_are_found_where_they_are():
    found = {path.parent.parent.name for path in task_files() for task in tasks_of(path) if secret(task)}
    assert {"load_balancer", "store", "vllm_service"} <= found


@FILES
def test_loop_variables_and_results_are_no_variables_of_a_role(path):
    """A result would stand before the variable from then on; of a loop Ansible warns in every run."""
    role = path.parents[1]
    known = {name for kind in ("defaults", "vars") if (role / kind / "main.yml").is_file()
             for name in load(role / kind / "main.yml")}
    for task in tasks_of(path):
        assert not {task.get("loop_control", {}).get("loop_var"), task.get("register")} & known, label(task)


@FILES
def test_blocks_are_not_empty(path):
    for task in tasks_of(path):
        for key in BLOCKS:
            assert key not in task or task[key], label(task)


def test_the_walk_sees_tasks_within_blocks(tmp_path):
    path = tmp_path / "main.yml"
    path.write_text("- name: A\n  block:\n    - ansible.builtin.command: ls\n  rescue:\n    - shell: ls\n")
    assert [module_of(task) for task in tasks_of(path)] == ["", "command", "shell"]
    path.write_text("- hosts: all\n  pre_tasks:\n    - debug: {}\n  tasks:\n    - command: ls\n")
    assert [module_of(task) for task in tasks_of(path)] == ["command", "debug"]
