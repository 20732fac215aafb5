"""Hosts join a server whose vLLM starts ranks on each of them by itself; each side notices the end of the other."""

import asyncio
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from supervised import ROOT
from vllm_serving import gate as gates
from vllm_serving import stage as stages
from vllm_serving.cluster import OUTPUT, Cluster
from vllm_serving.gate import HEAD, STAGE, STORE, Gate, Joined, Lost, node_arguments, proof, written
from vllm_serving.supervisor import members

TOKEN = "a secret of the link"
# Of this process: another one may have the same free port in mind.
ADDRESS = f"127.{1 + os.getpid() % 250}.{os.getpid() // 250 % 250}.1"


def free_port():
    """A port whose next one is free too."""
    with socket.socket() as first, socket.socket() as second:
        first.bind((ADDRESS, 0))
        try:
            second.bind((ADDRESS, first.getsockname()[1] + STORE))
        except OSError:
            return free_port()
        return first.getsockname()[1]


def cluster_of(port, address=ADDRESS, hosts=2):
    return Cluster(ADDRESS, port, port, hosts, 4, address)


class Head:
    """A gate in a thread.

    Attributes:
        went: is set when all hosts are there.
        lost: what the gate said in the end.
    """

    def __init__(self, hosts=2):
        self.port, self.hosts, self.lost = free_port(), hosts, None
        self.went = threading.Event()
        self.thread = threading.Thread(target=asyncio.run, args=(self.run(),), daemon=True)
        self.thread.start()
        self.wait(lambda: not socket.socket().connect_ex((ADDRESS, self.port)))

    async def run(self):
        self.gate, self.loop = Gate(cluster_of(self.port, hosts=self.hosts), TOKEN), asyncio.get_running_loop()
        self.lost = await self.gate.run(self.went.set)

    def end(self):
        self.gate.complete.set()
        if not self.gate.lost.done():
            self.gate.lost.set_result("ended")

    def join(self, address, token=TOKEN):
        return Joined(cluster_of(self.port, address, self.hosts), token)

    def raw(self, address="127.0.0.9"):
        """A connection of somebody, and the gate's first message."""
        connection = socket.create_connection((ADDRESS, self.port), 10, (address, 0))
        return connection, json.loads(connection.makefile("rb").readline())

    @staticmethod
    def wait(found, seconds=20):
        end = time.monotonic() + seconds
        while not found():
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture
def head():
    started = Head()
    yield started
    # The end of a connection may have ended it.
    with contextlib.suppress(RuntimeError):
        started.loop.call_soon_threadsafe(started.end)
    started.thread.join(20)


def number_of(joined):
    found = []
    Head.wait(lambda: (number := joined.number()) is not None and not found.append(number))
    return found[0]


def test_hosts_join_in_any_order_and_get_their_number():
    head = Head(hosts=3)
    third = head.join("127.0.0.3")
    assert third.number() is None
    assert not head.went.wait(0.3)
    second = head.join("127.0.0.2")
    assert head.went.wait(20)
    assert [number_of(joined) for joined in (second, third)] == [1, 2]
    second.close("ended")
    head.thread.join(20)


def test_command_of_a_node_names_head_and_store():
    cluster = cluster_of(6379, "127.0.0.2")
    assert node_arguments(cluster, 0) == [
        "--nnodes", "2", "--node-rank", "0", "--master-addr", ADDRESS, "--master-port", str(6379 + STORE),
    ]  # fmt: skip
    assert node_arguments(cluster, 1)[-1] == "--headless"


@pytest.mark.parametrize(("leave", "reason"), [
    (lambda joined: joined.close("vLLM was killed by SIGKILL"), "vLLM was killed by SIGKILL"),
    (lambda joined: joined.connection.close(), "it has closed the connection"),
])  # fmt: skip
def test_head_learns_at_once_which_host_is_lost(head, leave, reason):
    joined = head.join("127.0.0.2")
    assert number_of(joined) == 1
    leave(joined)
    head.thread.join(5)
    assert head.lost == f"the host 127.0.0.2 is lost: {reason}"


def test_stage_learns_that_the_head_is_lost(head):
    joined = head.join("127.0.0.2")
    assert number_of(joined) == 1
    head.loop.call_soon_threadsafe(next(iter(head.gate.members.values())).transport.abort)
    with pytest.raises(Lost):
        Head.wait(lambda: joined.number() is not None)


