"""Processes under the units: what clients, journal and host see if one is killed, and at a stop."""

from __future__ import annotations

import json
import threading
import time

import pytest
from conftest import BALANCER
from units import Unit

# What takes an engine seconds to answer.
SEQUENCES, TOKENS = 32, 900
# Seconds in which clients of a killed engine have their answer.
TOLD = 15


class Client(threading.Thread):
    """A client in the background who wants much: `answer` and the moment when it came."""

    def __init__(self, unit, **body):
        super().__init__(daemon=True)
        self.unit, self.body = unit, body
        self.start()

    def run(self):
        self.answer = self.unit.request({"n": SEQUENCES, "temperature": 0.8, **self.body}, TOKENS)
        self.at = time.monotonic()


@pytest.fixture(scope="module", autouse=True)
def killed_rank(v100, key):
    """The unit of the port, which has lost a rank: it starts again beside the first tests. Its start and processes."""
    unit = Unit(v100, key, "vllm@port")
    unit.ready()
    found = unit, unit.show("InvocationID"), unit.tree()
    v100.check_output(f"kill -9 {unit.rank()}")
    return found


@pytest.fixture
def unit(v100, key):
    unit = Unit(v100, key, "vllm@gpu0")
    v100.check_output(f"systemctl start {unit.name}")
    unit.ready()
    return unit


@pytest.fixture
def session(unit, ask):
    """A session that the balancer has on this unit's server."""
    def is_there(session):
        ask.text(BALANCER, session, prompt="a")
        return ask.served_by()[-1] == "8000"

    # The balancer passes a server that has failed by for some seconds.
    end = time.monotonic() + 15
    while time.monotonic() < end:
        if found := next((name for name in map(str, range(9)) if is_there(name)), None):
            return found
    raise AssertionError("no session goes to the server")


def test_a_killed_engine_is_told_and_comes_back(unit, ask, session):
    """A request that vLLM refuses before it is not taken for the reason. Its sessions have another server."""
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
    for _ in range(3):
        assert ask.text(BALANCER, session, prompt="a")
        assert ask.served_by()[-1] == "8001"
    unit.ready(but=invocation)
    assert int(unit.show("NRestarts")) == restarts + 1
    assert "ends: vLLM ended by itself with status 0 while serving: Engine core proc EngineCore_DP0 died" in unit.log()
    assert not set(before) & set(unit.processes())
    assert unit.request({}, 4)[0] == 200


def test_a_start_compiles_into_directories_of_its_own(unit):
    """And its shared memory is no other process's."""
    process = unit.show("MainPID")
    environment = unit.host.check_output(f"tr '\\0' '\\n' < /proc/{process}/environ").splitlines()
    places = dict(line.split("=", 1) for line in environment if "CACHE" in line and "=" in line)
    caches = {name: path for name, path in places.items() if "/vllm@gpu0/" in path}
    assert {"TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT"} <= set(caches)
    assert unit.host.run("ls /dev/shm /tmp | grep -E 'psm_|sem.mp|torch'").rc != 0


def test_a_stop_finishes_what_runs_and_leaves_nothing(unit, ask, session):
    """And its sessions have another server as soon as it begins."""
    before, client = unit.tree(), Client(unit)
    time.sleep(0.3)
    began = time.monotonic()
    unit.host.check_output(f"systemctl stop --no-block {unit.name}")
    assert ask.text(BALANCER, session, prompt="a")
    assert client.is_alive()
    unit.host.check_output(f"systemctl stop {unit.name}")
    took = time.monotonic() - began
    client.join(10)
    status, text = client.answer
    assert (status, json.loads(text)["usage"]["completion_tokens"]) == (200, SEQUENCES * TOKENS)
    assert took < 30
    assert unit.show("Result") == "success"
    assert unit.last() == "vllm@gpu0 ends: stopped as asked"
    assert unit.request({}, 4)[0] is None
    assert ask.text(BALANCER, session, prompt="a")
    assert ask.served_by()[-2:] == ["8001"] * 2
    assert not set(before) & set(unit.processes())
    assert not unit.host.file("/run/vllm/gpu0").exists


def test_a_killed_rank_of_the_port_comes_back(killed_rank, ask):
    unit, invocation, before = killed_rank
    unit.ready(but=invocation)
    assert not set(before) & set(unit.processes())
    assert ask("http://127.0.0.1:8002", model="port", prompt="a")[0] == 200
    reason = [line for line in unit.log().splitlines() if line.startswith("vllm@port ends: ")][-1]
    assert "while serving" in reason
