"""Runs the module store_output until the output is there, and shows how far it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible_collections.kepler.vllm.plugins.module_utils.store.fetch import sha256_of
from ansible_collections.kepler.vllm.plugins.plugin_utils.pip_index import pip_indexes
from ansible_collections.kepler.vllm.plugins.plugin_utils.polling import PollingAction

PASSWORD = re.compile("://[^/@ ]*@")


class ActionModule(PollingAction):
    STARTS = 2

    def title(self) -> str:
        return f"{self._task.args.get('name')} {self._task.args.get('version')}"

    def ask(self, fresh: bool) -> dict[str, Any]:
        answer = self.execute(self.arguments, detach=True, fresh=fresh)
        if not answer.get("needs_indexes"):
            return answer
        # Only if there is work: this copies files, and runs pip twice.
        refused = self._hand_over(self.files, Path(answer["path"]).parents[1] / "sources", self.variables)
        if refused:
            return refused
        self.arguments["index_urls"] = pip_indexes() if self.indexes is None else self.indexes
        return self.ask(False)

    def lost(self, answer: dict[str, Any]) -> str:
        return (
            f"{self._task.args['name']}: the work on {self.host} ended {self.STARTS} times without a result: the "
            f"kernel may have killed it for its memory. Look at `journalctl -k` and at {answer['log']} there, then run "
            "again."
        )

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        self.arguments = dict(self._task.args)
        self.indexes = self.arguments.pop("index_urls", None) or None
        names = [self._task.args["name"], *(self.arguments.pop("also", None) or [])]
        sources = self.arguments.get("sources") or []
        self.files = {source["sha256"]: source["controller"] for source in sources if "controller" in source}
        if not boolean(self.arguments.get("build", True)):
            self.files = {}
        self.arguments["sources"] = [{k: v for k, v in source.items() if k != "controller"} for source in sources]
        result = super().run(tmp, task_vars)
        # Ansible prints the invocation at -vvv, and an address in it may hold a password.
        called = result.get("invocation", {}).get("module_args", {})
        for name in ("substituters", "index_urls"):
            if called.get(name):
                called[name] = [PASSWORD.sub("://", address) for address in called[name]]
        if not result.get("failed"):
            before = self.variables.get("store_outputs") or {}
            result["ansible_facts"] = {"store_outputs": {**before, **dict.fromkeys(names, result["path"])}}
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
