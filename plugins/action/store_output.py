"""Runs the module store_output detached and shows how far it is."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugin_utils"))
from kepler_controller.pip_index import pip_indexes
from kepler_controller.progress import POLL, Progress

PASSWORD = re.compile("://[^/@ ]*@")
STARTS = 2  # a worker that dies this often will die again


class ActionModule(ActionBase):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = dict(self._task.args)
        if not arguments.get("index_urls"):
            arguments.pop("index_urls", None)
        host = variables.get("inventory_hostname", "")
        progress = Progress(f"{host}: {arguments.get('name')} {arguments.get('version')}")
        changed, starts, fresh = False, 0, True
        while True:
            answer = self._execute_module(
                "store_output", dict(arguments, detach=True, fresh=fresh), task_vars=variables
            )
            fresh = False
            if answer.get("failed") or not answer.get("running"):
                break
            if answer.get("needs_indexes"):
                # Two runs of pip: only now, where something is to be fetched.
                arguments["index_urls"] = pip_indexes()
                continue
            changed = True
            starts += answer["started"]
            if starts > STARTS:
                message = (
                    f"{arguments['name']}: the work on {host} ended {STARTS} times without a word: the kernel may have "
                    f"killed it for its memory. Look at `journalctl -k` and at {answer['log']} there, then run again."
                )
                answer = {"failed": True, "msg": message}
                break
            progress.show(answer["progress"])
            time.sleep(POLL)
        # What Ansible prints of a call at -vvv: an address may hold a password.
        called = answer.get("invocation", {}).get("module_args", {})
        if called.get("substituters"):
            called["substituters"] = [PASSWORD.sub("://", address) for address in called["substituters"]]
        result.update(answer)
        result["changed"] = not answer.get("failed") and bool(answer.get("changed") or changed)
        if not answer.get("failed"):
            outputs = dict(variables.get("store_outputs") or {})
            outputs[arguments["name"]] = answer["path"]
            result["ansible_facts"] = {"store_outputs": outputs}
        return result
