"""Runs the module store_output detached and shows how far it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.kepler.vllm.plugins.module_utils.store.fetch import sha256_of
from ansible_collections.kepler.vllm.plugins.plugin_utils.pip_index import pip_indexes
from ansible_collections.kepler.vllm.plugins.plugin_utils.progress import Progress

PASSWORD = re.compile("://[^/@ ]*@")
STARTS = 2  # a worker that dies this often will die again


class ActionModule(ActionBase):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = dict(self._task.args)
        indexes = arguments.pop("index_urls", None) or None
        sources = arguments.get("sources") or []
        files = {source["sha256"]: source["controller"] for source in sources if "controller" in source}
        if not boolean(arguments.get("build", True)):
            files = {}
        arguments["sources"] = [{k: v for k, v in source.items() if k != "controller"} for source in sources]
        host = variables.get("inventory_hostname", "")
        progress = Progress(f"{host}: {arguments.get('name')} {arguments.get('version')}")
        changed, starts, fresh = False, 0, True
        while True:
            answer = self._execute_module(
                module_args=dict(arguments, detach=True, fresh=fresh), task_vars=variables
            )
            fresh = False
            if answer.get("failed") or not answer.get("running"):
                break
            if answer.get("needs_indexes"):
                # Only if there is work: this copies files, and runs pip twice.
                refused = self._hand_over(files, Path(answer["path"]).parents[1] / "sources", variables)
                if refused:
                    answer = refused
                    break
                arguments["index_urls"] = pip_indexes() if indexes is None else indexes
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
            progress.wait()
        # Ansible prints the invocation at -vvv, and an address in it may hold a password.
        called = answer.get("invocation", {}).get("module_args", {})
        for name in ("substituters", "index_urls"):
            if called.get(name):
                called[name] = [PASSWORD.sub("://", address) for address in called[name]]
        result.update(answer)
        result["changed"] = not answer.get("failed") and bool(answer.get("changed") or changed)
        if not answer.get("failed"):
            outputs = dict(variables.get("store_outputs") or {})
            outputs[arguments["name"]] = answer["path"]
            result["ansible_facts"] = {"store_outputs": outputs}
        return result

    def _hand_over(self, files: dict[str, str], directory: Path, variables: dict[str, Any]) -> dict[str, Any] | None:
        """Put files of the controller, by sha256, into the sources of the host's store; what refused one of them."""
        for sha256, file in files.items():
            path = Path(file).expanduser()
            if not path.is_file():
                continue
            found = sha256_of(path)
            if found != sha256:
                message = (
                    f"{path}: found sha256 {found}, expected {sha256}, as the lock says. Get the file again (`make "
                    "vendor` for vLLM's), or remove it."
                )
                return {"failed": True, "msg": message}
            task = self._task.copy()
            task.args = {"src": str(path), "dest": f"{directory}/{sha256}", "mode": "0444"}
            copy = self._shared_loader_obj.action_loader.get(
                "ansible.legacy.copy", task=task, connection=self._connection, play_context=self._play_context,
                loader=self._loader, templar=self._templar, shared_loader_obj=self._shared_loader_obj,
            )
            answer = copy.run(task_vars=variables)
            if answer.get("failed"):
                return answer
        return None
