"""Runs the module long_command until the command has ended, and shows what it prints."""

from __future__ import annotations

from ansible_collections.kepler.vllm.plugins.plugin_utils.polling import PollingAction


class ActionModule(PollingAction):
    def title(self) -> str:
        return self._task.name
