"""Vars plugin: the lock of this project, read and checked, as the variable kepler_lock of every host."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from ansible.errors import AnsibleError
from ansible.inventory.group import Group
from ansible.plugins.loader import filter_loader, test_loader
from ansible.plugins.vars import BaseVarsPlugin

DOCUMENTATION = r"""
name: kepler_lock
short_description: The versions and hashes of files/lock
description:
  - Reads every file of the lock, checks it against its JSON Schema and gives every host the variable C(kepler_lock),
    one mapping with the keys C(sources), C(rpms), C(modules) and C(repos) of the files of those names, and C(python), a
    mapping of environment name to its list of packages.
  - Nothing runs with a lock that does not hold; the error names the file and the entry.
  - A plugin, and no variable that looks the lock up. Ansible evaluates those anew in every task and host that names
    them, and the lock is large.
options:
  directory:
    description: Directory of the lock. Empty for the project's own files/lock.
    type: str
    default: ""
    env: [{name: KEPLER_LOCK_DIR}]
    ini: [{section: kepler_lock, key: directory}]
"""

DEFAULT = Path(__file__).resolve().parents[2] / "files" / "lock"
SCHEMAS = DEFAULT / "schema"
# libyaml's reader where PyYAML has it: eight times as fast.
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(path: Path, schema: str) -> dict[str, Any]:
    """Content of one lock file that satisfies `SCHEMAS`/`schema`.json.

    Raises AnsibleError that names the file, the entry, what was found and the next step.
    """
    try:
        content = yaml.load(path.read_text(), Loader)
    except (OSError, yaml.YAMLError) as error:
        raise AnsibleError(f"{path}: cannot read the lock: {error}. Restore the file from version control.") from error
    validator = jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{schema}.json").read_text()))
    fault = jsonschema.exceptions.best_match(validator.iter_errors(content))
    if fault is not None:
        where = "".join(f"[{step!r}]" for step in fault.absolute_path) or "the file"
        raise AnsibleError(
            f"{path}: {where}: {fault.message}. Expected: what files/lock/schema/{schema}.json says. "
            "Restore the entry from version control, or make it anew with `make lock`."
        )
    return content


@functools.cache
def load_filters() -> None:
    """Load all filters and tests in Ansible's main process. Its workers, one a task and host, would each load them."""
    for loader in (filter_loader, test_loader):
        list(loader.all())
    # All of this collection, since Ansible looks for one filter in every file.
    filter_loader.get("kepler.vllm.controller_path")


@functools.cache
def load(directory: Path) -> dict[str, Any]:
    """The whole lock under `directory` as one mapping."""
    environments = sorted((directory / "python").glob("*.yml"))
    if not environments:
        raise AnsibleError(f"{directory}: no lock there: expected sources.yml, rpms.yml and python/*.yml.")
    return {
        **read(directory / "sources.yml", "sources"),
        **read(directory / "rpms.yml", "rpms"),
        "python": {path.stem: read(path, "python")["packages"] for path in environments},
    }


class VarsModule(BaseVarsPlugin):
    def get_vars(self, loader: Any, path: str, entities: Any, cache: bool = True) -> dict[str, Any]:
        """The lock for the group of all hosts; Ansible asks for each group and host, in several places."""
        super().get_vars(loader, path, entities)
        named = entities if isinstance(entities, list) else [entities]
        if not any(isinstance(entity, Group) and entity.name == "all" for entity in named):
            return {}
        load_filters()
        return {"kepler_lock": load(Path(self.get_option("directory") or DEFAULT))}
