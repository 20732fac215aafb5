"""The repository as data: files, roles, tasks, lock."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ROOT / "profiles"
SCHEMAS = PROFILES / "schema"
COMMON_LOCK = ROOT / "files" / "lock"
LOCK = PROFILES / "k80" / "lock"
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
BLOCKS = ("block", "rescue", "always")
# Keys of a task that are no module.
KEYWORDS = {
    "name", "when", "vars", "tags", "register", "loop", "loop_control", "notify", "listen", "changed_when",
    "failed_when", "check_mode", "diff", "become", "become_user", "delegate_to", "run_once", "environment", "until",
    "retries", "delay", "no_log", "args", "async", "poll", "ignore_errors", "ignore_unreachable", "any_errors_fatal",
    "throttle", "with_items", "collections", "connection", "debugger", "delegate_facts", "module_defaults", "port",
    "remote_user", "timeout", "action", "local_action",
}  # fmt: skip


def files(*parts: str) -> list[Path]:
    """Files below `parts` that are, or would be, tracked; all of the repository without `parts`."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *parts],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )
    return sorted({ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()})


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str | None:
    """Text of a file, or None where it is binary."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


class Loader(yaml.SafeLoader):
    """YAML as Ansible reads it: its own tags stand for their text."""


Loader.add_multi_constructor("!", lambda loader, suffix, node: loader.construct_scalar(node))


def load(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader)


def schema_of(path: Path) -> Path:
    """Schema of a file of a lock or profile: of its own name, or of its directory's, which has one for all."""
    own = SCHEMAS / f"{path.stem}.json"
    return own if own.is_file() else SCHEMAS / f"{path.parent.name}.json"


def lock_files() -> list[Path]:
    """Files of all locks."""
    return [*sorted(COMMON_LOCK.glob("*.yml")), *sorted(PROFILES.glob("*/lock/**/*.yml"))]


def profile_files() -> list[Path]:
    return sorted(PROFILES.glob("*/profile.yml"))


def flatten(tasks: list[dict] | None) -> Iterator[dict]:
    """Every task of a list, blocks and what they hold included."""
    for task in tasks or []:
        yield task
        for key in BLOCKS:
            yield from flatten(task.get(key))


def task_files() -> list[Path]:
    """Files that hold a list of tasks or plays."""
    return [
        path
        for path in files("roles", "playbooks", "molecule")
        if path.suffix == ".yml"
        and (path.parent.name in ("tasks", "handlers", "playbooks") or re.search("converge|prepare|verify", path.name))
    ]


def tasks_of(path: Path) -> list[dict]:
    """Every task of a task file or playbook."""
    found = []
    for item in load(path) or []:
        lists = [item[key] for key in ("tasks", "pre_tasks", "post_tasks", "handlers") if key in item]
        found += [task for tasks in lists for task in flatten(tasks)] if "hosts" in item else list(flatten([item]))
    return found


def module_of(task: dict) -> str:
    """Module of a task, without its collection; empty for a block."""
    names = [key for key in task if key not in KEYWORDS and key not in BLOCKS and not key.startswith("with_")]
    return names[0].rsplit(".", 1)[-1] if names else ""
