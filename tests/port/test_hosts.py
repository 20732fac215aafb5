"""One model over two hosts: a stage of a pipeline on each, which Ray starts. Addresses of loopback stand for hosts."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Type
from gguf_models import gguf_model, model_alone
from quantized_models import Kind, half_model, quantized_model
from tiny_models import assert_same, make
from two_hosts import HEAD, python, two_hosts
from two_units import error_after, two_units

MODEL = Path(__file__).resolve().parents[1] / "models" / "licence-llama"
CHUNKED = {"enable_chunked_prefill": True, "max_num_batched_tokens": 64}
# Storage of the weights: maker, options of the engine.
STORAGES = {
    "half, chunked, cached": (lambda *model: half_model("qwen2", *model),
                              {"dtype": "half", "enable_prefix_caching": True, **CHUNKED}),
    "4 bits": (lambda *model: quantized_model("llama", *model, Kind("gptq", group=32)), {"dtype": "float32"}),
}  # fmt: skip
FLOAT32: dict[str, Any] = {"float32": (lambda *model: make("llama", *model), {})}
MORE = {
    **FLOAT32,
    "tied, half": (lambda *model: half_model("llama", *model, tie_word_embeddings=True), {"dtype": "half"}),
    "experts": (lambda *model: make("mixtral", *model), CHUNKED),
    "awq": (lambda *model: quantized_model("qwen2", *model, Kind("awq", group=64)), {"enable_prefix_caching": True}),
    "gguf": (lambda *model: gguf_model("qwen2", *model, lambda name: Type.Q4_K), {}),
    "gguf, experts": (lambda *model: model_alone("qwen3-moe", *model, lambda name: Type.Q8_0), {}),
}


def free_port():
    """First of enough ports for two hosts, below those that the kernel gives away by itself."""
    for port in range(20000 + os.getpid() % 40 * 260, 32000, 260):
        with socket.socket() as probe:
            if probe.connect_ex((HEAD, port)):
                return port
    raise AssertionError("no free port")


def assert_storages(hosts, tmp_path, seed, storages):
    for number, (name, (maker, options)) in enumerate(storages.items()):
        model = maker(tmp_path / str(number), seed)
        print(f"{name}: ", end="")
        ids = hosts.serve(model, **options)
        for part in (ids[:len(model.prompts)], ids[len(model.prompts):]):
            assert_same(model, part)


@pytest.fixture
def cluster(tmp_path):
    """Function that starts two hosts of so many ranks each."""
    return lambda ranks: two_hosts(free_port(), ranks, tmp_path / "nodes.log")


def test_stages_on_two_hosts_answer_as_one_rank(cluster, tmp_path, seed):
    """Token for token what transformers answers, as one rank does in the tests of each storage."""
    with cluster(1) as hosts:
        assert_storages(hosts, tmp_path, seed, STORAGES)


def test_stages_of_two_ranks_answer_as_one_rank(cluster, tmp_path, seed):
    with cluster(2) as hosts:
        assert_storages(hosts, tmp_path, seed, FLOAT32)


@pytest.mark.skipif("HOSTS_LONG" not in os.environ, reason="long form: HOSTS_LONG=1, five minutes")
def test_gguf_alone_needs_its_directory_on_one_host(tmp_path, seed):
    """The supervisor makes the directory on the first host; each host has the file."""
    (hidden := tmp_path / "runtime").mkdir()
    model = model_alone("llama", tmp_path / "file", seed, lambda name: Type.Q4_K)
    shutil.move(model.directory, hidden / "model")
    with two_hosts(free_port(), 1, tmp_path / "nodes.log", hidden=hidden) as hosts:
        ids = hosts.serve(replace(model, directory=hidden / "model"))
    assert_same(model, ids[:len(model.prompts)])


@pytest.mark.skipif("HOSTS_LONG" not in os.environ, reason="long form: HOSTS_LONG=1, five minutes")
@pytest.mark.parametrize("ranks", [1, 2])
def test_more_storages_on_two_hosts(cluster, tmp_path, seed, ranks):
    more = MORE if ranks == 1 else {**MORE, **STORAGES}
    with cluster(ranks) as hosts:
        assert_storages(hosts, tmp_path, seed, more)


REFUSED = [
    ({"distributed_executor_backend": "mp"}, "distributed_executor_backend: found"),
    ({"task": "embed"}, "task: found a model that generates no tokens beside pipeline_parallel_size 2"),
    ({"pipeline_parallel_size": 3}, "pipeline_parallel_size: found 3; expected at most 2, the model's layers"),
    ({"enable_lora": True}, "enable_lora: found true beside pipeline_parallel_size 2"),
]
CONFIGURE = """
import json, sys
from vllm import AsyncEngineArgs
for options in json.loads(sys.argv[1]):
    try:
        AsyncEngineArgs(**options).create_engine_config()
        print("accepted", flush=True)
    except Exception as error:
        print(" ".join(str(error).split()), flush=True)
