"""ansible-playbook as the tests run it: this project's settings, and nothing of the user's."""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
    "ANSIBLE_NOCOLOR": "1",
    "LC_ALL": "C.UTF-8",
}


@cache
def server():
    """The process that runs ansible-playbook; it ends with this one."""
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("ansible_server.py")], env={**os.environ, **SETTINGS},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    atexit.register(process.communicate)
    return process


def ansible_playbook(directory, *arguments, **environment):
    """Run it in `directory` with further variables of the environment; subprocess.CompletedProcess, with texts."""
    arguments = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as kept:
        printed, said = Path(kept, "stdout"), Path(kept, "stderr")
        request = {
            "arguments": arguments,
            "directory": str(directory),
            "environment": {
                **os.environ, **SETTINGS, "ANSIBLE_LOCAL_TEMP": str(directory / "local"), **environment,
            },
            "printed": str(printed),
            "said": str(said),
        }  # fmt: skip
        server().stdin.write(json.dumps(request) + "\n")
        server().stdin.flush()
        status = int(server().stdout.readline())
        return subprocess.CompletedProcess(arguments, status, printed.read_text(), said.read_text())