def test_host_that_leaves_before_the_start_is_waited_for(capsys):
    head = Head(hosts=3)
    for number in (3, 2):
        joined = head.join(f"127.0.0.{number}")
        Head.wait(lambda: head.gate.members)
        joined.close("stopped as asked")
        Head.wait(lambda: not head.gate.members)
    both = [head.join(f"127.0.0.{number}") for number in (2, 3)]
    assert [number_of(joined) for joined in both] == [1, 2]
    both[1].close("ended")
    head.thread.join(20)
    alone, all_there = "waits for hosts: 1 of 3 there (HEAD)", "all hosts are there: 127.0.0.2, 127.0.0.3, HEAD"
    two = "waits for hosts: 2 of 3 there (127.0.0.{}, HEAD)"
    printed = capsys.readouterr().out.replace(ADDRESS, "HEAD").splitlines()
    assert printed == [alone, two.format(3), alone, two.format(2), alone, two.format(2), all_there]


def hello(nonce, token=TOKEN, side=STAGE, **changes):
    own = {"nonce": "n", "proof": proof(token, side, nonce, "n"), "environment": OUTPUT, "gpus": 4}
    return written(**{**own, **changes})


STRANGERS = {
    "nothing": lambda nonce: b"", "empty": lambda nonce: b"\n", "no mapping": lambda nonce: b"[]\n",
    "long": lambda nonce: b"x" * 10_000, "another token": lambda nonce: hello(nonce, "another"),
    "no proof": lambda nonce: hello(nonce, proof=None), "not ASCII": lambda nonce: hello(nonce, proof="é"),
    "other side": lambda nonce: hello(nonce, side=HEAD), "replayed": lambda nonce: hello("of another connection"),
}  # fmt: skip


@pytest.mark.parametrize("said", STRANGERS.values(), ids=STRANGERS)
def test_strangers_are_not_taken_in(head, said, monkeypatch):
    monkeypatch.setattr(gates, "GREETING", 0.5)
    connection, challenge = head.raw()
    connection.sendall(said(challenge["nonce"]))
    connection.settimeout(20)
    # Neither an answer nor the head's proof.
    assert connection.recv(100) == b""
    assert not head.went.is_set() and not head.gate.members
    assert number_of(head.join("127.0.0.2")) == 1


def test_stage_with_another_key_says_so(head):
    with pytest.raises(Lost, match="closed the connection; has it another RAY_AUTH_TOKEN"):
        head.join("127.0.0.2", "another")


def test_stage_shows_no_key_to_a_head_without_it():
    heard = []

    def answer():
        connection, _ = listening.accept()
        connection.sendall(written(nonce="n"))
        heard.append(connection.recv(4096))
        connection.sendall(written(proof="0" * 64))

    with socket.create_server((ADDRESS, 0)) as listening:
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Lost, match="proves nothing"):
            Joined(cluster_of(listening.getsockname()[1]), TOKEN)
        thread.join(20)
    assert heard and TOKEN.encode() not in heard[0]


@pytest.mark.parametrize(("changes", "text"), [
    ({"environment": "older"}, f"127.0.0.9 runs older instead of {OUTPUT}: activate the same generation on it"),
    ({"gpus": 2}, "127.0.0.9 lends 2 GPUs instead of 4"),
])  # fmt: skip
def test_host_of_another_kind_is_named_and_waited_for(head, capsys, changes, text):
    connection, challenge = head.raw()
    connection.sendall(hello(challenge["nonce"], **changes))
    assert json.loads(connection.recv(4096))["proof"]
    Head.wait(lambda: head.gate.members)
    assert not head.went.is_set()
    assert text in capsys.readouterr().out
    connection.close()
    assert number_of(head.join("127.0.0.2")) == 1


def test_host_that_comes_again_takes_the_place_of_its_lost_self(head):
    kept, challenge = head.raw("127.0.0.2")
    kept.sendall(hello(challenge["nonce"], gpus=1))
    Head.wait(lambda: head.gate.members)
    joined = head.join("127.0.0.2")
    assert number_of(joined) == 1
    assert [member.gpus for member in head.gate.members] == [4]


def test_kernel_gives_up_a_host_that_is_cut_off(head):
    """Ten seconds; the cut itself is a test of stand-ins."""
    joined = head.join("127.0.0.2")
    assert number_of(joined) == 1
    for one in (joined.connection, next(iter(head.gate.members.values())).get_extra_info("socket")):
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
        idle, interval, count = (one.getsockopt(socket.IPPROTO_TCP, option) for option in
                                 (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT))  # fmt: skip
        assert idle + interval * count == 10


def test_gate_without_its_port_ends_the_server():
    """The process group stands for that of vLLM."""
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "vllm_src"), "VLLM_SERVING_HEAD": f"{ADDRESS}:{port}",
                   "VLLM_SERVING_HOSTS": "2", "RAY_AUTH_TOKEN": TOKEN}  # fmt: skip
    with socket.create_server((ADDRESS, port + STORE)):
        done = subprocess.run(
            ["sh", "-c", f"{sys.executable} -m vllm_serving.gate 1; echo goes on"], env=environment, text=True,
            capture_output=True, start_new_session=True, timeout=30,
        )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert f"error: port {port} or {port + STORE} of {ADDRESS} cannot be had" in done.stdout
    assert "goes on" not in done.stdout


