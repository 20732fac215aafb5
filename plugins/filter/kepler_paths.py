"""Filter for paths on the controller."""

from __future__ import annotations

from pathlib import Path


def controller_path(path: str) -> str:
    """The absolute path; a relative one counts from where Ansible was started, not from a role or playbook."""
    return str(Path(path).expanduser().absolute())


class FilterModule:
    def filters(self) -> dict:
        return {"controller_path": controller_path}
