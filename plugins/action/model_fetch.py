"""Runs the module model_fetch until the model is there, and shows how far it is."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.kepler.vllm.plugins.plugin_utils.progress import Progress


class ActionModule(ActionBase):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        progress = Progress(f"{variables.get('inventory_hostname', '')}: model {self._task.args.get('name')}")
        changed, fresh = False, True
        while True:
            answer = self._execute_module(module_args=dict(self._task.args, fresh=fresh), task_vars=variables)
            fresh = False
            if answer.get("failed") or not answer.get("running"):
                break
            changed = True
            progress.show(answer["progress"])
            progress.wait()
        result.update(answer)
        result["changed"] = not answer.get("failed") and bool(answer.get("changed") or changed)
        return result
