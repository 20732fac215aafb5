"""A server that is killed, hangs, loses its port or its disk, or is stopped while it answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time

import pytest
from conftest import MODEL, TEST, minutes

UNIT = "vllm@demo.service"
WATCHDOG = 30
START = 300
OPTIONS = "/etc/kepler/instances/demo.yaml"
DROPIN = "/run/systemd/system/vllm@demo.service.d/test.conf"
PORT = 8000  # in the container


class Server:
    """The unit of the stand-in, as its operator sees it."""

    def __init__(self, host, key):
        self.host, self.key = host, key

    def show(self, name):
        return self.host.check_output(f"systemctl show {UNIT} --property {name} --value")

    def said(self):
        """Lines of the supervisor, from the first to the last."""
        log = self.host.check_output(f"journalctl --unit {UNIT} --no-pager --output cat")
        return [line for line in log.splitlines() if line.startswith("vllm@demo ")]

    def wait(self, condition, seconds=START):
        """Wait until a command of the shell succeeds, on the host: asking from here takes ten times the processor."""
        self.host.run(f"timeout {seconds} sh -c 'until {condition}; do sleep 0.5; done'")
        assert self.host.run(condition).rc == 0, (
            f"{self.show('ActiveState')}: {self.show('StatusText')}\n{self.said()[-5:]}"
        )

    def ready(self, seconds=START):
        """Wait until the server has made a token; then as if it had run for long."""
        self.wait(f"systemctl is-active --quiet {UNIT}", seconds)
        self.host.check_output("rm -f /run/vllm/demo/starts")

    def again(self, seconds=START):
        """Wait until another server than now has made a token; how long that took."""
        before, began = self.show("InvocationID"), time.monotonic()
        self.wait(f"! systemctl show {UNIT} --property InvocationID | grep -q {before}", seconds)
        self.ready(seconds)
        return time.monotonic() - began

    def children(self, process):
        """Ids of what a process started, in that order."""
        return self.host.check_output(f"cat /proc/{process}/task/{process}/children").split()

    def child(self):
        """The API server: the supervisor's only child."""
        (api,) = self.children(self.show("MainPID"))
        return api

    def forks(self):
        """Engine and ranks: children of the process that the API server forked first, once it had imported vLLM."""
        return self.children(self.children(self.child())[0])

    def rank(self):
        """A worker rank: the engine is older."""
        _, *ranks = self.forks()
        return ranks[-1]

    def ask(self, tokens=4, stream=False, timeout=120):
        """A started answer to one completion, and its connection, to be closed."""
        connection = http.client.HTTPConnection("127.0.0.1", TEST.port, timeout=timeout)
        body = {"model": MODEL, "prompt": "You may reproduce", "max_tokens": tokens, "temperature": 0, "stream": stream,
                "ignore_eos": True}  # fmt: skip
        connection.request("POST", "/v1/completions", json.dumps(body), {
            "Authorization": f"Bearer {self.key}", "Content-Type": "application/json",
        })
        return connection.getresponse(), contextlib.closing(connection)

    def answers(self):
        answer, connection = self.ask()
        with connection:
            return answer.status == 200 and json.loads(answer.read())["choices"][0]["text"].startswith(" and distribut")


@pytest.fixture(scope="module")
def server(k80, key):
    """The unit with a watchdog that a test can wait for, and two ranks: four take twice as long to start."""
    server = Server(k80, key)
    k80.check_output(f"sed -i.kept '/tensor-parallel-size/s/4/2/' {OPTIONS}")
    k80.check_output(f"mkdir -p $(dirname {DROPIN})")
    k80.check_output(f"printf '[Unit]\\nStartLimitIntervalSec=0\\n[Service]\\nWatchdogSec={WATCHDOG}\\n' > {DROPIN}")
    k80.check_output(f"systemctl daemon-reload && systemctl restart {UNIT}")
    server.ready()
    yield server
    k80.check_output(f"mv {OPTIONS}.kept {OPTIONS}")
    k80.check_output(f"rm {DROPIN} && systemctl daemon-reload && systemctl restart {UNIT}")
    server.ready()


def test_ready_is_a_token(server):
    """`systemctl restart` came back, so there is an answer; the journal says what started."""
    assert server.answers()
    assert server.show("Type") == "notify"
    start = [line for line in server.said() if " starts: " in line][-1]
    generation = server.host.check_output("basename $(readlink /opt/kepler/current)")
    assert f"starts: generation {generation}, model " in start
    assert f"{MODEL}, GPUs cpu, http://0.0.0.0:{PORT}" in start


def test_a_killed_server_comes_back(server):
    server.host.check_output(f"kill -9 {server.child()}")
    server.again()
    assert "ends: vLLM was killed by SIGKILL while serving" in "\n".join(server.said()[-4:])
    assert server.answers()


@minutes
def test_a_killed_supervisor_leaves_nobody(server):
    before = server.forks()
    assert len(before) >= 2
    server.host.check_output(f"kill -9 {server.show('MainPID')}")
    server.again()
    assert not set(before) & set(server.forks())
    assert server.answers()


