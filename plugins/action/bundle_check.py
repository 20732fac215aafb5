"""Refuses an offline bundle that is not what it must be; see modules/bundle_check.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.kepler.vllm.plugins.plugin_utils import bundle
from ansible_collections.kepler.vllm.plugins.plugin_utils.polling import Progress


class ActionModule(ActionBase):
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(argument_spec={
            "path": {"type": "path", "required": True},
            "profile": {"type": "str", "required": True},
            "lock_hash": {"type": "str", "required": True},
            "providers": {"type": "dict", "required": True},
            "content": {"type": "bool", "default": False},
        })
        path = Path(given["path"])
        try:
            statement = bundle.read_statement(path)
            bundle.check_wanted(statement, path, given)
            if given["content"]:
                bundle.check_content(path, Progress(path.name).show)
        except bundle.BundleError as error:
            return {**result, "failed": True, "msg": str(error)}
        keys = sorted(Path(name).stem for name in statement["files"] if name.startswith("keys/"))
        packages = sorted(Path(name).name for name in statement["files"] if name.endswith(".rpm"))
        return {**result, "changed": False, "id": statement["id"], "keys": keys, "packages": packages}
