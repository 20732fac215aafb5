"""ansible-playbook by fork is ansible-playbook as a user starts it."""

import os
import subprocess
import sys

import pytest
import yaml
from ansible_run import SETTINGS, ansible_playbook

LOCAL = ("-i", "box,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}", "play.yml")


@pytest.fixture
def play(tmp_path):
    """Function that writes a play of some tasks; the directory."""

    def write(*tasks):
        text = yaml.safe_dump([{"name": "Play", "hosts": "box", "gather_facts": False, "tasks": list(tasks)}])
        (tmp_path / "play.yml").write_text(text)
        return tmp_path

    return write


def printed_by(directory, *arguments, **environment):
    """(exit status, standard output, standard error) of a start from nothing, without the lines that tell the time."""
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", *arguments], capture_output=True, text=True, cwd=directory,
        env={**os.environ, **SETTINGS, **environment}, check=False,
    )  # fmt: skip
    return done.returncode, without_time(done.stdout), done.stderr


def without_time(text):
    return [line for line in text.splitlines() if not line.startswith("Playbook run took")]


@pytest.mark.parametrize(
    ("task", "arguments", "environment"),
    [
        ({"name": "Show", "ansible.builtin.debug": {"msg": "{{ lookup('env', 'SEEN') }}"}}, (), {"SEEN": "a value"}),
        ({"name": "Fail", "ansible.builtin.fail": {"msg": "so"}}, (), {"ANSIBLE_DISPLAY_FAILED_STDERR": "1"}),
        ({"name": "Unknown", "no_such_module": {}}, (), {}),
        ({"name": "Show", "ansible.builtin.debug": {"msg": "of a set"}}, ("--no-such-option",), {}),
    ],
    ids=["passes", "fails", "unknown-module", "unknown-option"],
)
def test_a_fork_prints_what_a_start_prints(play, task, arguments, environment):
    directory = play(task)
    done = ansible_playbook(directory, *LOCAL, *arguments, **environment)
    forked = done.returncode, without_time(done.stdout), done.stderr
    assert forked == printed_by(directory, *LOCAL, *arguments, **environment)


def test_settings_of_a_run_end_with_it(play):
    directory = play({"name": "Show", "ansible.builtin.debug": {"msg": "{{ lookup('env', 'SEEN') }}."}})
    assert "TASK [Show] " not in ansible_playbook(directory, *LOCAL, ANSIBLE_STDOUT_CALLBACK="oneline", SEEN="x").stdout
    done = ansible_playbook(directory, *LOCAL)
    assert "TASK [Show] " in done.stdout
    assert "msg: ." in done.stdout
