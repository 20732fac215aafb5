"""dtype half: float16 weights and cache, float32 arithmetic."""

import pytest
import torch
from conftest import generate
from quantized_models import half_model, rewrite_tensors
from serve_once import serve
from tiny_models import assert_most_are_decided, assert_same

MODELS = {
    "llama": ("llama", {}),
    "llama-bfloat16": ("llama", {"dtype": torch.bfloat16}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "gpt2": ("gpt2", {"n_inner": 256}),
}


@pytest.fixture(scope="module")
def half(tmp_path_factory, seed):
    """Function from a name of MODELS to its model, made once."""
    made = {}

    def get(name):
        if name not in made:
            family, options = MODELS[name]
            made[name] = half_model(family, tmp_path_factory.mktemp(name), seed, **options)
        return made[name]

    return get


def worker_of(llm):
    return llm.llm_engine.model_executor.driver_worker.worker


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_rounded_weights(half, engine, name):
    """Token for token what transformers answers with the weights, and the keys and values, rounded to float16."""
    model = half(name)
    assert_most_are_decided(model)
    llm = engine(model, dtype="half")
    assert_same(model, generate(llm, model.prompts))
    worker = worker_of(llm)
    assert {tensor.dtype for cache in worker.cpu_cache for tensor in cache} == {torch.float16}
    parameters = dict(worker.model_runner.model.named_parameters())
    for own, parameter in parameters.items():
        matrix = parameter.dim() == 2 and "wpe" not in own
        assert parameter.dtype is (torch.float16 if matrix else torch.float32), own


def test_a_block_of_the_cache_takes_half_the_bytes(half, engine):
    sizes = [worker_of(engine(half("llama"), dtype=dtype)).get_cache_block_size_bytes() for dtype in ("half", "float")]
    assert 2 * sizes[0] == sizes[1]


@pytest.mark.parametrize("name", ["llama-tied", "qwen2"])
def test_two_ranks(half, name):
    model = half(name)
    done = serve(model, dtype="half", tensor_parallel_size=2)
    assert done.status == 0, done.printed
    assert_same(model, done.ids)


def with_value(model, directory, tensor, value):
    """A copy of the checkpoint with one other number."""

    def change(tensors):
        tensors[tensor].view(-1)[5] = value

    return rewrite_tensors(model, directory, change)


@pytest.mark.parametrize(("value", "found"), [(70000.0, "70144"), (float("-inf"), "inf"), (float("nan"), "nan")])
@pytest.mark.parametrize("tensor", ["model.layers.1.self_attn.k_proj.weight", "model.embed_tokens.weight"])
def test_what_float16_cannot_hold_is_refused(half, engine, tmp_path, tensor, value, found):
    """The message names the tensor of the checkpoint and its magnitude; bfloat16 rounds 70000 to 70144."""
    damaged = with_value(half("llama-bfloat16"), tmp_path / "model", tensor, value)
    with pytest.raises(ValueError, match=rf"tensor {tensor} \(bfloat16 .*of magnitude {found}; expected at most 65504"):
        engine(damaged, dtype="half")


def test_a_norm_beyond_float16_is_served(half, engine, tmp_path):
    """It is stored as float32."""
    large = with_value(half("llama-bfloat16"), tmp_path / "model", "model.norm.weight", 70000.0)
    engine(large, dtype="half")
