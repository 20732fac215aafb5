"""Every kernel but attention's against float64, on fresh random shapes and inputs.

Outputs are NaN before a kernel runs. Errors are relative, element by element, to the reference's magnitude, or to the
magnitudes that a sum adds up: no float32 sum can be nearer than that. Copies must be exact.
"""

import math

import pytest
import torch
from vllm_kepler.errors import LibraryError
from vllm_kepler.ops import activation, cache, moe, norm, rotary

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
BOUND = 1e-5
# Below it float32 loses digits: results are compared as if they were this large.
SMALLEST = 1e-30
ROUNDS = range(8)


def poisoned(*shape):
    return torch.full(shape, math.nan, device="cuda")


def rows(rng, count, size):
    """[count, size], dense or with some columns between the rows."""
    return torch.randn(count, size + rng.choice([0, 0, 1, 4, 64]), device="cuda")[:, :size]


def assert_close(out, expected, scale=None):
    error = ((out.double() - expected).abs() / (expected if scale is None else scale).abs().clamp_min(SMALLEST)).max()
    assert error <= BOUND, f"relative error {error:.2e}"


@pytest.mark.parametrize("round", ROUNDS)
@pytest.mark.parametrize("hidden", [1, 64, 80, 130, 512, 1023, 2048, 4096, 8192, 14336, 100001])
def test_norms(rng, hidden, round):
    count = rng.randint(1, 300) if hidden < 20000 else 2
    x, weight = rows(rng, count, hidden), torch.randn(hidden, device="cuda")
    out = poisoned(count, hidden)
    norm.rms_norm_kernel(out, x, weight, 1e-6)
    wide = x.double()
    assert_close(out, wide / (wide.square().mean(1, keepdim=True) + 1e-6).sqrt() * weight.double())

    residual, added = rows(rng, count, hidden), rows(rng, count, hidden)
    total = (residual + added).double()
    norm.fused_add_rms_norm_kernel(added, residual, weight, 1e-6)
    assert torch.equal(residual.double(), total)
    assert_close(added, total / (total.square().mean(1, keepdim=True) + 1e-6).sqrt() * weight.double())


@pytest.mark.parametrize("round", ROUNDS)
@pytest.mark.parametrize("size", [64, 80, 128, 130, 256])
def test_norm_of_heads(rng, size, round):
    """Heads of the queries within rows that keys and values share, as Qwen 3 norms them."""
    tokens, heads, others = rng.randint(1, 70), rng.choice([1, 2, 16]), rng.choice([0, 1, 8])
    row = torch.randn(tokens, (heads + others) * size + rng.choice([0, 1, 4]), device="cuda")
    x, weight = row[:, : heads * size].view(tokens, heads, size), torch.randn(size, device="cuda")
    out = poisoned(tokens, heads, size)
    norm.rms_norm_kernel(out, x, weight, 1e-6)
    wide = x.double()
    assert_close(out, wide / (wide.square().mean(2, keepdim=True) + 1e-6).sqrt() * weight.double())


FORMULAS = {
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: 0.5 * x * torch.special.erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x),
}


@pytest.mark.parametrize("size", [1, 13, 127, 1024, 4098, 11008, 100003])
@pytest.mark.parametrize("function", FORMULAS)
def test_activations(rng, function, size):
    """Also far to the left, where the value is a small difference of nothing: no formula may cancel there."""
    for spread in (1, 4):
        x = spread * rows(rng, rng.randint(1, 200) if size < 20000 else 2, size)
        out = poisoned(*x.shape)
        activation.plain_kernel(function)(out, x)
        assert_close(out, FORMULAS[function](x.double()))

        x = spread * rows(rng, len(x), 2 * size)
        out = poisoned(len(x), size)
        activation.gated_kernel(function)(out, x)
        gate, up = x.double().chunk(2, -1)
        assert_close(out, FORMULAS[function](gate) * up)


@pytest.mark.parametrize("function", FORMULAS)
def test_activations_everywhere(function):
    """Every 997th float32 from -60 to 60, and what is no number."""
    bits = torch.arange(0, 0x42700000, 997, dtype=torch.int32, device="cuda").view(torch.float32)
    x = torch.cat((bits, -bits))[None]
    out = poisoned(*x.shape)
    activation.plain_kernel(function)(out, x)
    assert_close(out, FORMULAS[function](x.double()))
    special = torch.tensor([[math.inf, -1000.0, math.nan, 0.0]], device="cuda")
    out = torch.empty_like(special)
    activation.plain_kernel(function)(out, special)
    assert out[0, 0] == math.inf
    assert out[0, 1] == 0
    assert out[0, 2].isnan()
    assert out[0, 3] == 0


