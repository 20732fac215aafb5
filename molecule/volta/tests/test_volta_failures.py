"""vLLM 0.12.0's processes under the unit: what clients, journal and host see if one is killed, and at a stop."""

from __future__ import annotations

import http.client
import json
import threading
import time

import pytest
from standin import hosts
from standin.settings import VOLTA

UNIT = "vllm@demo.service"
START = 300
# What takes an engine seconds to answer.
SEQUENCES, TOKENS = 32, 900
# Seconds in which clients of a killed engine have their answer.
TOLD = 15


class Unit:
    """The unit, as its operator sees it."""

    def __init__(self, host, key):
        self.host, self.key = host, key

    def show(self, name):
        return self.host.check_output(f"systemctl show {UNIT} --property {name} --value")

    def ready(self, but=""):
        """Wait until a start other than `but` is ready."""
        other = f"! systemctl show {UNIT} --property InvocationID | grep -q '{but or 'none'}'"
        active = f"systemctl is-active --quiet {UNIT}"
        self.host.run(f"timeout {START} sh -c \"until {other} && {active}; do sleep 0.5; done\"")
        assert self.show("ActiveState") == "active", self.last()

    def last(self):
        """The supervisor's last line."""
        log = self.host.check_output(f"journalctl --unit {UNIT} --no-pager --output cat")
        return [line for line in log.splitlines() if line.startswith("vllm@demo ")][-1]

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

    def engine(self):
        """The engine core, which the API server has started."""
        (core,) = [pid for pid, name in self.tree().items() if name.startswith("VLLM::EngineCore")]
        return core

    def request(self, body, tokens):
        """Ask; (status, answer) of it, which may end early. Status None without one."""
        connection = http.client.HTTPConnection("127.0.0.1", VOLTA.port, timeout=120)
        question = {"model": hosts.model_name(), "prompt": "You may reproduce", "max_tokens": tokens, "temperature": 0,
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


class Client(threading.Thread):
    """A client in the background who wants much: `answer` and the moment when it came."""

    def __init__(self, unit, **body):
        super().__init__(daemon=True)
        self.unit, self.body = unit, body
        self.start()

    def run(self):
        self.answer = self.unit.request({"n": SEQUENCES, "temperature": 0.8, **self.body}, TOKENS)
        self.at = time.monotonic()


@pytest.fixture
def unit(v100, key):
    unit = Unit(v100, key)
    v100.check_output(f"systemctl start {UNIT}")
    unit.ready()
    return unit


def test_a_killed_engine_is_told_and_comes_back(unit):
    """A request that vLLM refuses comes before it, and is not taken for the reason."""
    invocation, restarts, before = unit.show("InvocationID"), int(unit.show("NRestarts")), unit.tree()
    assert unit.request({}, 10**6)[0] == 400
    clients = [Client(unit, stream=stream) for stream in (True, False)]
    time.sleep(0.5)
    began = time.monotonic()
    unit.host.check_output(f"kill -9 {unit.engine()}")
    for client in clients:
        client.join(TOLD)
        assert client.at - began < TOLD
        status, text = client.answer
        assert status != 200 or '"error"' in text, client.answer
    unit.ready(but=invocation)
    assert int(unit.show("NRestarts")) == restarts + 1
    log = unit.host.check_output(f"journalctl --unit {UNIT} --no-pager --output cat")
    assert "ends: vLLM ended by itself with status 0 while serving: Engine core proc EngineCore_DP0 died" in log
    assert not set(before) & set(unit.processes())
    assert unit.request({}, 4)[0] == 200


def test_a_start_compiles_into_directories_of_its_own(unit):
    """And its shared memory is no other process's."""
    process = unit.show("MainPID")
    environment = unit.host.check_output(f"tr '\\0' '\\n' < /proc/{process}/environ").splitlines()
    places = dict(line.split("=", 1) for line in environment if "CACHE" in line and "=" in line)
    caches = {name: path for name, path in places.items() if "/vllm@demo/" in path}
    assert {"TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT"} <= set(caches)
    assert unit.host.run("ls /dev/shm /tmp | grep -E 'psm_|sem.mp|torch'").rc != 0


def test_a_stop_finishes_what_runs_and_leaves_nothing(unit):
    before, client = unit.tree(), Client(unit)
    time.sleep(0.3)
    began = time.monotonic()
    unit.host.check_output(f"systemctl stop {UNIT}")
    took = time.monotonic() - began
    client.join(10)
    status, text = client.answer
    assert (status, json.loads(text)["usage"]["completion_tokens"]) == (200, SEQUENCES * TOKENS)
    assert took < 30
    assert unit.show("Result") == "success"
    assert unit.last() == "vllm@demo ends: stopped as asked"
    assert unit.request({}, 4)[0] is None
    assert not set(before) & set(unit.processes())
    assert not unit.host.file("/run/vllm/demo").exists
