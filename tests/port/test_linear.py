"""Weights of fewer bits: what the packed layout means, the references in float64, and what is refused.

Bound of a product: k float32 products and sums are off by at most (k + 2) · 2⁻²⁴ of the sum of their magnitudes.
"""

import ctypes
import itertools
import math

import pytest
import torch
from vllm_kepler.ops import linear

UNIT = 2.0**-24


@pytest.fixture(autouse=True)
def fresh(seed):
    torch.manual_seed(seed)


def quantized(n, k, group, bits, symmetric=False):
    """codes, scales as a float16 checkpoint has them, zeros."""
    codes = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8)
    scales = (torch.rand(n, k // group) * 0.02 + 1e-4).half()
    zeros = None if symmetric else torch.randint(0, (1 << bits) + 1, (n, k // group))
    return codes, scales, zeros


def value(codes, scales, zeros, bits):
    """scale · (code - zero), one by one, in float64."""
    group = codes.shape[1] // scales.shape[1]
    zeros = torch.full(scales.shape, 1 << bits - 1) if zeros is None else zeros
    wide = [t.double().repeat_interleave(group, 1) for t in (scales, zeros)]
    return wide[0] * (codes.double() - wide[1])


def assert_product(out, x, weight):
    expected, magnitude = x.double() @ weight.T, x.double().abs() @ weight.abs().T
    assert out.dtype is torch.float32
    assert ((out.double() - expected).abs() <= (x.shape[-1] + 2) * UNIT * magnitude).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("n", "k", "group"), [(3, 64, 32), (17, 256, 64), (5, 384, 128), (1, 96, 96)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_packed_is_what_is_unpacked(bits, n, k, group, symmetric):
    """Exactly: a float16 scale times a whole number below 2¹² is a float32."""
    codes, scales, zeros = quantized(n, k, group, bits, symmetric)
    weights = linear.pack(codes, scales, zeros, bits)
    assert (weights.bits, weights.n, weights.k, weights.group) == (bits, n, k, group)
    assert weights.codes.shape == (n, k * bits // 32)
    assert torch.equal(linear.unpack(weights).double(), value(codes, scales, zeros, bits))


def test_the_first_column_of_a_word_lies_in_its_lowest_bits():
    codes = torch.arange(32, dtype=torch.uint8)[None]
    assert linear.pack(codes, torch.ones(1, 1), None, 8).codes[0, :2].tolist() == [0x03020100, 0x07060504]
    assert linear.pack(codes % 8, torch.ones(1, 1), None, 4).codes[0].tolist() == [0x76543210] * 4


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("middle", [True, False])
def test_zeros_in_the_middle_take_no_memory(bits, middle):
    codes, scales, _ = quantized(4, 64, 32, bits)
    zeros = torch.full((4, 2), 1 << bits - 1)
    if not middle:
        zeros[3, 1] += 1
    weights = linear.pack(codes, scales, zeros, bits)
    assert (weights.zeros is None) is middle
    assert torch.equal(linear.unpack(weights).double(), value(codes, scales, zeros, bits))


@pytest.mark.parametrize("largest", [2.0**-30, 1e-9, 1.0, 3e38, 0.0])
def test_scales_of_any_size_keep_their_digits(largest):
    """bfloat16 scales: eight digits, and an exponent that float16 alone does not hold."""
    scales = (largest * torch.tensor([[1.0, 0.5, 0.013, 2.0**-20]])).bfloat16()
    weights = linear.pack(torch.full((1, 128), 9, dtype=torch.uint8), scales, None, 4)
    assert torch.equal(linear.unpack(weights)[0, ::32], scales.float()[0])


@pytest.mark.parametrize("rows", [1, 5, 33])
def test_half(rows):
    x, weight = torch.randn(rows, 160), torch.randn(23, 160).half()
    assert_product(linear.half(x, weight), x, weight.double())
    assert linear.half(x[None], weight).shape == (1, rows, 23)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 128, 384])
@pytest.mark.parametrize("act_order", [True, False])
def test_packed(bits, group, act_order):
    """Act-order: columns lie in the order of their groups, and unpack gives them in x's."""
    codes, scales, zeros = quantized(23, 384, group, bits)
    permutation = torch.randperm(384) if act_order else None
    weights = linear.pack(codes, scales, zeros, bits, permutation)
    stored = value(codes, scales, zeros, bits)
    x = torch.randn(7, 384)
    gathered = x[:, permutation] if act_order else x
    out = linear.packed(x, weights)
    assert_product(out, gathered, stored)
    if act_order:
        for column in (0, 17, 383):
            assert torch.equal(linear.unpack(weights)[:, permutation[column]].double(), stored[:, column])
        assert not torch.equal(out, linear.packed(gathered, weights))


class FakeLibrary:
    """Launchers that note their rows, and multiply what lies at the addresses that they are given."""

    def __init__(self, weights):
        self.weight, self.rows = linear.unpack(weights), []

    def linear_packed(self, out, x, codes, scales, zeros, unit, bits, rows, n, k, group, stream):
        assert x % 16 == 0
        self.rows.append(rows)
        to, given = (
            torch.frombuffer((ctypes.c_float * (rows * size)).from_address(at), dtype=torch.float32).view(rows, size)
            for at, size in ((out, n), (x, k))
        )
        to.copy_(given @ self.weight.T)

    def linear_tiled(self, out, sums, x, weight, scales, zeros, unit, bits, rows, n, k, group, tile, blocks, stream):
        assert tile in linear.TILES
        assert 1 <= blocks <= max(1, -(-rows // tile) * linear.outputs_of(n, tile) * k // linear.SHARE)
        self.linear_packed(out, x, weight, scales, zeros, unit, bits, rows, n, k, group, stream)
        self.rows[-1] = rows, tile


@pytest.mark.parametrize(("bits", "group", "rows", "launched"), [
    (4, 128, 0, []), (4, 128, 1, [1]), (4, 128, 4, [4]), (4, 128, 5, [5]), (4, 128, 8, [8]), (4, 128, 9, [(9, 12)]),
    (4, 32, 4, [4]), (4, 32, 5, [(5, 8)]), (8, 64, 7, [7]), (8, 32, 7, [(7, 8)]), (4, 384, 6, [6]),
    (4, 128, 33, [(33, 36)]), (4, 128, 37, [(36, 36), 1]), (4, 128, 64, [(64, 64)]),
])
def test_rows_are_cut_into_launches(monkeypatch, bits, group, rows, launched):
    """Few rows of packed weights go at once; each launch has the next rows of x and of the result."""
    codes, scales, zeros = quantized(23, 384, group, bits)
    weights = linear.pack(codes, scales, zeros, bits)
    fake, x = FakeLibrary(weights), torch.randn(rows, 384)
    monkeypatch.setattr(linear, "library", lambda: fake)
    monkeypatch.setattr(linear, "stream_of", lambda tensor: 0)
    monkeypatch.setattr(linear, "blocks_of", lambda bits, tile, device: 264)
    out = linear.packed_kernel(x, weights)
    assert fake.rows == launched
    assert_product(out, x, value(codes, scales, zeros, bits))


@pytest.mark.parametrize(("bits", "few"), [
    (4, linear.RESIDENT_ROWS), (8, linear.RESIDENT_ROWS), (4, linear.MAX_ROWS), (16, linear.MAX_ROWS),
])
def test_launches_cover_all_rows_in_rising_time(bits, few):
    """By the figures that cuts are chosen by, a row more takes no less, and from 9 on at most a sixth more."""
    times = []
    for rows in range(1, linear.MAX_TILED_ROWS + 1):
        time, launches = linear.cut_of(rows, bits, few)
        assert sum(count for count, _ in launches) == rows
        assert all(tile in linear.TILES or count <= few for count, tile in launches)
        times.append(time)
    assert times == sorted(times)
    assert all(more / fewer <= 1.17 for fewer, more in itertools.pairwise(times[8:]))


def test_refused():
    codes, scales, zeros = quantized(4, 64, 32, 4)
    for expected, arguments in (
        ("weights of 3 bits: expected 4 or 8", (codes, scales, zeros, 3)),
        ("48 columns: expected a multiple of 32", (codes[:, :48], scales[:, :1], None, 4)),
        ("4 scales for 64 columns: expected one for each group of 32", (codes, scales.repeat(1, 2), None, 4)),
        ("3 scales for 64 columns", (codes, torch.ones(4, 3), None, 4)),
        ("0 scales for 64 columns", (codes, torch.ones(4, 0), None, 4)),
        (r"scales \(3, 2\) for codes \(4, 64\): expected \(4, 2\)", (codes, scales[:3], None, 4)),
        (r"zeros \(4, 1\) for codes", (codes, scales, zeros[:, :1], 4)),
        ("up to 16: expected uint8 below 16", (codes.fill_diagonal_(16), scales, None, 4)),
        ("codes of torch.int32", (codes.int(), scales, None, 8)),
        ("scales up to inf", (codes, scales.float() * math.inf, None, 8)),
        ("scales up to nan", (codes, scales * math.nan, None, 8)),
        ("whole numbers from 0 to 256", (codes, scales, zeros + 0.5, 8)),
        ("whole numbers from 0 to 256", (codes, scales, zeros - 300, 8)),
        ("a permutation of 64 columns: expected each of 0 to 63 once", (codes, scales, None, 8, torch.zeros(64))),
        ("a permutation of 32 columns", (codes, scales, None, 8, torch.arange(32))),
    ):
        with pytest.raises(ValueError, match=expected):
            linear.pack(*arguments)
