"""Attention kernels against float64: every head size, block size, type and variant, poisoned where nothing is held.

The bounds are relative errors in the Frobenius norm, a sequence at a time. A cache in float16 is no error in itself
(the reference reads the same values); an output in float16 is rounded to 11 bits: half a unit is at most
2^-11 = 4.9e-4.
"""

import pytest
import torch
from attention_problem import Problem, variants
from vllm_kepler.errors import LibraryError

HEAD_SIZES = [8, 32, 40, 64, 80, 96, 112, 120, 128, 160, 192, 256, 512]
BLOCK_SIZES = [8, 16, 32]
BOUND = {torch.float32: 1e-5, torch.float16: 5e-4}
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def check(problem, run):
    run()
    error = problem.error()
    assert error <= BOUND[problem.query.dtype], f"relative error {error:.2e}"


def lengths(rng, count, most):
    return [rng.choice([1, 2, 31, 32, 33, 127, 129, 257, rng.randint(1, most)]) for _ in range(count)]


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_decode(rng, head_size, block_size, cache_dtype):
    for group in (1, 2, 3, 4, 7, 8, 12, 16, 32, 71):
        seq_lens = lengths(rng, rng.randint(1, 9), 3000)
        problem = Problem(
            [1] * len(seq_lens),
            seq_lens,
            rng.choice([1, 2, 5]),
            group,
            head_size,
            block_size,
            cache_dtype,
            rng.choice([torch.float32, torch.float32, torch.float16]),
            **variants(rng),
        )
        check(problem, problem.decode)


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_prefill(rng, head_size, block_size, cache_dtype):
    for group in (1, 2, 3, 4, 7, 8, 16):
        query_lens = lengths(rng, rng.randint(1, 5), 400)
        seq_lens = [n + rng.choice([0, 0, 1, 15, 16, 100, 1000]) for n in query_lens]
        problem = Problem(
            query_lens,
            seq_lens,
            rng.choice([1, 2, 3]),
            group,
            head_size,
            block_size,
            cache_dtype,
            rng.choice([torch.float32, torch.float32, torch.float16]),
            causal=rng.random() < 0.75,
            **variants(rng),
        )
        check(problem, problem.prefill)


@pytest.mark.parametrize("length", [1, 2, 511, 2048, 4097, 8191, 15999, 16000])
@pytest.mark.parametrize("head_size", [64, 128, 256])
def test_long(head_size, length):
    for block_size, changes in ((16, {}), (32, {"window": 4096, "soft_cap": 50.0}), (8, {"alibi": True})):
        problem = Problem([length], [length], 1, 2, head_size, block_size, **changes)
        check(problem, problem.prefill)
        for group in (4, 32):
            problem = Problem([1] * 3, [length, 1, max(1, length // 2)], 2, group, head_size, block_size, **changes)
            check(problem, problem.decode)


def test_chunks_equal_one_prefill():
    whole = Problem([1000], [1000], 2, 4, 128, 16)
    whole.prefill()
    expected = whole.out.clone()
    for size in (1, 333, 512):
        for start in range(0, 1000, size):
            if size == 1 and start % 97:
                continue
            stop = min(1000, start + size)
            part = Problem.__new__(Problem)
            part.__dict__.update(whole.__dict__)
            part.query_lens, part.lens, part.query = [stop - start], [stop], whole.query[start:stop]
            part.query_start_loc = torch.tensor([0, stop - start], dtype=torch.int32, device="cuda")
            part.seq_lens = torch.tensor([stop], dtype=torch.int32, device="cuda")
            part.out = torch.full_like(part.query, float("nan"))
            part.prefill()
            torch.testing.assert_close(part.out, expected[start:stop], rtol=1e-4, atol=1e-5)


def test_capture():
    """Both run in a CUDA graph, and a replay reads the lengths that stand on the device by then."""
    problem = Problem([1] * 4, [5000, 300, 1, 77], 2, 4, 128, 16)
    problem.decode()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        problem.decode()
    problem.lens = [123, 299, 1, 5]
    problem.seq_lens.copy_(torch.tensor(problem.lens, dtype=torch.int32))
    problem.out.fill_(float("nan"))
    graph.replay()
    assert problem.error() <= 1e-5
    problem = Problem([30, 200], [300, 200], 2, 4, 128, 16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        problem.prefill()
    problem.out.fill_(float("nan"))
    graph.replay()
    assert problem.error() <= 1e-5


@pytest.mark.parametrize(
    "wrong", [{"head_size": 20}, {"head_size": 520}, {"block_size": 4}, {"block_size": 64}]
)
def test_refused(wrong):
    sizes = {"head_size": 64, "block_size": 16, **wrong}
    problem = Problem([1], [8], 2, 2, **sizes)
    for run in (problem.decode, problem.prefill):
        with pytest.raises(LibraryError, match="invalid argument"):
            run()
    assert torch.isnan(problem.out).all()
