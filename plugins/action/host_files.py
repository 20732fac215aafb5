"""Reads and renders on the controller what modules/host_files.py lays down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import lookup_loader

SOURCES = ("src", "template", "content")


class ActionModule(ActionBase):
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        _, given = self.validate_argument_spec(
            argument_spec={
                "directories": {"type": "list", "elements": "path", "default": []},
                "files": {
                    "type": "list", "elements": "dict", "default": [], "mutually_exclusive": [SOURCES],
                    "required_one_of": [SOURCES], "options": {
                        "dest": {"type": "path", "required": True},
                        "src": {"type": "str"},
                        "template": {"type": "str"},
                        "content": {"type": "str"},
                        "mode": {"type": "str", "choices": ["0644", "0755"], "default": "0644"},
                    },
                },
            }
        )  # fmt: skip
        files = [
            {"dest": item["dest"], "mode": item["mode"], "content": self._content(item, variables)}
            for item in given["files"]
        ]
        arguments = {"directories": given["directories"], "files": files}
        answer = self._execute_module(module_args=arguments, task_vars=variables)
        # At -vvv Ansible prints the arguments: names of the sources are enough there.
        answer.get("invocation", {}).update(module_args=self._task.args)
        return {**result, **answer}

    def _content(self, item: dict[str, Any], variables: dict[str, Any]) -> str:
        """Text of one of `files`; AnsibleActionFail where its source is missing or not text."""
        if item["content"] is not None:
            return item["content"]
        try:
            if item["src"] is not None:
                return Path(self._find_needle("files", item["src"])).read_text(encoding="utf-8")
            template = lookup_loader.get("ansible.builtin.template", loader=self._loader, templar=self._templar)
            return template.run([item["template"]], variables=variables, convert_data=False)[0]
        except (AnsibleError, OSError, UnicodeDecodeError) as error:
            raise AnsibleActionFail(f"{item['dest']}: {error}") from error
