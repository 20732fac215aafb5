"""Rules that every task keeps, beside those of ansible-lint (names, errors, versions, changes)."""

import pytest
from repository import BLOCKS, module_of, name_of, task_files, tasks_of

FILES = pytest.mark.parametrize("path", task_files(), ids=name_of)
PROGRAMS = {"command", "shell", "raw", "script"}


def label(task):
    return task.get("name") or str(task)[:80]


@FILES
def test_programs_that_only_read_run_in_check_mode_too(path):
    """What follows depends on their answers."""
    for task in tasks_of(path):
        if module_of(task) in PROGRAMS and task["changed_when"] is False:
            assert task.get("check_mode") is False, label(task)


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
