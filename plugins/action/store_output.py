"""Runs the module store_output detached and shows how far it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from ansible.module_utils.progress import POLL, Progress
from ansible.plugins.action import ActionBase


def pip_indexes() -> list[str]:
    """Addresses of the indexes that pip of this controller uses, its own default included.

    Reads pip's environment variables and files through pip; no address stands in this project.
    """
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    settings: dict[str, str] = {}
    # pip lists the weakest place first: a later line overrides an earlier one.
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = value.strip().strip("'\"")
    for name in ("index-url", "extra-index-url"):
        variable = os.environ.get("PIP_" + name.upper().replace("-", "_"))
        settings[name] = variable or settings.get(name, "")
    if not settings["index-url"]:
        command = [sys.executable, "-c", "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"]
        settings["index-url"] = subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
    extra = settings["extra-index-url"].replace("\\n", " ").split()
    return [address for address in (settings["index-url"], *extra) if address]


class ActionModule(ActionBase):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = dict(self._task.args)
        arguments["index_urls"] = arguments.get("index_urls") or pip_indexes()
        if isinstance(arguments.get("sources"), str):
            arguments["sources"] = json.loads(arguments["sources"])
        host = variables.get("inventory_hostname", "")
        progress = Progress(f"{host}: {arguments.get('name')} {arguments.get('version')}")
        changed = False
        while True:
            answer = self._execute_module("store_output", dict(arguments, detach=True), task_vars=variables)
            if answer.get("failed") or not answer.get("running"):
                break
            changed = True
            progress.show(answer["progress"])
            time.sleep(POLL)
        result.update(answer)
        result["changed"] = not answer.get("failed") and bool(answer.get("changed") or changed)
        if not answer.get("failed"):
            outputs = dict(variables.get("store_outputs") or {})
            outputs[arguments["name"]] = answer["path"]
            result["ansible_facts"] = {"store_outputs": outputs}
        return result
