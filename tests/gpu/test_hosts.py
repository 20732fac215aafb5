"""One model over two hosts that are nodes of one machine: a stage on the GPUs of each, ids equal to transformers'.

The environment needs Ray (profiles/k80/lock/python/ray.in) beside the port. NCCL takes sockets between the two.
"""

import importlib.util

import pytest
from quantized_models import Kind, half_model, quantized_model
from test_engine import BLOCKS, GPUS
from tiny_models import assert_same, make
from two_hosts import two_hosts

pytestmark = [
    pytest.mark.skipif(GPUS < 2, reason="needs two NVIDIA GPUs"),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray"),
]
STORAGES = {
    "float32": (lambda *model: make("llama", *model), {}),
    "half": (lambda *model: half_model("qwen2", *model), {"dtype": "half", "enable_prefix_caching": True}),
    "gptq-4": (
        lambda *model: quantized_model("llama", *model, Kind("gptq", group=32)),
        {"enable_chunked_prefill": True, "max_num_batched_tokens": 64},
    ),
}


@pytest.fixture(scope="module", params=[1, 2])
def hosts(request, tmp_path_factory):
    """Two nodes with one GPU each, then with two."""
    ranks = request.param
    if 2 * ranks > GPUS:
        pytest.skip(f"needs {2 * ranks} GPUs")
    gpus = tuple(",".join(str(host * ranks + rank) for rank in range(ranks)) for host in range(2))
    with two_hosts(26000, ranks, tmp_path_factory.mktemp("nodes") / "log", gpus) as both:
        yield both


@pytest.mark.parametrize("name", STORAGES)
def test_stages_answer_as_transformers(hosts, tmp_path, seed, name):
    maker, options = STORAGES[name]
    model = maker(tmp_path, seed)
    ids = hosts.serve(model, gpu_memory_utilization=0.3, num_gpu_blocks_override=BLOCKS, swap_space=1, **options)
    for part in (ids[: len(model.prompts)], ids[len(model.prompts) :]):
        assert_same(model, part)