def test_a_killed_rank_is_no_wrong_answer(server):
    """The API server is still there and would answer; the supervisor's next question finds that nobody computes."""
    before = server.show("InvocationID")
    server.host.check_output(f"kill -9 {server.rank()}")
    while server.show("InvocationID") == before:
        with contextlib.suppress(OSError, http.client.HTTPException):  # no answer is no wrong one
            assert server.answers() or server.ask()[0].status >= 500
        time.sleep(2)
    server.ready()
    assert server.answers()


def test_a_rank_that_hangs_starves_the_watchdog(server):
    """/health answers all the while."""
    restarts = int(server.show("NRestarts"))
    server.host.check_output(f"kill -STOP {server.rank()}")
    took = server.again()
    assert int(server.show("NRestarts")) == restarts + 1
    assert any("ends: hung: no sign of life for" in line for line in server.said()[-5:])
    assert took < 2 * WATCHDOG + START
    assert server.answers()


@minutes
def test_many_long_requests_are_no_hang(server):
    """Longer than the watchdog, all ranks busy: nobody restarts it."""
    before, end = server.show("InvocationID"), time.monotonic() + 1.5 * WATCHDOG

    def load():
        while time.monotonic() < end:
            answer, connection = server.ask(tokens=900)
            with connection:
                answer.read()

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.show("InvocationID") == before
    assert server.answers()


@minutes
def test_a_port_that_is_taken_and_freed(server):
    server.host.check_output(f"systemctl stop {UNIT}")
    listen = f"/usr/libexec/platform-python -m http.server --bind 0.0.0.0 {PORT}"
    server.host.check_output(f"systemd-run --unit taken-port {listen}")
    try:
        time.sleep(2)
        assert server.host.run(f"systemctl start {UNIT}").rc != 0
        reason = "ends: port 8000 of 0.0.0.0 cannot be had: Address already in use"
        assert any(reason in line for line in server.said()[-3:])
    finally:
        server.host.check_output("systemctl stop taken-port")
    # By itself, at the next try.
    server.ready()
    assert server.answers()


@minutes
def test_a_full_disk(server):
    """Neither the home nor anything else on a disk is needed to start or to answer."""
    server.host.check_output("mount -t tmpfs -o size=64k,mode=0755 full /var/lib/vllm && chown vllm: /var/lib/vllm")
    try:
        server.host.run("head -c 1M /dev/zero > /var/lib/vllm/full")
        assert server.host.run("touch /var/lib/vllm/a && echo a > /var/lib/vllm/a").rc != 0
        server.host.check_output(f"systemctl restart {UNIT}")
        server.ready()
        assert server.answers()
    finally:
        server.host.check_output("umount -l /var/lib/vllm")


@minutes
def test_an_engine_that_never_starts_gives_up(server):
    """Five starts, longer and longer pauses, then the state `failed` and one sentence that says why."""
    drop = DROPIN.replace("test.conf", "wrong.conf")
    # The environment file of the test comes after the instance's.
    server.host.check_output("echo VLLM_KEPLER_DEVICE=gpu > /run/wrong.env")
    server.host.check_output(f"printf '[Service]\\nEnvironmentFile=/run/wrong.env\\n' > {drop}")
    server.host.check_output("systemctl daemon-reload")
    try:
        server.host.check_output(f"systemctl stop {UNIT}")
        server.host.check_output(f"systemctl --no-block start {UNIT}")
        end = time.monotonic() + START
        while not any("waits 10 s before start 2 of 5" in line for line in server.said()[-3:]):
            assert time.monotonic() < end, server.said()[-5:]
            time.sleep(1)
        # As if four more had failed: the test need not wait for their pauses.
        server.host.check_output(f"sed -i 1s/.*/5/ /run/vllm/demo/starts; kill -9 {server.show('MainPID')}")
        while server.show("ActiveState") != "failed":
            assert time.monotonic() < end, server.said()[-5:]
            time.sleep(1)
        assert "gave up after 5 starts in a row; the last one: vLLM ended by itself" in server.said()[-1]
        assert "VLLM_KEPLER_DEVICE" in server.said()[-1]
    finally:
        server.host.check_output(f"rm {drop} && systemctl daemon-reload && systemctl restart {UNIT}")
    server.ready()


def test_a_stop_lets_streams_end_and_turns_others_away(server):
    """No server runs afterwards."""
    stream, connection = server.ask(tokens=800, stream=True)
    with connection:
        assert stream.status == 200
        server.host.check_output(f"systemctl --no-block stop {UNIT}")
        end = time.monotonic() + 20
        while server.show("ActiveState") == "active" and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(1)
        turned, other = server.ask()
        with other:
            assert turned.status == 503
            assert int(turned.headers["Retry-After"]) > 0
        answered = stream.read().decode()
    assert answered.count("data: {") >= 800
    assert answered.rstrip().endswith("data: [DONE]")
    server.host.check_output(f"systemctl stop {UNIT}")  # waits for the one that was asked for
    assert server.said()[-1] == "vllm@demo ends: stopped as asked"


def test_failing_for_good_is_said_and_ends(server):
    """Options that vLLM does not take: no restart helps, so there is none. What comes after starts the right ones."""
    server.host.check_output(f"sed -i '0,/{{/s//{{\"no-such-option\": 1,/' {OPTIONS}")
    assert server.host.run(f"systemctl restart {UNIT}").rc != 0
    assert server.show("ActiveState") == "failed"
    assert "no-such-option" in server.said()[-1]
