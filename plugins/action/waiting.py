"""Runs a module that tells nothing before it has ended, and shows that it is at work. meta/runtime.yml names them."""

from __future__ import annotations

import threading
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.kepler.vllm.plugins.plugin_utils.polling import Progress

QUIET = 8.0  # seconds without a line


class ActionModule(ActionBase):
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        progress = Progress(f"{(task_vars or {}).get('inventory_hostname', '')}: {self._task.name}")
        over = threading.Event()

        def follow() -> None:
            while not over.wait(QUIET):
                progress.show("at work")

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            return {**result, **self._execute_module(task_vars=task_vars)}
        finally:
            over.set()
            follower.join()
