"""The engine on NVIDIA GPUs, end to end: token ids equal to transformers' in float64.

With pytest-xdist workers take the GPUs by turns; tests of several ranks take as many as they need.
"""

import os

import pytest
import torch
from quantized_models import Kind, half_model, quantized_model
from serve_once import SHARED, serve
from tiny_models import FAMILIES, WINDOW, assert_same, make

GPUS = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(GPUS == 0, reason="needs an NVIDIA GPU")
# Blocks of the cache; upstream would fill the GPU with what a tiny model never needs.
BLOCKS = 4096
LONG = (1, 511, 2048, 5000, 16000)


def on_gpu(model, ranks=1, environment=None, **options):
    """Serve on this worker's GPUs with the port's platform; the outcome, checked for its exit status."""
    first = ranks * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    visible = ",".join(str((first + rank) % GPUS) for rank in range(ranks))
    done = serve(
        model,
        {"VLLM_KEPLER_DEVICE": "", "VLLM_KEPLER_VERIFY": "1", "CUDA_VISIBLE_DEVICES": visible,
         "VLLM_WORKER_MULTIPROC_METHOD": "spawn", SHARED: "1", **(environment or {})},
        tensor_parallel_size=ranks, gpu_memory_utilization=0.5, swap_space=1,
        **{"num_gpu_blocks_override": BLOCKS, **options},
    )
    assert done.status == 0, done.printed[-8000:]
    return done


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_mixed_lengths(tiny, family):
    done = on_gpu(tiny(family))
    assert "backend TORCH_SDPA" in done.printed
    assert_same(tiny(family), done.ids)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "bloom", "mixtral"])
def test_long_prompts(tmp_path, seed, family):
    model = make(family, tmp_path, seed, LONG, tokens=8, context=16384)
    assert_same(model, on_gpu(model).ids)


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "starcoder2"])
def test_chunked_prefill(tiny, family):
    """Chunks of 48 tokens: the longest prompt takes three, beside sequences that decode already."""
    model = tiny(family)
    assert_same(model, on_gpu(model, enable_chunked_prefill=True, max_num_batched_tokens=48).ids)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_prefix_caching(tiny, family):
    """Of two copies of each prompt, the second finds its blocks in the cache."""
    model = tiny(family)
    done = on_gpu(model, copies=2, enable_prefix_caching=True, max_num_seqs=len(model.prompts))
    assert_same(model, done.ids[: len(model.prompts)])
    assert_same(model, done.ids[len(model.prompts) :])


@pytest.mark.parametrize("block_size", [8, 32])
def test_block_sizes(tiny, block_size):
    assert_same(tiny("llama"), on_gpu(tiny("llama"), block_size=block_size).ids)


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_preemption(tiny, mode):
    """A cache too small for the batch: sequences are computed again, or wait in the host's memory."""
    model = tiny("llama")
    done = on_gpu(model, copies=4, num_gpu_blocks_override=model.context // 16, preemption_mode=mode)
    for copy in range(4):
        assert_same(model, done.ids[copy * len(model.prompts) : (copy + 1) * len(model.prompts)])
    assert done.preemptions > 0
    assert (done.swapped > 0) == (mode == "swap")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_half(tmp_path, seed, family):
    model = half_model(family, tmp_path, seed)
    assert_same(model, on_gpu(model, dtype="half").ids)


@pytest.mark.parametrize("kind", [
    Kind("gptq", group=32, act_order=True), Kind("gptq", bits=8, group=128), Kind("awq", group=64),
    Kind("compressed-tensors", group=-1, symmetric=True),
], ids=lambda kind: f"{kind.method}-{kind.bits}")
def test_quantized(tmp_path, seed, kind):
    model = quantized_model("llama", tmp_path, seed, kind)
    assert_same(model, on_gpu(model).ids)


def test_a_window_hides_what_lies_before_it(tmp_path, seed):
    """Prompts past the window, in chunks: a wrong window gives other ids."""
    model = make("mistral", tmp_path, seed, (3 * WINDOW, 5 * WINDOW + 1, 400), tokens=24)
    assert_same(model, on_gpu(model, enable_chunked_prefill=True, max_num_batched_tokens=64).ids)
