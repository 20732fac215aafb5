"""Products with weights of fewer bits, against float64 on fresh random shapes and inputs; outputs are NaN before.

Bound: a lane adds up at most k / 32 products one after the other, rounded up to the 32 columns that it reads at once;
then come 5 sums over the lanes, 4 over the parts of a row and a few roundings more. Where x stays in registers a lane
adds up 32 at most, and then come those of the k / 512 warps of a row at most: fewer. Each step is off by at most 2⁻²⁴
of the magnitudes that are added up: of code and zero apart, because the kernel takes them apart. cuBLAS may add up all
k.
"""

import math

import pytest
import torch
from vllm_kepler.errors import LibraryError
from vllm_kepler.ops import linear

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
UNIT = 2.0**-24
# From one row of weights to more than a block takes of them for each multiprocessor.
OUTPUTS = [1, 3, 8, 33, 500, 4097, 20000]


def assert_close(out, x, weight, magnitude):
    assert out.dtype is torch.float32
    expected, scale = x.double() @ weight.T, x.double().abs() @ magnitude.T
    k = x.shape[-1]
    steps = (math.ceil(k / 1024) * 32 if x.shape[-2] <= linear.MAX_ROWS else k) + 16
    error = ((out.double() - expected).abs() / scale.clamp_min(1e-30)).max()
    assert error <= steps * UNIT, f"relative error {error:.2e}, bound {steps * UNIT:.2e}"


def quantized(rng, n, k, group, bits, symmetric, permuted):
    """Packed, and in float64 what it stands for and the magnitudes; columns in x's order."""
    codes = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8, device="cuda")
    scales = (torch.rand(n, k // group, device="cuda") * 10 ** rng.uniform(-5, 2) + 1e-6).half()
    zeros = None if symmetric else torch.randint(0, (1 << bits) + 1, scales.shape, device="cuda")
    permutation = torch.randperm(k, device="cuda") if permuted else None
    weights = linear.pack(codes, scales, zeros, bits, permutation)
    wide = [
        t.double().repeat_interleave(group, 1)
        for t in (scales, torch.full_like(scales, 1 << bits - 1) if zeros is None else zeros)
    ]
    weight, magnitude = wide[0] * (codes - wide[1]), wide[0] * (codes + wide[1])
    if permuted:
        back = permutation.argsort()
        weight, magnitude = weight[:, back], magnitude[:, back]
    return weights, weight, magnitude


def rows_of_x(rng, rows, k):
    """Dense, or with some columns between the rows, or beside a 16-byte address."""
    gap = rng.choice([0, 0, 1, 8])
    return torch.randn(rows, k + gap, device="cuda")[:, gap:] * 10 ** rng.uniform(-3, 3)


@pytest.mark.parametrize("n", OUTPUTS)
@pytest.mark.parametrize("k", [8, 40, 256, 1000, 4096, 4104, 11008, 13824])
def test_half(rng, n, k):
    weight = torch.randn(n, k, device="cuda").half()
    for rows in (*rng.sample(range(1, 17), 6), 1, 17, rng.randint(18, 200)):
        x = rows_of_x(rng, rows, k)
        assert_close(linear.half(x, weight), x, weight.double(), weight.double().abs())


@pytest.mark.parametrize("n", OUTPUTS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 128, None])
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed(rng, n, bits, group, symmetric):
    large = rng.choice([86, 108, 180])
    for blocks, permuted in ((1, False), (rng.choice([7, 9, 33]), True), (32, False), (large, False)):
        k = blocks * (group or 128)
        weights, weight, magnitude = quantized(rng, n, k, group or k, bits, symmetric, permuted)
        for rows in (rng.randint(1, 4), rng.randint(5, 16), 1, rng.randint(17, 600)):
            x = rows_of_x(rng, rows, k)
            assert_close(linear.packed(x, weights), x, weight, magnitude)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_unpacked_bit_for_bit(rng, bits, symmetric):
    for n, k, group in ((1, 32, 32), (77, 640, 128), (300, 4096, 64), (5, 96, 96)):
        weights, weight, _ = quantized(rng, n, k, group, bits, symmetric, False)
        assert torch.equal(linear.unpack(weights).double(), weight)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_small_and_large_x(rng, bits, size):
    """Far from the ends of float32, although x is lifted by 2⁸⁰ on the way."""
    weights, weight, magnitude = quantized(rng, 64, 4096, 128, bits, False, False)
    for rows in (3, 13):
        x = torch.randn(rows, 4096, device="cuda") * size
        assert_close(linear.packed(x, weights), x, weight, magnitude)


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 24])
def test_equal_inputs_give_equal_bits(rng, rows):
    weights, _, _ = quantized(rng, 4096, 4096, 128, 4, False, False)
    weight, x = torch.randn(4096, 4096, device="cuda").half(), torch.randn(rows, 4096, device="cuda")
    first = linear.packed(x, weights), linear.half(x, weight)
    for _ in range(20):
        for out, wanted in zip((linear.packed(x, weights), linear.half(x, weight)), first, strict=True):
            assert torch.equal(out, wanted)


