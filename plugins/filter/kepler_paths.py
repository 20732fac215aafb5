"""Filters for files on the controller and on hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def controller_path(path: str) -> str:
    """The absolute path; a relative one counts from where Ansible was started, not from a role or playbook."""
    return str(Path(path).expanduser().absolute())


def newer_than(files: list[dict[str, Any]], marker: str) -> list[str]:
    """Paths of the files that are not older than the one at `marker`, which is among them; all if it is not.

    files: as ansible.builtin.find returns them.
    """
    since = next((file["mtime"] for file in files if file["path"] == marker), 0)
    return [file["path"] for file in files if file["mtime"] >= since and file["path"] != marker]


class FilterModule:
    def filters(self) -> dict:
        return {"controller_path": controller_path, "newer_than": newer_than}
