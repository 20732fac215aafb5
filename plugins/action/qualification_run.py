"""Runs the module qualification_run detached and shows how far it is."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.kepler.vllm.plugins.plugin_utils.progress import Progress


class ActionModule(ActionBase):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        progress = Progress(f"{variables.get('inventory_hostname', '')}: qualification")
        changed, starts, fresh = False, 0, True
        while True:
            arguments = dict(self._task.args, detach=True, fresh=fresh)
            answer = self._execute_module(module_args=arguments, task_vars=variables)
            fresh = False
            if answer.get("failed") or not answer.get("running"):
                break
            changed = True
            starts += answer["started"]
            if starts > 1:
                answer = {
                    "failed": True,
                    "msg": "qualification: its process on the host ended without a word: somebody or the kernel may "
                    "have killed it. Look at `journalctl -k` there, then run again.",
                }
                break
            progress.show(answer["progress"])
            progress.wait()
        result.update(answer)
        result["changed"] = not answer.get("failed") and bool(answer.get("changed") or changed)
        return result
