"""The operators against float64 references on fresh random inputs; outputs are poisoned with NaN first.

Bounds: a sum of n float32 products is off by at most n · 2⁻²⁴ of the sum of their magnitudes; elementwise formulas
of a few operations by a few units in the last place.
"""

import ctypes
import math
from types import SimpleNamespace

import pytest
import torch
from vllm_kepler import ops
from vllm_kepler.ops import attention, cache, moe, rotary

ops.install()
UNIT = 2.0**-24


@pytest.fixture(autouse=True)
def fresh(seed):
    torch.manual_seed(seed)


def poisoned(*shape):
    return torch.full(shape, math.nan)


def assert_close(out, expected, bound):
    assert not out.isnan().any()
    error = (out.double() - expected).abs().max()
    assert error <= bound, f"error {error:.3e}, bound {bound:.3e}"


@pytest.mark.parametrize("shape", [(1, 8), (7, 130), (3, 5, 64), (2, 4096)])
@pytest.mark.parametrize("fused", [False, True])
def test_rms_norm(shape, fused):
    x, residual, weight = torch.randn(shape), torch.randn(shape), torch.randn(shape[-1])
    wide = x.double() + (residual.double() if fused else 0)
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    if fused:
        torch.ops._C.fused_add_rms_norm(x, residual, weight, 1e-6)
        out = x
        assert_close(residual, wide, 2 * UNIT * wide.abs().max())
    else:
        out = poisoned(*shape)
        torch.ops._C.rms_norm(out, x, weight, 1e-6)
    # The mean's relative error of n · 2⁻²⁴ is halved by the root; five operations follow.
    assert_close(out, expected, (shape[-1] / 2 + 8) * UNIT * expected.abs().max())


def test_rms_norm_of_heads_between_others():
    """As Qwen 3 norms its queries: parts of rows that keys and values share. A kernel's wrapper takes them, too."""
    rows, weight = torch.randn(5, (4 + 2 + 2) * 32), torch.randn(32)
    x, out = rows[:, : 4 * 32].view(5, 4, 32), poisoned(5, 4, 32)
    torch.ops._C.rms_norm(out, x, weight, 1e-6)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    assert_close(out, expected, (32 / 2 + 8) * UNIT * expected.abs().max())


@pytest.mark.parametrize("fused", [False, True])
def test_rms_norm_of_small_numbers_keeps_epsilon(fused):
    """A row of zeros stays one, and a row of tiny numbers does not become large."""
    x, weight = torch.randn(3, 64) * torch.tensor([[0.0], [1e-5], [1e-3]]), torch.ones(64)
    expected = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    out = x.clone() if fused else poisoned(3, 64)
    if fused:
        torch.ops._C.fused_add_rms_norm(out, torch.zeros_like(x), weight, 1e-6)
    else:
        torch.ops._C.rms_norm(out, x, weight, 1e-6)
    assert_close(out, expected, 40 * UNIT * expected.abs().max())


def erf_gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def tanh_gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("name", "formula"),
    [("silu_and_mul", lambda x: x / (1 + torch.exp(-x))), ("gelu_and_mul", erf_gelu), ("gelu_tanh_and_mul", tanh_gelu)],
)
def test_gated_activations(name, formula):
    x = 3 * torch.randn(5, 2 * 77)
    out = poisoned(5, 77)
    getattr(torch.ops._C, name)(out, x)
    gate, up = x.double().chunk(2, -1)
    assert_close(out, formula(gate) * up, 32 * UNIT * x.abs().max() ** 2)


@pytest.mark.parametrize(
    ("name", "formula"),
    [("gelu_new", tanh_gelu), ("gelu_fast", tanh_gelu), ("gelu_quick", lambda x: x / (1 + torch.exp(-1.702 * x)))],
)
def test_plain_activations(name, formula):
    x = 3 * torch.randn(5, 77)
    out = poisoned(5, 77)
    getattr(torch.ops._C, name)(out, x)
    assert_close(out, formula(x.double()), 32 * UNIT * x.abs().max())


