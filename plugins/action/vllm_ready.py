"""Runs the module vllm_ready until the server answers, and shows what it is at."""

from __future__ import annotations

from typing import Any

from ansible_collections.kepler.vllm.plugins.plugin_utils.polling import PollingAction


class ActionModule(PollingAction):
    def title(self) -> str:
        return f"vllm@{self._task.args.get('name')}"

    def ask(self, fresh: bool) -> dict[str, Any]:
        late = self.progress.seconds() > float(self._task.args.get("timeout", 1800))
        return self.execute(self._task.args, late=late)
