"""Templates of the roles as they stand on a host, rendered in process: starting ansible-playbook takes seconds."""

from functools import cache
from pathlib import Path

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROOT = Path(__file__).resolve().parents[2]


@cache
def variables_of(role):
    """Variables of a role as its defaults and vars give them, and the lock's sources and RPMs."""
    lock = [yaml.safe_load((ROOT / "files" / "lock" / name).read_text()) for name in ("sources.yml", "rpms.yml")]
    known = {"kepler_lock": {**lock[0], **lock[1]}}
    for name in ("defaults", "vars"):
        path = ROOT / "roles" / role / name / "main.yml"
        if path.is_file():
            known.update(yaml.safe_load(path.read_text()) or {})
    return {"ansible_managed": "managed", "role_path": str(ROOT / "roles" / role), **known}


def evaluate(role, value, **variables):
    """A value of the role with every template in it replaced, as a task would see it."""
    templar = Templar(DataLoader(), variables={**variables_of(role), **variables})
    return templar.template(value, preserve_trailing_newlines=True, escape_backslashes=False)


def render(role, template, **variables):
    """Text that the module `template` would write for a template of the role."""
    return evaluate(role, (ROOT / "roles" / role / "templates" / template).read_text(), **variables)
