"""GGUF files on an NVIDIA GPU: the kernels with zeros that are no whole numbers, and the engine."""

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf_models import gguf_model, stored
from test_engine import on_gpu
from tiny_models import assert_most_are_decided, assert_same
from vllm_kepler.ops import linear
from vllm_kepler.quantization.gguf_linear import BITS, pack, unpack_blocks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
N, K = 333, 1024


@pytest.mark.parametrize("kind", BITS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("rows", [1, 3, 8, 16, 40])
def test_products(kind, rows):
    """Against float64 products of what the CPU unpacks; float32's first-order bound of a sum of K terms.

    The kernels take the zero off the sum, so both parts of scale · code - offset count.
    """
    blocks = torch.from_numpy(stored(torch.randn(N, K).numpy(), kind))
    packed = pack(unpack_blocks(blocks, kind))
    moved = pack(unpack_blocks(blocks.cuda(), kind))
    weight = linear.unpack(packed).double()
    assert torch.equal(linear.unpack(moved).cpu(), linear.unpack(packed))
    x = torch.randn(rows, K)
    found = linear.packed(x.cuda(), moved).cpu().double()
    middle = 1 << packed.bits - 1
    zeros = torch.full_like(packed.scales, middle) if packed.zeros is None else packed.zeros
    offsets = (zeros.double() * packed.scales.double() * packed.unit).abs().repeat_interleave(packed.group, 1)
    bound = 2.0**-24 * (K + 8) * (x.double().abs() @ ((weight.abs() + 2 * offsets).T))
    assert ((found - x.double() @ weight.T).abs() <= bound).all()


def kinds(name):
    """As files of type Q4_K_M, with every other type somewhere."""
    others = {
        "blk.0.attn_v": Type.Q6_K, "blk.0.ffn_down": Type.Q6_K, "blk.0.ffn_up": Type.F16, "blk.1.attn_k": Type.Q5_0,
        "blk.1.ffn_up": Type.Q8_0, "blk.1.attn_output": Type.Q4_0, "blk.1.ffn_down": Type.Q5_K, "output": Type.Q6_K,
    }
    return next((kind for part, kind in others.items() if name.startswith(part + ".")), Type.Q4_K)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_engine(tmp_path, seed, family):
    model = gguf_model(family, tmp_path, seed, kinds)
    assert_most_are_decided(model)
    assert_same(model, on_gpu(model).ids)
