"""Renews rpms.yml of a lock on the controller; see modules/rpm_lock.py."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.kepler.vllm.plugins.plugin_utils.rpm_lock import renew


class ActionModule(ActionBase):
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(argument_spec={
            "path": {"type": "path", "required": True},
            "offers": {"type": "list", "elements": "dict", "required": True},
        })
        path = Path(given["path"])
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        try:
            before = path.read_text()
            after, changes, absent = renew(before, given["offers"], today)
            if after != before and not self._task.check_mode:
                part = path.with_name(f".{path.name}.part")
                part.write_text(after)
                part.chmod(path.stat().st_mode & 0o777)
                part.replace(path)
        except (OSError, ValueError) as error:
            message = f"{path}: found {error}; expected the lock of packages. Restore it from version control."
            return {**result, "failed": True, "msg": message}
        names = [entry["name"] for entry in absent]
        answer = {**result, "changed": after != before, "changes": changes, "absent": names}
        if self._task.diff:
            answer["diff"] = {
                "before": before, "after": after, "before_header": str(path), "after_header": str(path),
            }
        return answer