@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("rotary_size", [32, 12])
@pytest.mark.parametrize("with_key", [True, False])
def test_rotary_embedding(is_neox, rotary_size, with_key):
    """Each pair is a complex number; the embedding multiplies it by exp(i · angle)."""
    head_size, tokens = 32, 11
    positions = torch.randint(0, 50, (tokens,))
    angles = torch.rand(50, rotary_size // 2, dtype=torch.float64) * 7
    table = torch.cat((angles.cos(), angles.sin()), -1).float()
    query, key = torch.randn(tokens, 4 * head_size), torch.randn(tokens, 2 * head_size)
    expected = []
    for states in (query, key):
        heads = states.double().view(tokens, -1, head_size).clone()
        part = heads[..., :rotary_size]
        first, second = part.chunk(2, -1) if is_neox else (part[..., ::2], part[..., 1::2])
        turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)[positions][:, None]
        first.copy_(turned.real)
        second.copy_(turned.imag)
        expected.append(heads.view(tokens, -1))
    untouched = key.clone()
    torch.ops._C.rotary_embedding(positions, query, key if with_key else None, head_size, table, is_neox)
    assert_close(query, expected[0], 8 * UNIT * query.abs().max())
    assert_close(key, expected[1] if with_key else untouched.double(), 8 * UNIT * key.abs().max())


def test_rotated_parts_of_heads_are_written_back(monkeypatch):
    """The kernel takes rows: of heads that are parts of longer ones it gets copies. Here it adds 1 to what it gets."""
    tokens, heads, head_size, beside = 5, 3, 8, 4

    def add_one(positions, q, k, *rest):
        for pointer, count in ((q, tokens * heads * head_size), (k, tokens * head_size)):
            values = (ctypes.c_float * count).from_address(pointer)
            values[:] = [value + 1 for value in values]

    monkeypatch.setattr(rotary, "library", lambda: SimpleNamespace(rotary_embedding=add_one))
    monkeypatch.setattr(rotary, "stream_of", lambda tensor: 0)
    whole, key = torch.randn(tokens, heads, beside + head_size), torch.randn(tokens, 1, head_size)
    expected, expected_key = whole.clone(), key + 1
    expected[..., beside:] += 1
    table = torch.zeros(9, head_size)
    rotary.rotary_embedding_kernel(torch.arange(tokens), whole[..., beside:], key, head_size, table, True)
    assert torch.equal(whole, expected)
    assert torch.equal(key, expected_key)


