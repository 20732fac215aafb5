"""Decoding with CUDA graphs: the same answers as without, and graphs that were replayed.

A model has five prompts of 1 to 120 tokens and 24 tokens are answered to each, so that a batch is padded to eight
sequences and its sequences grow into new blocks of the cache.
"""

import pytest
from gguf_models import gguf_model
from quantized_models import Kind, half_model, quantized_model
from test_engine import GPUS, on_gpu
from test_gguf import kinds
from tiny_models import NEW_TOKENS, PROMPT_LENGTHS, assert_same, make
from vllm_kepler.settings import CAPTURE_SIZES

pytestmark = pytest.mark.skipif(GPUS == 0, reason="needs an NVIDIA GPU")
ON = {"VLLM_KEPLER_CUDA_GRAPHS": "1"}
MOST = max(CAPTURE_SIZES)
# After the step that reads all prompts, one step for each further token.
STEPS = NEW_TOKENS - 1
MODELS = {
    "llama": make, "qwen2": make, "gpt2": make, "mistral": make, "gemma2": make, "mixtral": make,
    "llama-half": half_model,
    "llama-gptq": lambda *arguments: quantized_model(*arguments, Kind("gptq", group=32, act_order=True)),
    "qwen2-awq": lambda *arguments: quantized_model(*arguments, Kind("awq", group=64)),
    "qwen2-gguf": lambda *arguments: gguf_model(*arguments, kinds),
    "mixtral-gptq": lambda *arguments: quantized_model(*arguments, Kind("gptq", group=32, kept=("moe.gate",))),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_answers_are_those_without_graphs(tmp_path, seed, name):
    """Ids equal to the reference, and logarithms of probabilities to those of the eager engine.

    A logit is within bound / 2 of the exact one, a logarithm of a probability within bound: two engines differ by
    twice as much at most.
    """
    family, _, half = name.partition("-")
    model = MODELS[name](family, tmp_path, seed)
    dtype = "half" if half == "half" else "float32"
    graphs = on_gpu(model, environment=ON, with_logprobs=True, dtype=dtype)
    eager = on_gpu(model, with_logprobs=True, dtype=dtype)
    assert graphs.replays >= len(model.answers[0]) - 1
    assert eager.replays == 0
    assert_same(model, graphs.ids)
    assert_same(model, eager.ids)
    for ids, others, found, expected in zip(graphs.ids, eager.ids, graphs.logprobs, eager.logprobs, strict=True):
        # A tie that float32 cannot decide may part the answers: what follows is not comparable.
        same = next((i for i, pair in enumerate(zip(ids, others, strict=True)) if pair[0] != pair[1]), len(ids))
        assert found[:same] == pytest.approx(expected[:same], abs=2 * model.bound, rel=0)


@pytest.mark.parametrize(("copies", "most"), [(1, 1), (1, 3), (3, MOST)])
def test_batches_of_other_sizes(tiny, copies, most):
    """One sequence at a time; three, which then are two and one; and fifteen of sixteen."""
    model = tiny("llama")
    done = on_gpu(model, environment=ON, copies=copies, max_num_seqs=most)
    assert f"captured decoding steps of 1 to {most} sequences" in done.printed
    assert done.replays >= STEPS * -(-copies * len(PROMPT_LENGTHS) // most)
    for copy in range(copies):
        assert_same(model, done.ids[copy * len(PROMPT_LENGTHS) : (copy + 1) * len(PROMPT_LENGTHS)])


def test_a_larger_batch_is_eager(tiny):
    model, copies = tiny("llama"), max(CAPTURE_SIZES) // len(PROMPT_LENGTHS) + 1
    done = on_gpu(model, environment=ON, copies=copies, max_num_seqs=copies * len(PROMPT_LENGTHS))
    assert done.replays == 0
    for copy in range(copies):
        assert_same(model, done.ids[copy * len(PROMPT_LENGTHS) : (copy + 1) * len(PROMPT_LENGTHS)])


def test_a_longer_sequence_is_eager(tiny):
    """Graphs are captured for contexts of up to 64 tokens: the prompt of 120 keeps its batch out of them."""
    model = tiny("llama")
    done = on_gpu(model, environment=ON, max_seq_len_to_capture=64, max_num_seqs=4)
    assert "up to 64 tokens each" in done.printed
    assert 0 < done.replays < STEPS * 2
    assert_same(model, done.ids)


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_preemption(tiny, mode):
    """Sequences leave the batch, and come back to other blocks."""
    model = tiny("llama")
    done = on_gpu(
        model, environment=ON, copies=3, num_gpu_blocks_override=model.context // 16, preemption_mode=mode
    )
    assert done.preemptions > 0
    assert done.replays > STEPS
    for copy in range(3):
        assert_same(model, done.ids[copy * len(PROMPT_LENGTHS) : (copy + 1) * len(PROMPT_LENGTHS)])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_beside_chunked_prefill(tiny, family):
    """Steps that read a chunk are eager, those between and after them are not."""
    model = tiny(family)
    done = on_gpu(model, environment=ON, enable_chunked_prefill=True, max_num_batched_tokens=48)
    assert done.replays > 0
    assert_same(model, done.ids)


@pytest.mark.parametrize("graphs", ["0", "1"])
@pytest.mark.parametrize(("ranks", "drafted"), [(1, False), (1, True), (2, False), (2, True)])
def test_speculation(tmp_path, seed, ranks, drafted, graphs):
    """Prompt lookup and a draft model, which is the model itself: up to 8 and 9 rows in the graphs of 8 and 16."""
    if ranks > GPUS:
        pytest.skip("needs two NVIDIA GPUs")
    model = make("llama", tmp_path, seed, tokens=64, heard=0.001)
    config = {"num_speculative_tokens": 7, "method": "ngram", "prompt_lookup_min": 2, "prompt_lookup_max": 4}
    if drafted:
        config = {"num_speculative_tokens": 2, "model": str(model.directory), "disable_by_batch_size": 4}
    done = on_gpu(model, ranks, {"VLLM_KEPLER_CUDA_GRAPHS": graphs}, max_num_seqs=3, speculative_config=config)
    assert_same(model, done.ids)
    assert (done.replays > 0) == (graphs == "1")
