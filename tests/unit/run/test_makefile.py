"""The Makefile: values of the command line that nobody would read."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def make(*arguments):
    return subprocess.run(["make", "-C", ROOT, "help", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("name", ["MODELS", "PROFIL", "model", "CONTEXT"])
def test_unknown_value_of_the_command_line_is_refused(name):
    done = make(f"{name}=x")
    assert done.returncode == 2
    assert f"{name}: found it on the command line; expected one of ADAPTERS " in done.stderr


def test_values_that_make_or_its_programs_read_are_taken():
    assert make("MODEL=x", "PROFILE=k80", "PYTHON=python3", "ANSIBLE_BECOME_ASK_PASS=true").returncode == 0
