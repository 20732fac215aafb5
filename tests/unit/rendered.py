"""Templates of the roles as they stand on a host, rendered in process: starting ansible-playbook takes seconds."""

from functools import cache
from pathlib import Path

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.kepler.vllm.plugins.plugin_utils import profiles

ROOT = Path(__file__).resolve().parents[2]


# The profile that a host of the group k80-hosts has.
PROFILE = profiles.profiles(ROOT / "profiles")["k80"]


@cache
def lock():
    """The lock as hosts have it."""
    directory = ROOT / "profiles" / "k80" / "lock"
    packages = {path.stem: yaml.safe_load(path.read_text())["packages"] for path in directory.glob("python/*.yml")}
    found = {"python": packages}
    for name in ("sources", "rpms"):
        found.update(yaml.safe_load((directory / f"{name}.yml").read_text()))
    found["containers"] = yaml.safe_load((directory / "containers.yml").read_text())
    return found


def with_dependencies(role):
    """The roles that a role depends on, and the role."""
    meta = yaml.safe_load((ROOT / "roles" / role / "meta" / "main.yml").read_text())
    return [*(name for dependency in meta["dependencies"] for name in with_dependencies(dependency["role"])), role]


@cache
def variables_of(role):
    """Variables of a role as its and its dependencies' defaults and vars give them, profile and lock."""
    known = {
        "kepler_lock": lock(), "profile": PROFILE, "inventory_hostname": "k80-1", "hostvars": {},
        "groups": {"k80-hosts": ["k80-1"]}, "ansible_search_path": [str(ROOT / "roles" / role)],
    }
    for known_role in with_dependencies(role):
        for name in ("defaults", "vars"):
            path = ROOT / "roles" / known_role / name / "main.yml"
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
