"""Callback plugin: does once in a run what each of its tasks would do, all in processes of their own."""

from __future__ import annotations

import gc
import importlib
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import action_loader, become_loader, connection_loader, shell_loader
from standin import archives

DOCUMENTATION = r"""
name: standin
type: aggregate
short_description: Spare tasks in stand-ins what all of them do
description:
  - Imports what tasks need before they are forked, and keeps the archives of modules for the runs on a fleet.
options:
  archives:
    description: Directory of the archives.
    required: true
    env: [{name: STANDIN_ARCHIVES}]
"""

IMPORTED = {
    action_loader: ("command", "copy", "gather_facts", "include_vars", "normal", "package", "service", "set_fact",
                    "template"),
    become_loader: ("sudo",),
    connection_loader: ("local", "standin"),
    shell_loader: ("sh",),
}


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "standin"

    def set_options(self, *arguments: Any, **keywords: Any) -> None:
        super().set_options(*arguments, **keywords)
        for loader, names in IMPORTED.items():
            for name in names:
                loader.get(name, class_only=True)
        collection = importlib.import_module("ansible_collections.kepler.vllm")
        utilities = [f"{path}/plugins/module_utils" for path in collection.__path__]
        archives.keep(Path(self.get_option("archives")), utilities)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        # Collections in a fork would write to all that is there, and with that copy it.
        gc.collect()
        gc.freeze()
