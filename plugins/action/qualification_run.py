"""Runs the module qualification_run until it is done, and shows its progress."""

from __future__ import annotations

from typing import Any

from ansible_collections.kepler.vllm.plugins.plugin_utils.polling import PollingAction


class ActionModule(PollingAction):
    def title(self) -> str:
        return "qualification"

    def ask(self, fresh: bool) -> dict[str, Any]:
        return self.execute(self._task.args, detach=True, fresh=fresh)

    def lost(self, answer: dict[str, Any]) -> str:
        return (
            "qualification: its process on the host ended without a result: somebody or the kernel may have killed it. "
            "Look at `journalctl -k` there, then run again."
        )
