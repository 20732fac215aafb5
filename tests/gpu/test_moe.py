"""Experts in float16 and in codes, against float64 on fresh random shapes and inputs; outputs are NaN before.

Bound: a product of k columns adds up k + 16 times, each step off by at most u = 2⁻²⁴ of the magnitudes that are added
up, codes and zeros apart. With g and p the sums of magnitudes of gate and up, their outputs are off by (k + 16) u g and
(k + 16) u p, and silu and gelu are Lipschitz with at most 1.13 and no larger than their argument: their product is off
by (2.13 (k + 16) + 8) u g p. The second product adds (size + 16) u of its own, the sum over experts and its weights
top_k + 8.
"""

import pytest
import torch
from quantized_models import Kind, half_model, quantized_model
from test_engine import GPUS, on_gpu
from tiny_models import assert_same
from vllm_kepler.errors import LibraryError
from vllm_kepler.ops import linear, moe

pytestmark = pytest.mark.skipif(GPUS == 0, reason="needs an NVIDIA GPU")
UNIT = 2.0**-24
STORAGES = ["float32", "float16", "int8", "int8-zeros", "int4", "int4-zeros"]


def matrices(rng, storage, num_experts, n, k):
    """Random experts, and in float64 what they stand for and the magnitudes: [num_experts, n, k]."""
    if storage.startswith("float"):
        weight = (torch.randn(num_experts, n, k, device="cuda") / k**0.5).to(getattr(torch, storage))
        return weight, weight.double(), weight.double().abs()
    bits, group = int(storage[3]), rng.choice([size for size in (32, 64, 128, k) if k % size == 0])
    codes = torch.randint(0, 1 << bits, (num_experts * n, k), dtype=torch.uint8, device="cuda")
    scales = ((torch.rand(num_experts * n, k // group, device="cuda") + 0.1) / (k**0.5 * 2 ** (bits - 1))).half()
    zeros = torch.full_like(scales, 1 << bits - 1)
    if storage.endswith("zeros"):
        zeros = torch.randint(0, (1 << bits) + 1, scales.shape, device="cuda")
    wide = [tensor.double().repeat_interleave(group, 1) for tensor in (scales, zeros)]
    packed = linear.pack(codes, scales, zeros, bits)
    assert (packed.zeros is None) is not storage.endswith("zeros")
    return packed, *(
        (wide[0] * numbers).view(num_experts, n, k) for numbers in (codes - wide[1], codes + wide[1])
    )


def problem(rng, storage, tokens, num_experts, hidden, size, top_k, chosen=None):
    """Arguments of experts_forward, its result in float64 and each element's bound; `chosen`: the experts."""
    x = torch.randn(tokens, hidden, device="cuda")
    gate_up, gate_up_values, gate_up_magnitudes = matrices(rng, storage, num_experts, 2 * size, hidden)
    down, down_values, down_magnitudes = matrices(rng, storage, num_experts, hidden, size)
    weights, experts = moe.topk_softmax(torch.randn(tokens, num_experts, device="cuda"), top_k, True)
    experts = experts if chosen is None else chosen
    name = rng.choice(["silu", "gelu"])
    expected = moe.experts_reference(x.double(), gate_up_values, down_values, weights, experts, name)
    scale = torch.zeros_like(expected)
    for expert in experts.unique().tolist():
        token, choice = (experts == expert).nonzero(as_tuple=True)
        gate, up = (x[token].double().abs() @ gate_up_magnitudes[expert].T).chunk(2, dim=-1)
        out = (gate * up) @ down_magnitudes[expert].T
        scale.index_add_(0, token, out * weights[token, choice, None].double())
    steps = 2.13 * (hidden + 16) + 8 + size + 16 + top_k + 8
    return (x, gate_up, down, weights, experts, name), expected, steps * UNIT * scale


def assert_within(out, expected, bound):
    assert out.dtype is torch.float32
    error = (out.double() - expected).abs() / bound.clamp_min(1e-30)
    assert error.max() <= 1, f"error of {error.max():.2e} times the bound"


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("num_experts", [1, 4, 60, 128])
@pytest.mark.parametrize("tokens", [1, 2, 5, 33, 300])
def test_experts(rng, monkeypatch, storage, num_experts, tokens):
    """At once and in parts; all tiles are met between one row and hundreds for an expert."""
    hidden, size = rng.choice([32, 160, 1024]), rng.choice([32, 96, 1376])
    if storage == "float16":
        # Rows that are no multiple of 16 bytes, too.
        hidden, size = hidden + rng.choice([0, 4, 8]), size + rng.choice([0, 4, 8])
    top_k = rng.randint(1, min(4, num_experts))
    arguments, expected, bound = problem(rng, storage, tokens, num_experts, hidden, size, top_k)
    assert_within(moe.experts_forward(*arguments), expected, bound)
    monkeypatch.setattr(moe, "EXPERT_BYTES", 1 << 16)
    assert_within(moe.experts_forward(*arguments), expected, bound)


@pytest.mark.parametrize("storage", STORAGES[1:])
@pytest.mark.parametrize("tile", [1, 2, 4, *linear.TILES])
def test_every_tile(rng, monkeypatch, storage, tile):
    """Each, whatever the number of rows; rows of one expert fill several tiles, and others have none."""
    monkeypatch.setattr(moe, "tile_of", lambda matrices, num_rows: tile)
    chosen = torch.stack([torch.full((45,), 3), torch.randint(0, 3, (45,))], 1).int().cuda()
    arguments, expected, bound = problem(rng, storage, 45, 5, 256, 2080, 2, chosen)
    assert_within(moe.experts_forward(*arguments), expected, bound)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("tokens", [1, 20, 200])
def test_equal_inputs_give_equal_bits(rng, storage, tokens):
    """Rows of an expert keep their order, so that each is in the same tile again."""
    arguments, _, _ = problem(rng, storage, tokens, 8, 256, 1376, 2)
    first = moe.experts_forward(*arguments)
    for _ in range(20):
        assert torch.equal(moe.experts_forward(*arguments), first)


@pytest.mark.parametrize("tile", [2, 24, 48, 128])
@pytest.mark.parametrize("num_experts", [1, 7, 300])
def test_rows_are_sorted_by_expert_in_their_order(rng, tile, num_experts):
    experts = torch.randint(0, num_experts, (rng.randint(1, 900), 1), dtype=torch.int32, device="cuda")
    tensors = moe.order_of(experts, num_experts, tile).tensors
    sorted_rows, tile_experts, num_sorted = (tensor.tolist() for tensor in tensors)
    wanted, owners = [], []
    for expert in experts.unique().tolist():
        rows = (experts[:, 0] == expert).nonzero()[:, 0].tolist()
        wanted += rows + [len(experts)] * (-len(rows) % tile)
        owners += [expert] * -(-len(rows) // tile)
    assert num_sorted == [len(wanted)]
    assert sorted_rows[: len(wanted)] == wanted
    assert tile_experts[: len(owners)] == owners


@pytest.mark.parametrize("storage", STORAGES[1:])
@pytest.mark.parametrize("tokens", [1, 9])
def test_capture(rng, storage, tokens):
    """In a CUDA graph, where a replay works on what x and the choice of experts hold by then."""
    arguments, _, _ = problem(rng, storage, tokens, 8, 256, 64, 2)
    moe.experts_forward(*arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = moe.experts_forward(*arguments)
    arguments[0].copy_(torch.randn_like(arguments[0]))
    arguments[4].copy_((arguments[4] + 3) % 8)
    graph.replay()
    assert torch.equal(captured, moe.experts_forward(*arguments))


def test_refused(rng):
    x, weights = torch.randn(2, 32, device="cuda"), torch.ones(2, 1, device="cuda")
    experts = torch.zeros(2, 1, dtype=torch.int32, device="cuda")
    both, down = torch.randn(2, 16, 32, device="cuda"), torch.randn(2, 32, 8, device="cuda")
    for gate_up, found in ((both.double(), r"experts of torch\.float64"), (both.mT.contiguous().mT, "expected dense")):
        with pytest.raises(LibraryError, match=found):
            moe.experts_forward(x, gate_up, down, weights, experts, "silu")
    single, order = moe.stored(both, 2), moe.Order(1, (None, experts, None))
    with pytest.raises(LibraryError, match="invalid argument"):
        moe.product(x, single, order, 2)


ENGINE = {
    "half": ("qwen2-moe", None),
    "gptq": ("mixtral", Kind("gptq", group=32, kept=("moe.gate",))),
    "ct-8": ("qwen3-moe", Kind("compressed-tensors", bits=8, group=-1, symmetric=True, kept=("mlp.gate",))),
}


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", ENGINE)
def test_engine(tmp_path, seed, name, ranks):
    """Token for token what transformers answers in float64."""
    if ranks > GPUS:
        pytest.skip(f"needs {ranks} GPUs")
    family, kind = ENGINE[name]
    asked = {"lengths": (1, 7, 120), "tokens": 12}
    if kind:
        model = quantized_model(family, tmp_path, seed, kind, asked)
    else:
        model = half_model(family, tmp_path, seed, asked=asked)
    assert_same(model, on_gpu(model, ranks, dtype="float32" if kind else "half").ids)
