"""Lookup plugin: the lock of this project, read and checked."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import yaml
from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

DOCUMENTATION = r"""
name: kepler_lock
short_description: The versions and hashes of files/lock
description:
  - Reads every file of the lock, checks it against its JSON Schema and returns one mapping with the
    keys C(sources), C(rpms), C(modules) and C(repos) of the files of those names, and C(python), a
    mapping of environment name to its list of packages.
  - Nothing is returned from a lock that does not hold; the error names the file and the entry.
options:
  _terms:
    description: Directory of the lock. The project's own files/lock when none is given.
    required: false
"""

EXAMPLES = r"""
- name: Show the pinned vLLM
  ansible.builtin.debug:
    msg: "{{ lookup('kepler_lock').sources.vllm.version }}"
"""

RETURN = r"""
_raw:
  description: One mapping; see the description.
  type: list
  elements: dict
"""

DEFAULT = Path(__file__).resolve().parents[2] / "files" / "lock"
SCHEMAS = DEFAULT / "schema"


def read(path: Path, schema: str) -> dict:
    """Content of one lock file that satisfies `SCHEMAS`/`schema`.json.

    Raises AnsibleError that names the file, the entry, what was found and the next step.
    """
    try:
        content = yaml.safe_load(path.read_text())
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


def load(directory: Path) -> dict:
    """The whole lock under `directory` as one mapping."""
    environments = sorted((directory / "python").glob("*.yml"))
    if not environments:
        raise AnsibleError(f"{directory}: no lock there: expected sources.yml, rpms.yml and python/*.yml.")
    return {
        **read(directory / "sources.yml", "sources"),
        **read(directory / "rpms.yml", "rpms"),
        "python": {path.stem: read(path, "python")["packages"] for path in environments},
    }


class LookupModule(LookupBase):
    def run(self, terms, variables=None, **kwargs):
        return [load(Path(terms[0])) if terms and terms[0] else load(DEFAULT)]
