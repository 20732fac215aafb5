"""Unmodified vLLM with the port answers what transformers answers, token for token."""

import pytest
from conftest import generate
from tiny_models import FAMILIES, NEW_TOKENS, assert_same
from vllm.utils import Device


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_mixed_lengths(tiny, engine, family):
    model = tiny(family)
    assert_same(model, generate(engine(model), model.prompts))


def test_what_the_port_does_not_do_is_refused(tiny, engine):
    with pytest.raises(ValueError, match=r"load_format: found .*Leave it out"):
        engine(tiny("llama"), load_format="safetensors")


@pytest.mark.parametrize("block_size", [8, 16, 32])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_block_sizes(tiny, engine, family, block_size):
    model = tiny(family)
    assert_same(model, generate(engine(model, block_size=block_size), model.prompts))


# vLLM itself refuses to cache prefixes of a model whose every layer has a window.
@pytest.mark.parametrize(
    ("family", "caching"),
    [("llama", False), ("llama", True), ("gemma2", False), ("gemma2", True), ("bloom", False), ("bloom", True),
     ("starcoder2", False), ("mistral", False)],
)
def test_chunked_prefill(tiny, engine, family, caching):
    """Chunks of 48 tokens: the longest prompt takes three, beside sequences that decode already."""
    model = tiny(family)
    llm = engine(model, enable_chunked_prefill=True, max_num_batched_tokens=48, enable_prefix_caching=caching)
    assert_same(model, generate(llm, model.prompts))


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom"])
def test_prefix_caching(tiny, engine, family):
    """The second time every whole block of a prompt comes from the cache, and nothing changes."""
    model = tiny(family)
    llm = engine(model, enable_prefix_caching=True)
    assert_same(model, generate(llm, model.prompts))
    assert_same(model, generate(llm, model.prompts))
    assert llm.llm_engine.scheduler[0].get_prefix_cache_hit_rate(Device.GPU) > 0


def test_preemption(tiny, engine):
    """A cache too small for the batch: sequences are thrown out and computed again."""
    model = tiny("llama")
    blocks = -(-(max(map(len, model.prompts)) + NEW_TOKENS) // 16) + 3
    llm = engine(model, num_gpu_blocks_override=max(blocks, 512 // 16))
    prompts = [prompt for prompt in model.prompts for _ in range(4)]
    got = generate(llm, prompts)
    for index in range(4):
        assert_same(model, got[index::4])
    assert llm.llm_engine.scheduler[0].num_cumulative_preemption > 0


def test_the_cache_is_no_larger_than_its_sequences_need(tiny, engine):
    """16 sequences of 512 tokens, in blocks of 16."""
    assert engine(tiny("llama")).llm_engine.cache_config.num_gpu_blocks == 16 * 512 // 16
