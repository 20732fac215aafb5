"""The nodes of a server over several hosts, as its units start them."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest
from supervised import ROOT
from vllm_serving import stage as stages
from vllm_serving.cluster import FIRST_RANK, PARTS, SPAN, Cluster, Member, answers, describe, node_command, read_cluster
from vllm_serving.errors import ConfigError
from vllm_serving.head import KEPT_FILE, keep_secrets
from vllm_serving.log import Log
from vllm_serving.versions import v0_9_2

ENVIRONMENT = {
    "VLLM_SERVING_HEAD": "10.0.0.1:6379", "VLLM_SERVING_HOSTS": "2", "VLLM_SERVING_RANKS": "4",
    "VLLM_HOST_IP": "10.0.0.2", "RAY_AUTH_TOKEN": "secret",
}  # fmt: skip


def test_server_of_one_host_has_no_cluster():
    assert read_cluster({}) is None


@pytest.mark.parametrize(("name", "value"), [
    ("RAY_AUTH_TOKEN", ""), ("RAY_AUTH_TOKEN", " "), ("VLLM_SERVING_HEAD", "10.0.0.1"), ("VLLM_SERVING_HEAD", ":63"),
    ("VLLM_SERVING_RANKS", "four"),
])  # fmt: skip
def test_cluster_is_refused_without_token_or_address(name, value):
    with pytest.raises(ConfigError, match=f"{name}: found"):
        read_cluster({**ENVIRONMENT, name: value})


def test_node_lends_exactly_its_ranks_and_shows_no_token():
    command = node_command(read_cluster(ENVIRONMENT))
    assert "--num-gpus=4" in command
    assert "--address=10.0.0.1:6379" in command
    assert not any("secret" in word for word in command)
    assert "--head" not in command
    head = node_command(read_cluster({**ENVIRONMENT, "VLLM_HOST_IP": "10.0.0.1"}))
    assert {"--head", "--port=6379", "--include-dashboard=false", "--no-monitor", "--disable-usage-stats"} <= set(head)


def test_key_of_the_api_stays_on_the_first_host(tmp_path):
    """vLLM hands its own variables on to every rank but for those that a file in its settings names."""
    for _ in range(2):
        found = keep_secrets(tmp_path)
    assert "VLLM_API_KEY" in json.loads((tmp_path / "settings" / KEPT_FILE).read_text())
    assert found == {"VLLM_CONFIG_ROOT": str(tmp_path / "settings")}


def test_ports_of_a_node_lie_apart_within_its_span():
    words = dict(word.lstrip("-").split("=", 1) for word in node_command(read_cluster(ENVIRONMENT)) if "=" in word)
    parts = [int(words[name]) for name in PARTS]
    assert len({6379, *parts}) == len(parts) + 1
    assert max(parts) < int(words["min-worker-port"]) == 6379 + FIRST_RANK
    assert int(words["max-worker-port"]) == 6379 + SPAN - 1


@pytest.mark.parametrize(("other", "count", "said"), [
    (Member("10.0.0.2", "e", 4.0), 2, "10.0.0.1, 10.0.0.2"),
    (Member("10.0.0.2", "f", 4.0), 1, "10.0.0.2 runs f instead of e: activate the same generation on it"),
    (Member("10.0.0.2", "e", 2.0), 1, "10.0.0.2 lends 2 GPUs instead of 4"),
])  # fmt: skip
def test_only_hosts_of_the_same_kind_are_taken_in(other, count, said):
    ready, text = describe([Member("10.0.0.1", "e", 4.0), other], read_cluster(ENVIRONMENT), "e")
    assert ready == count
    assert said in text


def test_phase_tells_which_hosts_are_missing():
    log = Log(v0_9_2)
    log.feed(b"waits for hosts: 1 of 2 there (10.0.0.1)\n")
    assert (log.phase, log.waits_for_hosts) == ("waits for hosts: 1 of 2 there (10.0.0.1)", True)
    log.feed(b"all hosts are there: 10.0.0.1, 10.0.0.2\nLoading weights on\n")
    assert (log.phase, log.waits_for_hosts) == ("loading weights", False)


@pytest.fixture
def head():
    """A listening socket in place of a cluster's head."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening


def test_connections_tell_a_head_from_none(head):
    port = head.getsockname()[1]
    assert answers("127.0.0.1", port) is True
    head.close()
    assert answers("127.0.0.1", port) is False


class Run:
    """A stage whose node is a process that sleeps."""

    def __init__(self, monkeypatch, head, command=("sleep", "60")):
        monkeypatch.setattr(stages, "LOOK", 0.1)
        started = threading.Event()
        monkeypatch.setattr(stages, "node_command", lambda cluster: started.set() or list(command))
        monkeypatch.setattr(stages.signal, "signal", lambda *_: None)
        port = head.getsockname()[1]
        cluster = Cluster("127.0.0.1", port, port, 2, 4, "127.0.0.1")
        self.stage = stages.Stage("big", cluster, lambda: stages.RayNode(cluster))
        self.status = None
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        assert started.wait(20)

    def run(self):
        self.status = self.stage.run()

    def end(self):
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.status


def test_stage_ends_with_its_head(monkeypatch, head, capsys):
    run = Run(monkeypatch, head)
    head.close()
    assert run.end() == 1
    assert "refuses connections" in capsys.readouterr().out


def test_stage_ends_with_its_node(monkeypatch, head, capsys):
    assert Run(monkeypatch, head, ["false"]).end() == 1
    assert "the node ended with status 1" in capsys.readouterr().out


def test_stopped_stage_ends_its_node(monkeypatch, head):
    run = Run(monkeypatch, head)
    run.stage.stop.set()
    assert run.end() == 0


def test_stage_without_environment_is_not_started_again():
    done = subprocess.run(
        [sys.executable, "-m", "vllm_serving.stage", "big"], capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "vllm_src")},
    )  # fmt: skip
    assert done.returncode == 78
    assert "VLLM_SERVING_HEAD: found nothing" in done.stdout
