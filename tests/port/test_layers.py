"""Layers of the port that vLLM makes in place of its own."""

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers import rotary_embedding
from vllm.model_executor.layers.activation import GeluAndMul, SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm_kepler import layers

HEAD, POSITIONS = 64, 4096
SCALINGS = {
    "plain": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 1024},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(rotary_embedding, "_ROPE_DICT", {})
    layers.register()
    with set_current_vllm_config(VllmConfig()):
        yield


@pytest.mark.parametrize("make", [lambda: RMSNorm(HEAD), SiluAndMul, GeluAndMul])
def test_vllm_makes_the_ports_layers(make):
    layer = make()
    assert type(layer).__module__ == layers.__name__
    # Options switch layers off by these names.
    assert layer.name in ("rms_norm", "silu_and_mul", "gelu_and_mul")


@pytest.mark.parametrize("pairs", [True, False], ids=["halves", "neighbors"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_rotations_are_those_of_float64(scaling, pairs):
    """Two products, their sum, and the roundings of both: three units of 2^-24 of what is added."""
    rope = rotary_embedding.get_rope(HEAD, HEAD, POSITIONS, 10000.0, pairs, SCALINGS[scaling], torch.float32)
    assert isinstance(rope, layers.Rotation)
    positions, query, key = torch.randint(POSITIONS, (7,)), torch.randn(7, 4 * HEAD), torch.randn(7, 2 * HEAD)
    expected = rope.forward_native(positions, query.double(), key.double())
    bounds = [3 * 2.0**-24 * 2 * state.abs().max() * rope.cos_sin_cache.abs().max() for state in (query, key)]
    for found, exact, bound in zip(rope(positions, query, key), expected, bounds, strict=True):
        assert (found - exact).abs().max() <= bound
    # In place, as upstream's.
    assert rope(positions, query, None)[0].data_ptr() == query.data_ptr()


def test_registering_again_changes_nothing():
    before = dict(RMSNorm.op_registry_oot)
    layers.register()
    assert RMSNorm.op_registry_oot == before


def test_rotations_of_their_own_stay_upstreams():
    """A class that rotates in another way has its own method, which the port must not take from it."""
    replaced = {upstream.__name__ for upstream in layers.rotations()}
    assert {"RotaryEmbedding", "Llama3RotaryEmbedding", "YaRNScalingRotaryEmbedding"} <= replaced
    assert not {"DeepseekScalingRotaryEmbedding", "MRotaryEmbedding", "Llama4VisionRotaryEmbedding"} & replaced