def filled_cache(lengths, heads, block_size, head_size):
    """A cache whose sequences lie in shuffled blocks, everything else NaN: (cache, tables, keys, values)."""
    blocks = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(blocks) + 3).tolist()
    kv = poisoned(*cache.kv_cache_shape(len(order), block_size, heads, head_size))
    tables = torch.zeros(len(lengths), max(blocks), dtype=torch.int32)
    keys, values = [], []
    for index, (length, count) in enumerate(zip(lengths, blocks, strict=True)):
        table = [order.pop() for _ in range(count)]
        tables[index, :count] = torch.tensor(table)
        key, value = torch.randn(length, heads, head_size), torch.randn(length, heads, head_size)
        slots = torch.tensor([table[p // block_size] * block_size + p % block_size for p in range(length)])
        cache.write_kv(kv, key, value, slots)
        keys.append(key)
        values.append(value)
    return kv, tables, keys, values


def reference(query, key, value, position, spec):
    """One query [heads, head_size] over keys [tokens, kv_heads, head_size], in float64."""
    group = query.shape[0] // key.shape[1]
    key, value = (states.double().repeat_interleave(group, 1) for states in (key, value))
    scores = torch.einsum("hd,nhd->hn", query.double(), key) * spec.scale
    if spec.soft_cap:
        scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
    distance = torch.arange(key.shape[0]) - position
    if spec.alibi_slopes is not None:
        scores = scores + spec.alibi_slopes.double()[:, None] * distance
    hidden = (distance > 0) & spec.causal
    if spec.window is not None:
        hidden |= distance <= -spec.window
    return torch.einsum("hn,nhd->hd", torch.softmax(scores.masked_fill(hidden, -torch.inf), -1), value)


VARIANTS = {
    "plain": {},
    "window": {"window": 13},
    "soft-cap": {"soft_cap": 2.0},
    "alibi": {"alibi_slopes": torch.tensor([2.0**-i for i in range(1, 9)])},
    "all": {"window": 20, "soft_cap": 3.0, "alibi_slopes": torch.tensor([2.0**-i for i in range(1, 9)])},
}


def attention_bound(head_size, values):
    """Scores are off by head_size · 2⁻²⁴ of their magnitude, which softmax passes on twice; then a sum of weights."""
    return 64 * head_size * UNIT * max(value.abs().max() for value in values)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("kv_heads", "head_size", "block_size"), [(8, 32, 16), (2, 80, 32), (1, 256, 8), (4, 512, 16)])
def test_decode(variant, kv_heads, head_size, block_size):
    spec = attention.AttentionSpec(scale=head_size**-0.5, **VARIANTS[variant])
    lengths = [1, 16, 17, 100, 31]
    kv, tables, keys, values = filled_cache(lengths, kv_heads, block_size, head_size)
    query, out = torch.randn(len(lengths), 8, head_size), poisoned(len(lengths), 8, head_size)
    attention.decode(out, query, kv, tables, torch.tensor(lengths, dtype=torch.int32), max(lengths), spec)
    for row, length in enumerate(lengths):
        expected = reference(query[row], keys[row], values[row], length - 1, spec)
        assert_close(out[row], expected, attention_bound(head_size, values))


def int32(numbers):
    return torch.tensor(numbers, dtype=torch.int32)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("block_size", [8, 32])
@pytest.mark.parametrize("most", [1 << 24, 700])
def test_prefill(variant, block_size, most, monkeypatch):
    """Whole prompts, later chunks and lone tokens in one batch; at once and in chunks of a few queries."""
    monkeypatch.setattr(attention, "MAX_SCORES", most)
    spec = attention.AttentionSpec(scale=0.2, **VARIANTS[variant])
    query_lens, seq_lens = [37, 1, 20, 9], [37, 1, 65, 54]
    kv, tables, keys, values = filled_cache(seq_lens, 2, block_size, 32)
    query, out = torch.randn(sum(query_lens), 8, 32), poisoned(sum(query_lens), 8, 32)
    starts = [0, 37, 38, 58, 67]
    attention.prefill(out, query, kv, tables, int32(starts), int32(seq_lens), max(query_lens), spec)
    for seq, (query_len, seq_len) in enumerate(zip(query_lens, seq_lens, strict=True)):
        for row in range(query_len):
            token, position = starts[seq] + row, seq_len - query_len + row
            expected = reference(query[token], keys[seq], values[seq], position, spec)
            assert_close(out[token], expected, attention_bound(32, values))


def test_an_encoder_sees_everything_and_needs_no_cache():
    """Keys and values that lie in no cache are paged for the one step."""
    spec = attention.AttentionSpec(scale=0.2, causal=False)
    lengths, starts = [9, 40, 1], int32([0, 9, 49, 50])
    query, key, value = (torch.randn(50, heads, 32) for heads in (8, 2, 2))
    kv, tables = cache.temporary_cache(key, value, starts, max(lengths))
    out = poisoned(50, 8, 32)
    attention.prefill(out, query, kv, tables, starts, int32(lengths), max(lengths), spec)
    for first, length in zip(starts.tolist(), lengths, strict=False):
        own = slice(first, first + length)
        for row in range(length):
            expected = reference(query[first + row], key[own], value[own], row, spec)
            assert_close(out[first + row], expected, attention_bound(32, [value]))


def test_blocks_are_copied_and_swapped():
    shape = cache.kv_cache_shape(6, 16, 2, 32)
    layers = [torch.randn(shape) for _ in range(2)]
    before = [layer.clone() for layer in layers]
    cache.copy_blocks(torch.tensor([[0, 4], [1, 5]]), layers)
    for layer, old in zip(layers, before, strict=True):
        assert torch.equal(layer[:, [4, 5]], old[:, [0, 1]])
        assert torch.equal(layer[:, :4], old[:, :4])
    target = poisoned(*shape)
    cache.swap_blocks(layers[0], target, torch.tensor([[2, 0], [3, 5]]))
    assert torch.equal(target[:, [0, 5]], layers[0][:, [2, 3]])
    assert target[:, 1:5].isnan().all()


def test_a_token_without_a_slot_is_not_stored():
    kv = torch.zeros(cache.kv_cache_shape(2, 16, 2, 32))
    cache.write_kv(kv, torch.ones(3, 2, 32), torch.ones(3, 2, 32), torch.tensor([-1, 5, -1]))
    assert kv.sum() == 2 * 2 * 32
    assert (kv[:, 0, :, 5] == 1).all()


@pytest.mark.parametrize("renormalize", [True, False])
def test_topk_softmax(renormalize):
    logits = 3 * torch.randn(50, 12)
    weights, experts = moe.topk_softmax(logits, 3, renormalize)
    chosen = torch.softmax(logits.double(), -1).sort(-1, descending=True)
    expected = chosen.values[:, :3] / (chosen.values[:, :3].sum(-1, keepdim=True) if renormalize else 1)
    assert torch.equal(experts.long(), chosen.indices[:, :3])
    assert_close(weights, expected, 32 * UNIT)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_grouped_topk(scoring):
    """Token by token: the best groups first, then the best experts of those."""
    logits, bias = torch.randn(20, 16), torch.randn(16) if scoring == "sigmoid" else None
    weights, experts = moe.grouped_topk(logits, 3, True, 4, 2, scoring, bias)
    for row in range(20):
        scores = logits[row].double().softmax(-1) if scoring == "softmax" else logits[row].double().sigmoid()
        choice = (scores if bias is None else scores + bias).tolist()
        best = {g: sorted(choice[4 * g : 4 * g + 4], reverse=True) for g in range(4)}
        groups = sorted(best, key=lambda g: sum(best[g][: 1 if bias is None else 2]), reverse=True)[:2]
        allowed = sorted((e for g in groups for e in range(4 * g, 4 * g + 4)), key=lambda e: choice[e], reverse=True)
        assert experts[row].tolist() == allowed[:3]
        assert_close(weights[row], scores[allowed[:3]] / scores[allowed[:3]].sum(), 32 * UNIT)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_experts(activation):
    """Each token by hand, with an expert that nobody chooses."""
    x, gate_up, down = torch.randn(23, 16), torch.randn(5, 24, 16), torch.randn(5, 16, 12)
    weights, experts = torch.rand(23, 2), torch.stack([torch.randperm(4)[:2] for _ in range(23)]).int()
    expected = torch.zeros(23, 16, dtype=torch.float64)
    for row in range(23):
        for weight, expert in zip(weights[row].double(), experts[row].tolist(), strict=True):
            gate, up = (gate_up[expert].double() @ x[row].double()).chunk(2)
            inner = (gate / (1 + torch.exp(-gate)) if activation == "silu" else erf_gelu(gate)) * up
            expected[row] += weight * (down[expert].double() @ inner)
    out = moe.experts_forward(x, gate_up, down, weights, experts, activation)
    # Two products of 16 and 12 terms, and their magnitudes.
    assert_close(out, expected, 64 * (16 + 12) * UNIT * expected.abs().max())
