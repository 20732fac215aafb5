"""Asks the module vllm_ready until the server answers, and shows what it is at."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.kepler.vllm.plugins.plugin_utils.progress import Progress


class ActionModule(ActionBase):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = dict(self._task.args)
        timeout = float(arguments.get("timeout", 1800))
        progress = Progress(f"{variables.get('inventory_hostname', '')}: vllm@{arguments.get('name')}")
        while True:
            late = progress.seconds() > timeout
            answer = self._execute_module(module_args=dict(arguments, late=late), task_vars=variables)
            if answer.get("failed") or not answer.get("waiting"):
                break
            progress.show(answer["progress"])
            progress.wait()
        result.update(answer)
        return result
