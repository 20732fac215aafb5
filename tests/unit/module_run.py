"""A module of this project run in process, as ansible would run it on a host."""

import importlib.util
import json
from pathlib import Path

import pytest
from ansible.module_utils import basic

ROOT = Path(__file__).resolve().parents[2]


def load(name):
    """The module plugins/modules/`name`.py."""
    specification = importlib.util.spec_from_file_location(f"module_{name}", ROOT / "plugins/modules" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run(module, monkeypatch, capsys, *, check_mode=False, **arguments):
    """Let a loaded module run its main; the mapping that it answers, which has `failed` if it failed."""
    given = json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check_mode}}).encode()
    monkeypatch.setattr(basic, "_ANSIBLE_ARGS", given)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        module.main()
    return json.loads(capsys.readouterr().out)
