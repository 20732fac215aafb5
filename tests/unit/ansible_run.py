"""ansible-playbook as the tests run it: this project's settings, and nothing of the user's."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def ansible_playbook(directory, *arguments, **environment):
    """Run it in `directory` with further variables of the environment; subprocess.CompletedProcess, with texts."""
    return subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", *map(str, arguments)],
        capture_output=True, text=True, cwd=directory, check=False,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
            "ANSIBLE_LOCAL_TEMP": str(directory / "local"),
            "ANSIBLE_NOCOLOR": "1",
            "LC_ALL": "C.UTF-8",
            **environment,
        },
    )  # fmt: skip