@pytest.mark.parametrize("round", ROUNDS)
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("head_size", [32, 64, 80, 128, 256])
def test_rotary(rng, head_size, is_neox, round):
    """A rotation's error is relative to the length of the pair that it turns."""
    tokens, heads, kv_heads = rng.randint(1, 200), rng.randint(1, 40), rng.randint(1, 8)
    rotary_size = rng.choice([head_size, head_size // 2, 20, 6])
    angles = 6 * torch.rand(512, rotary_size // 2, device="cuda")
    table = torch.cat((angles.cos(), angles.sin()), 1)
    positions = torch.randint(0, 512, (tokens,), device="cuda")
    cos, sin = (half[:, None] for half in table.double()[positions].chunk(2, 1))
    pair = torch.arange(rotary_size // 2, device="cuda")
    first, second = (pair, pair + rotary_size // 2) if is_neox else (2 * pair, 2 * pair + 1)
    query, key = rows(rng, tokens, heads * head_size), rows(rng, tokens, kv_heads * head_size)
    if rng.random() < 0.3:
        # Parts of longer heads, as latent attention has them.
        query = torch.randn(tokens, heads, 32 + head_size, device="cuda")[..., 32:]
    expected = []
    for states in (query, key):
        turned = states.double().reshape(tokens, -1, head_size).clone()
        length = torch.ones_like(turned)
        u, v = turned[..., first], turned[..., second]
        turned[..., first], turned[..., second] = u * cos - v * sin, v * cos + u * sin
        length[..., first] = length[..., second] = (u * u + v * v).sqrt()
        expected.append((turned, length))
    with_key, before = rng.random() < 0.7, key.clone()
    rotary.rotary_embedding_kernel(positions, query, key if with_key else None, head_size, table, is_neox)
    assert_close(query.reshape(tokens, -1, head_size), *expected[0])
    if with_key:
        assert_close(key.reshape(tokens, -1, head_size), *expected[1])
    else:
        assert torch.equal(key, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("block_size", [8, 16, 32])
@pytest.mark.parametrize("head_size", [32, 80, 128, 256, 512])
def test_cache(rng, head_size, block_size, dtype):
    """Written, copied, swapped out and in: bit for bit what the reference does on the CPU."""
    tokens, kv_heads = rng.randint(1, 300), rng.randint(1, 9)
    blocks = tokens // block_size + 3
    # As in one product for query, key and value: rows of more than the keys.
    key, value = (
        torch.randn(tokens, kv_heads * head_size + rng.choice([0, 64]), device="cuda")[:, : kv_heads * head_size]
        .unflatten(1, (kv_heads, head_size)) for _ in range(2)
    )
    slots = torch.randperm(blocks * block_size, device="cuda")[:tokens]
    slots[::5] = -1
    shape = cache.kv_cache_shape(blocks, block_size, kv_heads, head_size)
    kv_cache = torch.full(shape, 7.0, dtype=dtype, device="cuda")
    expected = kv_cache.cpu()
    cache.write_kv(kv_cache, key, value, slots)
    cache.write_kv(expected, key.cpu(), value.cpu(), slots.cpu())
    assert torch.equal(kv_cache.cpu(), expected)

    pairs = torch.randperm(blocks)[: blocks // 2 * 2].reshape(-1, 2)
    layers, layers_expected = [kv_cache, kv_cache.clone()], [expected, expected.clone()]
    cache.copy_blocks(pairs.cuda(), layers)
    cache.copy_blocks(pairs, layers_expected)
    for layer, wanted in zip(layers, layers_expected, strict=True):
        assert torch.equal(layer.cpu(), wanted)

    host = torch.full(shape, math.nan, dtype=dtype, pin_memory=True)
    back = torch.full(shape, math.nan, dtype=dtype, device="cuda")
    cache.swap_blocks(kv_cache, host, pairs)
    cache.swap_blocks(host, back, pairs.flip(1))
    torch.cuda.synchronize()
    assert torch.equal(host[:, pairs[:, 1]], expected[:, pairs[:, 0]])
    assert torch.equal(back.cpu()[:, pairs[:, 0]], expected[:, pairs[:, 0]])
    assert back.isnan().any()


@pytest.mark.parametrize("num_experts", [1, 4, 8, 60, 128, 257, 512])
def test_routing(rng, num_experts):
    tokens, top_k = rng.choice([1, 2, 33, 200]), rng.randint(1, min(8, num_experts))
    logits = 3 * torch.randn(tokens, num_experts, device="cuda")
    for renormalize in (False, True):
        weights, experts = moe.topk_softmax(logits, top_k, renormalize)
        wanted = logits.double().softmax(1).topk(top_k, 1)
        assert torch.equal(experts.long(), wanted.indices)
        total = wanted.values.sum(1, keepdim=True) if renormalize else 1
        assert_close(weights, wanted.values / total)


def test_routing_takes_the_lower_expert_of_equals():
    weights, experts = moe.topk_softmax(torch.zeros(5, 40, device="cuda"), 3, False)
    assert experts.tolist() == [[0, 1, 2]] * 5
    assert_close(weights, torch.full((5, 3), 1 / 40, device="cuda", dtype=torch.float64))


@pytest.mark.parametrize("wrong", ["one", "all"])
@pytest.mark.parametrize("num_experts", [4, 60, 512])
def test_routing_of_what_is_no_number(num_experts, wrong):
    """Such a token's weights are none, its experts are there, and the other tokens have theirs."""
    logits = torch.randn(3, num_experts, device="cuda")
    logits[1, slice(None) if wrong == "all" else 2] = torch.nan
    weights, experts = moe.topk_softmax(logits, 3, False)
    assert weights[1].isnan().all()
    assert (experts[1] >= 0).all() and (experts[1] < num_experts).all()
    assert len(set(experts[1].tolist())) == 3
    for token in (0, 2):
        assert torch.equal(experts[token].long(), logits[token].topk(3).indices)
        assert weights[token].isfinite().all()


@pytest.mark.parametrize("num_experts", [1, 4, 60, 128])
@pytest.mark.parametrize("tokens", [1, 2, 33, 700])
@pytest.mark.parametrize("activation_name", ["silu", "gelu"])
def test_experts(rng, monkeypatch, num_experts, tokens, activation_name):
    """Both tiles of the grouped product, at once and in parts."""
    hidden, size, top_k = rng.choice([4, 36, 256]), rng.choice([4, 64, 132]), rng.randint(1, min(4, num_experts))
    x = torch.randn(tokens, hidden, device="cuda")
    gate_up = torch.randn(num_experts, 2 * size, hidden, device="cuda") / hidden**0.5
    down = torch.randn(num_experts, hidden, size, device="cuda") / size**0.5
    weights, experts = moe.topk_softmax(torch.randn(tokens, num_experts, device="cuda"), top_k, True)
    arguments = (weights, experts, activation_name)
    expected = moe.experts_reference(x.double(), gate_up.double(), down.double(), *arguments)
    # What the sums add up, and no more than that much of the sums before them.
    scale = moe.experts_reference(
        x.double().abs(), gate_up.double().abs(), down.double().abs(), *arguments
    ).clamp_min(expected.abs())
    assert_close(moe.experts_forward(x, gate_up, down, *arguments), expected, scale)
    monkeypatch.setattr(moe, "EXPERT_BYTES", 1 << 14)
    assert_close(moe.experts_forward(x, gate_up, down, *arguments), expected, scale)


def captured(run):
    """Run in a CUDA graph after one run outside it."""
    run()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        run()
    return graph


def test_capture():
    """Each launcher runs in a CUDA graph, and a replay works on what the tensors hold by then."""
    x, out = torch.randn(33, 256, device="cuda"), poisoned(33, 256)
    weight, half = torch.ones(256, device="cuda"), poisoned(33, 128)
    gate_up, down = torch.randn(4, 64, 256, device="cuda"), torch.randn(4, 256, 32, device="cuda")
    kv_cache, slots = poisoned(2, 5, 2, 16, 64), torch.arange(33, device="cuda")
    positions, table = torch.arange(33, device="cuda"), torch.randn(64, 64, device="cuda")
    turned = poisoned(33, 256)

    def run():
        norm.rms_norm_kernel(out, x, weight, 1e-6)
        activation.gated_kernel("gelu")(half, x)
        turned.copy_(x)
        rotary.rotary_embedding_kernel(positions, turned, None, 64, table, True)
        cache.write_kv(kv_cache, half.view(33, 2, 64), half.view(33, 2, 64), slots)
        weights, experts = moe.topk_softmax(x[:, :4].contiguous(), 2, True)
        out.add_(moe.experts_forward(x, gate_up, down, weights, experts, "silu"))

    graph = captured(run)
    x.copy_(torch.randn_like(x))
    run()
    expected = [tensor.clone() for tensor in (out, half, turned, kv_cache)]
    for tensor in (out, half, turned, kv_cache):
        tensor.fill_(math.nan)
    graph.replay()
    for tensor, wanted in zip((out, half, turned, kv_cache), expected, strict=True):
        torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert not out.isnan().any()


def test_refused():
    """Nothing is launched for what a kernel does not take."""
    x, out = torch.randn(4, 64, device="cuda"), poisoned(4, 64)
    with pytest.raises(LibraryError, match=r"torch\.float16"):
        norm.rms_norm_kernel(out, x.half(), torch.ones(64, device="cuda"), 1e-6)
    with pytest.raises(LibraryError, match="dense rows"):
        activation.plain_kernel("silu")(out, x.T)
    with pytest.raises(LibraryError, match="invalid argument"):
        rotary.rotary_embedding_kernel(
            torch.zeros(4, dtype=torch.int64, device="cuda"), x, None, 32, torch.randn(8, 64, device="cuda"), True
        )
    with pytest.raises(LibraryError, match="invalid argument"):
        moe.topk_softmax(torch.randn(4, 600, device="cuda"), 2, True)
    assert out.isnan().all()