@pytest.mark.parametrize("name", ["float16", 8, 4])
def test_many_rows(rng, monkeypatch, name):
    """Each cut of the kernel of many rows: its tiles, their edges, and columns in parts; no float32 weights."""
    monkeypatch.setattr(linear, "_by_tiles", None)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *shape: self.new_full(shape, math.nan))
    for n, k, group in ((1, 32, 32), (1, 64, 64), (131, 96, 96), (1003, 1056, 32), (4096, 4096, 128), (260, 14336, 64)):
        if name == "float16":
            by = torch.randn(n, k, device="cuda").half()
            product, weight, magnitude = linear.half, by.double(), by.double().abs()
        else:
            by, weight, magnitude = quantized(rng, n, k, group, name, rng.random() < 0.5, rng.random() < 0.5)
            product = linear.packed
        for rows in (*range(5, 66), 128, rng.randint(66, linear.MAX_TILED_ROWS), linear.MAX_TILED_ROWS):
            x = rows_of_x(rng, rows, k)
            out = product(x, by)
            assert_close(out, x, weight, magnitude)
            assert torch.equal(out, product(x, by))


def test_tiles(rng, monkeypatch):
    """Weights larger than a tile, with a last tile that is not full; more rows than the kernels take."""
    monkeypatch.setattr(linear, "TILE", 100 * 512)
    weights, weight, magnitude = quantized(rng, 730, 512, 64, 4, False, True)
    x = torch.randn(linear.MAX_TILED_ROWS + 50, 512, device="cuda")
    assert_close(linear.packed(x, weights), x, weight, magnitude)
    weight = torch.randn(730, 512, device="cuda").half()
    assert_close(linear.half(x, weight), x, weight.double(), weight.double().abs())


def test_shapes_of_x(rng):
    """Any number of dimensions, no row, and no row of the weight."""
    weights, weight, _ = quantized(rng, 12, 64, 32, 4, False, False)
    x = torch.randn(2, 3, 64, device="cuda")
    half = weight.half()
    for product, by in ((linear.packed, weights), (linear.half, half)):
        out = product(x, by)
        assert out.shape == (2, 3, 12)
        assert torch.equal(out.flatten(0, 1), product(x.flatten(0, 1), by))
        assert product(x[:0], by).shape == (0, 3, 12)
    assert linear.half(x, half[:0]).shape == (2, 3, 0)


def test_capture(rng):
    """In a CUDA graph, where a replay works on what x holds by then."""
    weights, _, _ = quantized(rng, 300, 1024, 128, 4, False, True)
    weight, x = torch.randn(300, 1024, device="cuda").half(), torch.randn(9, 1024, device="cuda")
    run = lambda: (linear.packed(x, weights), linear.half(x, weight))  # noqa: E731
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    x.copy_(torch.randn_like(x))
    graph.replay()
    for out, wanted in zip(captured, run(), strict=True):
        assert torch.equal(out, wanted)


def test_refused(rng):
    weights, _, _ = quantized(rng, 12, 64, 32, 4, False, False)
    x, weight = torch.randn(2, 64, device="cuda"), torch.randn(12, 64, device="cuda")
    with pytest.raises(LibraryError, match=r"found x \(2, 32\) for a weight of 64 columns"):
        linear.packed(x[:, :32], weights)
    with pytest.raises(LibraryError, match=r"found a tensor of torch\.float16"):
        linear.packed(x.half(), weights)
    with pytest.raises(LibraryError, match=r"found a weight of torch\.float32"):
        linear.half(x, weight)
    with pytest.raises(LibraryError, match="expected dense"):
        linear.half(x[:, :12], weight.half().T)
