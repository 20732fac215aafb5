"""Runs the module model_fetch until the model is there, and shows how far it is."""

from __future__ import annotations

from ansible_collections.kepler.vllm.plugins.plugin_utils.polling import PollingAction


class ActionModule(PollingAction):
    def title(self) -> str:
        return f"model {self._task.args.get('name')}"
