"""Units of servers on the host."""

from __future__ import annotations

import http.client
import json

from conftest import MODEL
from standin.settings import VOLTA

START = 300


class Unit:
    """A unit, as its operator sees it."""

    def __init__(self, host, key, name="vllm@gpu0"):
        self.host, self.key, self.name = host, key, name

    def show(self, name):
        return self.host.check_output(f"systemctl show {self.name} --property {name} --value")

    def log(self):
        return self.host.check_output(f"journalctl --unit {self.name} --no-pager --output cat")

    def ready(self, but=""):
        """Wait until a start other than `but` is ready."""
        other = f"! systemctl show {self.name} --property InvocationID | grep -q '{but or 'none'}'"
        active = f"systemctl is-active --quiet {self.name}"
        self.host.run(f"timeout {START} sh -c \"until {other} && {active}; do sleep 0.5; done\"")
        assert self.show("ActiveState") == "active", self.last()

    def last(self):
        """The supervisor's last line."""
        return [line for line in self.log().splitlines() if line.startswith(f"{self.name} ")][-1]

    def processes(self):
        """{id: (parent, name)} of all that runs on the host."""
        lines = self.host.check_output("ps -eo pid=,ppid=,args=").splitlines()
        return {int(pid): (int(parent), name) for pid, parent, name in (line.split(maxsplit=2) for line in lines)}

    def tree(self):
        """{id: name} of the supervisor and all below it."""
        there, found = self.processes(), {int(self.show("MainPID")): "supervisor"}
        while more := {pid: name for pid, (parent, name) in there.items() if parent in found and pid not in found}:
            found.update(more)
        return found

    def engine(self, name="EngineCore"):
        """The engine core of the released vLLM, which its API server has started, or what that has: Worker_TP1."""
        (process,) = [pid for pid, title in self.tree().items() if title.startswith(f"VLLM::{name}")]
        return process

    def rank(self):
        """The rank of the port beside its engine: both are forks of the process that has imported vLLM."""
        return max(pid for pid, name in self.tree().items() if "serve --config" in name)

    def request(self, body, tokens):
        """Ask; (status, answer) of it, which may end early. Status None without one."""
        connection = http.client.HTTPConnection("127.0.0.1", VOLTA.port, timeout=120)
        question = {"model": MODEL, "prompt": "You may reproduce", "max_tokens": tokens, "temperature": 0,
                    "ignore_eos": True, **body}  # fmt: skip
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        try:
            connection.request("POST", "/v1/completions", json.dumps(question), headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            return None, str(error)
        finally:
            connection.close()
