"""Roles run by ansible-playbook against this machine, with stand-ins for what it has not."""

import json
import os
import shutil

import pytest
import yaml
from ansible_run import ROOT, ansible_playbook
from module_server import module_python


def ansible(directory, facts, *arguments, **environment):
    """Run ansible-playbook in `directory`; facts of hosts are kept in `facts`."""
    return ansible_playbook(
        directory, *arguments,
        ANSIBLE_CACHE_PLUGIN="ansible.builtin.jsonfile", ANSIBLE_CACHE_PLUGIN_CONNECTION=str(facts), **environment,
    )  # fmt: skip


def gathered(factory):
    """Directory of this machine's facts, which are gathered once a session: a third of what a short play takes."""
    facts = factory.getbasetemp() / "facts"
    if not facts.is_dir():
        directory = factory.mktemp("gather")
        (directory / "play.yml").write_text(yaml.safe_dump([{"name": "Gather", "hosts": "box"}]))
        done = ansible(
            directory, facts, "-i", "box,", "-c", "local", "-e", f"ansible_python_interpreter={module_python()}",
            "play.yml",
        )
        assert done.returncode == 0, done.stdout
    return facts


@pytest.fixture
def overlay(tmp_path):
    """Directory whose `roles/NAME` and `plugins/modules` stand in for the collection's in plays of this test."""
    return tmp_path / "overlay"


@pytest.fixture
def play(tmp_path, tmp_path_factory, overlay):
    """Run a play on the host `box`; return its exit status and output.

    tasks: the play's tasks. programs: scripts that stand first on the host's PATH, by name. modules: texts of modules
    in place of this project's, by name. keywords: of the play.
    """

    def run(tasks, *options, variables=None, programs=None, modules=None, **keywords):
        directory = tmp_path / "programs"
        directory.mkdir(exist_ok=True)
        for name, script in (programs or {}).items():
            (directory / name).write_text(f"#!/bin/sh\n{script}\n")
            (directory / name).chmod(0o755)
        playbook = tmp_path / "play.yml"
        playbook.write_text(yaml.safe_dump([{
            "name": "Play",
            "hosts": "k80-hosts",
            "environment": {"PATH": f"{directory}:{os.environ['PATH']}"},
            "tasks": tasks,
            # The same command in another test is another one.
            "module_defaults": {"kepler.vllm.long_command": {"directory": str(tmp_path / "commands")}},
            **keywords,
        }]))
        host = {"ansible_connection": "local", "ansible_python_interpreter": module_python(), **(variables or {})}
        inventory = tmp_path / "hosts.yml"
        inventory.write_text(json.dumps({"k80-hosts": {"hosts": {"box": host}}}))
        facts = tmp_path / "facts"
        if keywords.get("gather_facts", True):
            # A copy: what modules say of the host in a test is kept beside it.
            shutil.rmtree(facts, ignore_errors=True)
            shutil.copytree(gathered(tmp_path_factory), facts)
        if modules:
            library = overlay / "plugins" / "modules"
            shutil.copytree(ROOT / "plugins" / "modules", library, dirs_exist_ok=True)
            for name, text in modules.items():
                (library / f"{name}.py").write_text(text)
        done = ansible(tmp_path, facts, "-i", inventory, playbook, *options, KEPLER_TEST_OVERLAY=str(overlay))
        assert "{{" not in done.stdout, "a template that nobody rendered"
        return done.returncode, done.stdout

    return run
