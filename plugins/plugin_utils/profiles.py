"""Hardware profiles: what differs between kinds of hosts, as profiles/NAME has it, read and checked.

A profile is profiles/NAME/profile.yml and the lock beside it. A host has the profile that names one of its groups.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError

PROJECT = Path(__file__).resolve().parents[2]
SCHEMAS = PROJECT / "profiles" / "schema"
COMMON_LOCK = PROJECT / "files" / "lock"
# The name of the file of packages in messages.
RPMS = "lock/rpms.yml of the hardware profile"
# libyaml's reader where PyYAML has it: eight times as fast.
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def directory() -> Path:
    """The directory of all profiles. Tests name another one."""
    return Path(os.environ.get("KEPLER_PROFILES_DIR") or PROJECT / "profiles")


def read(path: Path, schema: str) -> dict[str, Any]:
    """Content of a file that satisfies `SCHEMAS`/`schema`.json.

    Raises AnsibleError that names the file, the entry, what was found and the next step.
    """
    # Tools that only list filters may not have it.
    import jsonschema

    try:
        content = yaml.load(path.read_text(), Loader)
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise AnsibleError(f"{path}: cannot read it: {error}. Restore the file from version control.") from error
    validator = jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{schema}.json").read_text()))
    fault = jsonschema.exceptions.best_match(validator.iter_errors(content))
    if fault is not None:
        where = "".join(f"[{step!r}]" for step in fault.absolute_path) or "the file"
        raise AnsibleError(
            f"{path}: {where}: {fault.message}. Expected: what profiles/schema/{schema}.json says. Correct the entry, "
            "or restore it from version control; `make lock` renews the Python packages of a lock."
        )
    return content


@functools.cache
def common_lock() -> dict[str, Any]:
    """The lock of hosts in no profile; every profile's lock begins with it."""
    return {"sources": {}, "repos": {}, "python": {}, **read(COMMON_LOCK / "rpms.yml", "rpms")}


def lacking(profile: dict[str, Any], lock: dict[str, Any]) -> list[str]:
    """Entries that a profile names or every role reads and that the lock lacks: texts of a file and an entry."""
    repository, python = profile["platform"]["cuda_repo"], profile["python"]
    there = {
        "rpms.yml: kernels": "kernels" in lock,
        f"rpms.yml: repos: {repository}": repository in lock.get("repos", {}),
    }
    if "source" in python["providers"]:
        cpython = lock["sources"].get("cpython", {}).get("version", "")
        there[f"sources.yml: cpython {python['version']}"] = cpython.startswith(f"{python['version']}.")
    for engine in with_engines(profile)["engines"].values():
        there[f"sources.yml: vllm{engine['suffix']}"] = f"vllm{engine['suffix']}" in lock["sources"]
        there[f"python/serving{engine['suffix']}.yml"] = f"serving{engine['suffix']}" in lock["python"]
    needed = ["python", *(["cuda_toolkit", "compiler"] if "toolchain" in profile else [])]
    roles = {entry["role"] for entry in lock["rpms"]}
    there.update({f"rpms.yml: package of the role {role}": role in roles for role in needed})
    return [entry for entry, is_there in there.items() if not is_there]


@functools.cache
def lock_of(path: Path) -> dict[str, Any]:
    """The lock of the profile in the directory `path`, with the common one, as one mapping."""
    lock, common = path / "lock", common_lock()
    environments = sorted((lock / "python").glob("*.yml"))
    if not environments:
        raise AnsibleError(f"{lock}: no lock there: expected sources.yml, rpms.yml, containers.yml and python/*.yml.")
    found = {
        **read(lock / "sources.yml", "sources"),
        **read(lock / "rpms.yml", "rpms"),
        "containers": read(lock / "containers.yml", "containers"),
        "python": {path.stem: read(path, "python")["packages"] for path in environments},
    }
    missing = lacking(profiles(path.parent)[path.name], found)
    if missing:
        raise AnsibleError(
            f"{lock}: found no {', no '.join(missing)}; expected all that {path}/profile.yml names. Add it to the lock."
        )
    return {**found, **{part: common[part] + found[part] for part in ("modules", "rpms")}}


def with_boards(gpu: dict[str, Any]) -> dict[str, Any]:
    """A profile's `gpu` with what its boards say of all: `pci_ids`, `products`, and the first one's figures."""
    boards = gpu["boards"]
    first = next(iter(boards.values()))
    products = list(dict.fromkeys(board["product"] for board in boards.values()))
    figures = {key: first[key] for key in ("memory_mib", "bandwidth")}
    return {**gpu, **figures, "pci_ids": list(boards), "products": products}


def with_engines(profile: dict[str, Any]) -> dict[str, Any]:
    """A profile's `serve` and `engines`: the engines' names in the one, the default first; in the other their suffixes.

    suffix: that of an engine's entries in the lock and of its outputs; the default one has none.
    """
    default, engines = profile["serve"]["engine"], profile["engines"]
    return {
        "serve": {**profile["serve"], "engines": sorted(engines, key=lambda name: (name != default, name))},
        "engines": {
            name: {**engine, "suffix": "" if name == default else f"_{name}"} for name, engine in engines.items()
        },
    }


@functools.cache
def profiles(root: Path) -> dict[str, dict[str, Any]]:
    """Every profile below `root` by its name, each with its name and directory."""
    found: dict[str, dict[str, Any]] = {}
    owners: dict[str, str] = {}
    for path in sorted(root.glob("*/profile.yml")):
        profile = read(path, "profile")
        for role, group in profile["groups"].items():
            if owners.setdefault(group, f"{path}: groups.{role}") != f"{path}: groups.{role}":
                raise AnsibleError(
                    f"{path}: groups.{role}: found {group}, which {owners[group]} names too; expected a group of its "
                    "own. Name another one."
                )
        if profile["serve"]["engine"] not in profile["engines"]:
            raise AnsibleError(
                f"{path}: serve.engine: found {profile['serve']['engine']}; expected one of engines: "
                f"{', '.join(profile['engines'])}. Correct it, or describe that engine."
            )
        derived = {"gpu": with_boards(profile["gpu"]), "name": path.parent.name, "directory": str(path.parent)}
        found[path.parent.name] = {**profile, **with_engines(profile), **derived}
    if not found:
        raise AnsibleError(f"{root}: no profile there: expected NAME/profile.yml.")
    return found


@functools.cache
def by_group(root: Path) -> dict[str, str]:
    """The group of every profile below `root`, with the profile's name. Ansible asks for each task and host."""
    return {group: name for name, profile in profiles(root).items() for group in profile["groups"].values()}


def names_of(groups: Iterable[str], root: Path) -> dict[str, str]:
    """Those of `groups` that give a profile, each with the profile's name."""
    known = by_group(root)
    return {group: known[group] for group in groups if group in known}


def choices() -> str:
    """Every group that gives a profile, for messages."""
    return " or ".join(profile["groups"]["hosts"] for profile in profiles(directory()).values())


def check_host(host: str, groups: Iterable[str]) -> None:
    """Raise AnsibleError for a host that is in groups of two profiles."""
    found = names_of(groups, directory())
    if len(set(found.values())) > 1:
        raise AnsibleError(
            f"{host}: found in {' and '.join(f'{group} (profile {name})' for group, name in sorted(found.items()))}; "
            "expected in the groups of one profile. Take it out of the others in the inventory."
        )
