"""Engines whose ranks share a model over NCCL, and one rank beside them: ids equal to transformers' in float64.

What needs more GPUs than this machine has is left out.
"""

import pytest
from gguf import GGMLQuantizationType as Type
from gguf_models import gguf_model, model_alone
from quantized_models import Kind, half_model, quantized_model
from test_engine import GPUS, on_gpu
from test_gguf import kinds
from test_graphs import ON
from tiny_models import assert_same, make
from vllm_kepler.settings import CAPTURE_SIZES

pytestmark = pytest.mark.skipif(GPUS == 0, reason="needs an NVIDIA GPU")
# How ranks reach one another where they have no peer-to-peer, as boards behind different roots of a PCI tree.
PATHS = {
    "memory": {"NCCL_P2P_DISABLE": "1"},
    "sockets": {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1"},
}


def stacks(name):
    """Experts as files of type Q4_K_M have them; Q4_K and Q6_K need 256 columns."""
    if "_exps" not in name:
        return Type.Q8_0
    return Type.Q6_K if "down" in name else Type.Q4_K


# Storages of weights: family, maker, dtype. Groups are such that two ranks and four can share each matrix.
STORAGES = {
    "float32": ("gemma2", make, "float32"),
    "float32-experts": ("mixtral", make, "float32"),
    "half": ("llama", half_model, "half"),
    "half-experts": ("mixtral", half_model, "half"),
    "gptq-4": ("qwen2", lambda *model: quantized_model(*model, Kind("gptq", group=32)), "float32"),
    "gptq-4-half": ("qwen2", lambda *model: quantized_model(*model, Kind("gptq", group=32), half=True), "half"),
    "gptq-8": ("llama", lambda *model: quantized_model(*model, Kind("gptq", bits=8, group=64)), "float32"),
    "awq": ("llama", lambda *model: quantized_model(*model, Kind("awq", group=64)), "float32"),
    "gptq-4-experts": (
        "mixtral", lambda *model: quantized_model(*model, Kind("gptq", group=32, kept=("moe.gate",))), "float32",
    ),
    "gguf": ("qwen2", lambda *model: gguf_model(*model, kinds), "float32"),
    "gguf-experts": ("qwen3-moe", lambda *model: model_alone(*model, stacks, moe_intermediate_size=256), "float32"),
}
# Of five prompts: 5 and 15 sequences, which graphs take, and 20, 65 and 120, whose products have as many rows.
COPIES = (1, 3, 4, 13, 24)


@pytest.fixture(scope="module")
def stored(tmp_path_factory, seed):
    """Function from the name of a storage to (model, dtype); each model is made once."""
    made = {}

    def get(name):
        if name not in made:
            family, maker, dtype = STORAGES[name]
            made[name] = maker(family, tmp_path_factory.mktemp(name), seed), dtype
        return made[name]

    return get


def need(ranks):
    if ranks > GPUS:
        pytest.skip(f"needs {ranks} GPUs")


def assert_replays(model, done, batches):
    """Each step of so many batches was a graph; upstream begins one more before it reads the last answers."""
    steps = len(model.answers[0]) - 1
    assert batches * steps <= done.replays <= batches * (steps + 1)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", STORAGES)
def test_eager(stored, name, ranks):
    need(ranks)
    model, dtype = stored(name)
    done = on_gpu(model, ranks, dtype=dtype)
    assert_replays(model, done, 0)
    assert_same(model, done.ids)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", STORAGES)
def test_few_and_many_sequences(stored, name, ranks):
    """Graphs, with the sums over the ranks in them, and eager steps beyond: the same answers to each copy."""
    need(ranks)
    model, dtype = stored(name)
    most = max(COPIES) * len(model.prompts)
    done = on_gpu(model, ranks, ON, copies=COPIES, max_num_seqs=most, dtype=dtype)
    assert done.preemptions == 0
    assert_replays(model, done, sum(copies * len(model.prompts) <= max(CAPTURE_SIZES) for copies in COPIES))
    for first in range(0, len(done.ids), len(model.prompts)):
        assert_same(model, done.ids[first : first + len(model.prompts)])


@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_paths(stored, ranks, path, graphs):
    need(ranks)
    model, dtype = stored("gptq-4-half")
    done = on_gpu(model, ranks, {**PATHS[path], **(ON if graphs else {})}, dtype=dtype)
    assert_replays(model, done, graphs)
    assert_same(model, done.ids)
