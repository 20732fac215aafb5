"""Shows that a task is still at work which tells nothing before it has ended."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase
from ansible_collections.kepler.vllm.plugins.plugin_utils.polling import Progress

DOCUMENTATION = r"""
name: at_work
type: aggregate
short_description: Show that a task is still at work
description:
  - Prints a line for each host whose task has said nothing for a while, with the time that it has taken so far.
  - Modules of this collection that have a plugin on the controller show lines of their own, which say more.
requirements:
  - named in C(callbacks_enabled) of ansible.cfg
options:
  quiet:
    description: Seconds without a line.
    type: float
    default: 8
    ini: [{section: callback_at_work, key: quiet}]
    env: [{name: ANSIBLE_AT_WORK_QUIET}]
"""

LOOK = 0.5
# Modules whose plugins on the controller show what they are at.
TELLING = {
    f"kepler.vllm.{path.stem}" for path in Path(__file__).parents[1].joinpath("action").glob("*.py")
    if "plugin_utils.polling" in path.read_text()
}


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "kepler.vllm.at_work"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Names as they are shown: of a task that runs, templates are not filled in.
        self.names: dict[str, str] = {}
        self.running: dict[tuple[str, str], Progress] = {}
        self.lock, self.over = threading.Lock(), threading.Event()

    def look(self) -> None:
        """Print the lines that are due."""
        with self.lock:
            for progress in self.running.values():
                if progress.silent() >= self.get_option("quiet"):
                    progress.show("at work")

    def follow(self, over: threading.Event) -> None:
        while not over.wait(LOOK):
            self.look()

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Begin: one command may run several playbooks."""
        self.over = threading.Event()
        threading.Thread(target=self.follow, args=(self.over,), daemon=True).start()

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self.over.set()
        with self.lock:
            self.running.clear()

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self.names[task._uuid] = task.name or task.action

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        self.v2_playbook_on_task_start(task, False)

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        if task.resolved_action in TELLING:
            return
        with self.lock:
            name = self.names.get(task._uuid, task.action)
            self.running[host.name, task._uuid] = Progress(f"{host.name}: {name}")

    def ended(self, result: Any) -> None:
        with self.lock:
            self.running.pop((result._host.name, result._task._uuid), None)

    def v2_runner_on_ok(self, result: Any) -> None:
        self.ended(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self.ended(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        self.ended(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self.ended(result)
