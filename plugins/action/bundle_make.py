"""Makes the offline bundle on the controller and shows how far it is; see modules/bundle_make.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.kepler.vllm.plugins.module_utils.errors import KeplerError
from ansible_collections.kepler.vllm.plugins.module_utils.store.fetch import fetch_sources
from ansible_collections.kepler.vllm.plugins.plugin_utils import bundle
from ansible_collections.kepler.vllm.plugins.plugin_utils.pip_index import pip_indexes
from ansible_collections.kepler.vllm.plugins.plugin_utils.polling import Progress


class ActionModule(ActionBase):
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(argument_spec={
            "dest": {"type": "path", "required": True},
            "rpms": {"type": "path", "required": True},
            "sources": {"type": "list", "elements": "dict", "required": True},
            "requirements": {"type": "path", "required": True},
            "artifacts": {"type": "list", "elements": "path", "default": []},
            "cache": {"type": "path", "required": True},
            "profile": {"type": "str", "required": True},
            "lock_hash": {"type": "str", "required": True},
            "providers": {"type": "dict", "required": True},
        })
        dest, rpms, requirements = (Path(given[name]) for name in ("dest", "rpms", "requirements"))
        wanted = {name: given[name] for name in ("profile", "lock_hash", "providers")}
        identity = bundle.identity_of(rpms, wanted, requirements)
        if bundle.is_made(dest, identity):
            return {**result, "changed": False}
        if self._task.check_mode:
            return {**result, "changed": True}
        progress = Progress(dest.name)
        try:
            fetch_sources(given["sources"], given["cache"], given["artifacts"], pip_indexes(), progress.show, "file")
            files = [Path(given["cache"], source["file"]) for source in given["sources"]]
            bundle.make(dest, identity, rpms, files, requirements, progress.show)
        except KeplerError as error:
            return {**result, "failed": True, "msg": str(error)}
        except OSError as error:
            message = f"bundle_dest: {dest}: {error}. Nothing was made. Make room there, or name another file."
            return {**result, "failed": True, "msg": message}
        return {**result, "changed": True, "bytes": dest.stat().st_size}
