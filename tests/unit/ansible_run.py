"""ansible-playbook as the tests run it: this project's settings, and nothing of the user's."""

import os
from functools import cache
from pathlib import Path

from forked import Forks

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    "ANSIBLE_NOCOLOR": "1",
    "LC_ALL": "C.UTF-8",
}


@cache
def forks():
    return Forks(Path(__file__).with_name("ansible_server.py"), {**os.environ, **SETTINGS})


def ansible_playbook(directory, *arguments, **environment):
    """Run it in `directory` with further variables of the environment; subprocess.CompletedProcess, with texts."""
    environment = {**os.environ, **SETTINGS, "ANSIBLE_LOCAL_TEMP": str(directory / "local"), **environment}
    return forks().run(environment, directory=str(directory), arguments=[str(argument) for argument in arguments])
