"""Roles run by ansible-playbook against this machine, with stand-ins for what it has not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
# What the store's tests share.
sys.path.insert(0, str(ROOT / "tests" / "unit" / "store"))


@pytest.fixture
def play(tmp_path):
    """Run a play on the host `box`; return its exit status and output.

    tasks: the play's tasks. programs: scripts that stand first on the host's PATH, by name. keywords: of the play.
    """

    def run(tasks, *options, variables=None, programs=None, **keywords):
        directory = tmp_path / "programs"
        directory.mkdir(exist_ok=True)
        for name, script in (programs or {}).items():
            (directory / name).write_text(f"#!/bin/sh\n{script}\n")
            (directory / name).chmod(0o755)
        playbook = tmp_path / "play.yml"
        playbook.write_text(yaml.safe_dump([{
            "name": "Play",
            "hosts": "k80-hosts",
            "vars_files": [str(ROOT / "playbooks" / "vars" / "lock.yml")],
            "environment": {"PATH": f"{directory}:{os.environ['PATH']}"},
            "tasks": tasks,
            **keywords,
        }]))
        host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, **(variables or {})}
        inventory = tmp_path / "hosts.yml"
        inventory.write_text(json.dumps({"k80-hosts": {"hosts": {"box": host}}}))
        command = [sys.executable, "-m", "ansible", "playbook", "-i", str(inventory), str(playbook), *options]
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
            "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"),
            "ANSIBLE_NOCOLOR": "1",
        }
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        return done.returncode, done.stdout

    return run
