"""One model over two hosts: a stage of a pipeline on each, which Ray starts. Addresses of loopback stand for hosts."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Type
from gguf_models import gguf_model, model_alone
from quantized_models import Kind, half_model, quantized_model
from tiny_models import assert_same, make
from two_hosts import free_port, python, two_hosts

CHUNKED = {"enable_chunked_prefill": True, "max_num_batched_tokens": 64}
# Storage of the weights: maker, options of the engine.
STORAGES = {
    "half, chunked, cached": (lambda *model: half_model("qwen2", *model),
                              {"dtype": "half", "enable_prefix_caching": True, **CHUNKED}),
    "4 bits": (lambda *model: quantized_model("llama", *model, Kind("gptq", group=32)), {"dtype": "float32"}),
}  # fmt: skip
# The stand-ins of the scenario `builder` serve float32.
MORE: dict[str, Any] = {
    "float32": (lambda *model: make("llama", *model), {}),
    "tied, half": (lambda *model: half_model("llama", *model, tie_word_embeddings=True), {"dtype": "half"}),
    "experts": (lambda *model: make("mixtral", *model), CHUNKED),
    "awq": (lambda *model: quantized_model("qwen2", *model, Kind("awq", group=64)), {"enable_prefix_caching": True}),
    "gguf": (lambda *model: gguf_model("qwen2", *model, lambda name: Type.Q4_K), {}),
    "gguf, experts": (lambda *model: model_alone("qwen3-moe", *model, lambda name: Type.Q8_0), {}),
}


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