"""


def test_unproven_pipelines_are_refused(tiny):
    """Before a node is asked for anything."""
    common = {"model": str(tiny("llama").directory), "skip_tokenizer_init": True, "pipeline_parallel_size": 2,
              "distributed_executor_backend": "ray"}
    asked = json.dumps([{**common, **options} for options, _ in REFUSED])
    done = subprocess.run([python(), "-c", CONFIGURE, asked], capture_output=True, text=True)
    for _, found in REFUSED:
        assert found in done.stdout, done.stdout + done.stderr[-2000:]


def test_environment_of_one_host_has_no_ray():
    assert subprocess.run([sys.executable, "-c", "import ray"], capture_output=True).returncode
    assert subprocess.run([python(), "-c", "import ray"]).returncode == 0


@pytest.mark.skipif("HOSTS_LONG" not in os.environ, reason="long form: HOSTS_LONG=1, five minutes")
def test_units_come_back_after_each_failure(tmp_path):
    """Clients know within seconds, the unit ends, and serves again when both hosts are there; nothing stays."""
    with two_units(tmp_path, MODEL, secrets.token_hex(16)) as hosts:
        stage = hosts.start_stage()
        server = hosts.start_server()
        _, text = hosts.wait_until_served(240)
        assert "this" in text
        failures = {
            "stage": (stage.kill, 5), "rank": (lambda: kill_ranks(stage), 5), "link": (lambda: hosts.cut(True), 30),
            "head": (server.kill, 5),
        }
        for name, (fail, most) in failures.items():
            client = hosts.ask(240, stream=True)
            for _ in range(6):
                client.stdout.readline()
            ended, begin = len(server.ends), time.time()
            fail()
            told = error_after(client, begin)
            assert told < most, name
            while len(server.ends) == ended:
                assert time.time() - begin < 60, f"{name}: the unit did not end"
                time.sleep(0.2)
            closed = time.time() - begin
            hosts.cut(False)
            again, answer = hosts.wait_until_served(240)
            print(f"{name}: clients after {told:.1f} s, unit ended after {closed:.1f} s, served after {again:.0f} s")
            assert answer == text
        strangers_are_refused(hosts)
        server.stop()
        stage.stop()
        assert (server.ends[-1][1], stage.ends[-1][1]) == (0, 0)
        assert hosts.processes() == []


def kill_ranks(stage):
    """Kill the ranks of a unit, and nothing else."""
    space = Path(f"/proc/{stage.main()}/ns/pid").stat().st_ino
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (path / "ns/pid").stat().st_ino == space and b"RayWorkerWrapper" in (path / "cmdline").read_bytes():
                os.kill(int(path.name), signal.SIGKILL)


CONNECT = """
import sys, ray
try:
    ray.init(address=sys.argv[1], logging_level="CRITICAL", log_to_driver=False)
    print("taken in")
except Exception as error:
    print("refused", type(error).__name__)
"""


def strangers_are_refused(hosts):
    """A client without a token, and one with another, on the server's own host."""
    for token in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}):
        done = subprocess.run(
            ["ip", "netns", "exec", hosts.spaces[0], python(), "-c", CONNECT, "10.78.0.1:6379"],
            env={**hosts.environments[0], **token}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert "taken in" not in done.stdout, token