TITLE = b"VLLM::Worker"


class Run:
    """A stage of a head whose ranks are a process that sleeps."""

    def __init__(self, monkeypatch, head, tmp_path, command="exec sleep 60"):
        monkeypatch.setattr(stages, "LOOK", 0.05)
        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
        monkeypatch.setattr(stages.signal, "signal", lambda *_: None)
        self.started = tmp_path / "started"
        monkeypatch.setattr(stages, "command_of", lambda options, *arguments: [
            "sh", "-c", f"echo $$ {options.name} {' '.join(arguments)} > {self.started}; {command}",
        ])  # fmt: skip
        cluster = cluster_of(head.port, "127.0.0.2")
        self.stage = stages.Stage("big", cluster, lambda: stages.OwnNode(cluster, tmp_path / "big.yaml", TITLE))
        self.thread = threading.Thread(target=lambda: setattr(self, "status", self.stage.run()))
        self.thread.start()
        Head.wait(lambda: self.started.exists() and self.started.read_text().endswith("\n"))
        self.pid, _, self.said = self.started.read_text().partition(" ")

    def end(self):
        self.thread.join(20)
        assert not self.thread.is_alive()
        # Ranks whose vLLM is gone are waited for by the init.
        Head.wait(lambda: not list(members(int(self.pid))))
        return self.status


def test_stage_starts_its_ranks_and_ends_with_the_head(monkeypatch, head, tmp_path, capsys):
    run = Run(monkeypatch, head, tmp_path)
    assert run.said.split() == ["big.yaml", *node_arguments(run.stage.cluster, 1)]
    head.loop.call_soon_threadsafe(next(iter(head.gate.members.values())).transport.abort)
    assert run.end() == 1
    printed = capsys.readouterr().out
    assert f"lends 4 GPUs to {ADDRESS}:{head.port}" in printed
    assert "ends: the server is lost: " in printed


def test_stage_tells_the_head_how_its_ranks_ended(monkeypatch, head, tmp_path):
    assert Run(monkeypatch, head, tmp_path, "exit 3").end() == 1
    head.thread.join(20)
    assert head.lost == "the host 127.0.0.2 is lost: vLLM ended by itself with status 3"


def test_stopped_stage_ends_its_ranks_and_tells_the_head(monkeypatch, head, tmp_path):
    run = Run(monkeypatch, head, tmp_path)
    run.stage.stop.set()
    assert run.end() == 0
    head.thread.join(20)
    assert head.lost == "the host 127.0.0.2 is lost: stopped as asked"


TITLED = "bash -c 'exec -a {} sleep 60' &"


def test_stage_ends_soon_after_one_of_its_ranks(monkeypatch, head, tmp_path):
    """While its vLLM, which has another rank, goes on."""
    ranks = f"{TITLED.format('VLLM::Worker_TP0')} {TITLED.format('VLLM::Worker_TP1')} echo $! > {tmp_path}/rank; wait"
    run = Run(monkeypatch, head, tmp_path, ranks)
    Head.wait(lambda: len(set(stages.ranks_of(int(run.pid), TITLE))) == 2)
    time.sleep(10 * stages.LOOK)
    assert run.thread.is_alive()
    os.kill(int((tmp_path / "rank").read_text()), signal.SIGKILL)
    assert run.end() == 1
    head.thread.join(20)
    assert head.lost == "the host 127.0.0.2 is lost: 1 of 2 ranks ended"


@pytest.mark.parametrize(("title", "by"), [("cc1plus", ""), ("VLLM::Worker_TP1", "sh -c {} &")],
                         ids=["another title", "a child of a child"])  # fmt: skip
def test_other_processes_of_a_stage_may_end(monkeypatch, head, tmp_path, title, by):
    written = tmp_path / "other"
    other = f"{TITLED.format(title)} echo $! > {written}; "
    if by:
        other = by.format(shlex.quote(f"{other} wait; sleep 60"))
    run = Run(monkeypatch, head, tmp_path, f"{TITLED.format('VLLM::Worker_TP0')} {other} wait; exec sleep 60")
    Head.wait(lambda: written.exists() and written.read_text())
    Head.wait(lambda: len(set(stages.ranks_of(int(run.pid), TITLE))) == 1)
    pid = int(written.read_text())
    Head.wait(lambda: Path(f"/proc/{pid}/cmdline").read_text().startswith(title))
    # The stage has seen all of them.
    time.sleep(10 * stages.LOOK)
    os.kill(pid, signal.SIGKILL)
    time.sleep(10 * stages.LOOK)
    assert run.thread.is_alive()
    run.stage.stop.set()
    assert run.end() == 0
