"""CUDA graphs as far as no GPU is needed: the switch, what is captured, and a padded step's metadata.

That graphs are replayed and change no answer is shown by tests/gpu/test_graphs.py.
"""

import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_cuda_platform import run
from vllm.attention.backends.utils import PAD_SLOT_ID, CommonAttentionState
from vllm_kepler import envs
from vllm_kepler.attention.backend import KeplerBackend
from vllm_kepler.attention.graphs import WATCHDOG_SECONDS, KeplerState
from vllm_kepler.attention.metadata import GpuMetadataBuilder
from vllm_kepler.ops import attention, cache

GRAPHS = "VLLM_KEPLER_CUDA_GRAPHS"
CONFIGURE = """
from vllm.platforms import current_platform
from vllm.engine.arg_utils import EngineArgs
for options in {options!r}:
    try:
        config = EngineArgs({model!r}, skip_tokenizer_init=True, **options).create_engine_config()
    except ValueError as error:
        print(error)
        continue
    compilation = config.compilation_config
    print(config.model_config.enforce_eager, compilation.cudagraph_capture_sizes,
          [config.pad_for_cudagraph(size) for size in range(1, compilation.max_capture_size + 1)])
# Upstream's parts of it name flash attention's while they are imported.
import vllm_kepler.speculation.worker
"""
SIZES = list(range(1, 65))
# Options, and with graphs: eager, sizes, the size to which each number of sequences is padded; or what is refused.
CASES = [
    ({}, f"False {SIZES[::-1]} {SIZES}"),
    ({"max_num_seqs": 1}, "False [1] [1]"),
    ({"max_num_seqs": 3}, "False [3, 2, 1] [1, 2, 3]"),
    ({"max_num_seqs": 2, "speculative_config": {"method": "ngram", "num_speculative_tokens": 4}},
     f"False {SIZES[9::-1]} {SIZES[:10]}"),
    ({"enforce_eager": True}, "VLLM_KEPLER_CUDA_GRAPHS: found 1 and enforce_eager: true; expected one of the two."),
    ({"task": "embed"}, "VLLM_KEPLER_CUDA_GRAPHS: found 1 and a model that generates no tokens; expected one of the "),
]


@pytest.mark.parametrize("value", ["", "1"])
def test_the_switch(tiny, value):
    """What vLLM makes of a model's config on a machine with K80 boards."""
    program = CONFIGURE.format(model=str(tiny("llama").directory), options=[options for options, _ in CASES])
    status, printed = run(program, **{GRAPHS: value})
    assert status == 0, printed
    for _, expected in CASES:
        assert (expected in printed) == (value == "1"), printed
    assert printed.count("\nTrue [] []") == (0 if value == "1" else len(CASES))
    assert (f"{GRAPHS}=1, CUDA graphs for decoding" in printed) == (value == "1")
    assert ("disabling CUDA graphs" in printed) == (value != "1")


def test_auto_says_what_it_has_come_to(tiny):
    """The role has chosen, and says why; a model that generates no tokens is eager, and nothing is refused."""
    options = [{}, {"task": "embed"}]
    program = CONFIGURE.format(model=str(tiny("llama").directory), options=options)
    status, printed = run(program, **{GRAPHS: "1", f"{GRAPHS}_AUTO": "the same answers, 2.0 ms a step with them"})
    assert status == 0, printed
    assert "cuda_graphs: auto: CUDA graphs: the same answers, 2.0 ms a step with them." in printed
    assert "cuda_graphs: auto: eager: a model that generates no tokens" in printed
    assert printed.count(f"\nFalse {SIZES[::-1]}") == 1
    assert printed.count("\nTrue [] []") == 1
    status, printed = run(program, **{GRAPHS: "0", f"{GRAPHS}_AUTO": "nobody qualified this host"})
    assert "cuda_graphs: auto: eager: nobody qualified this host." in printed
    assert printed.count("\nTrue [] []") == 2


@pytest.mark.parametrize(("value", "expected"), [("", False), ("0", False), ("1", True)])
def test_values_of_the_switch(monkeypatch, value, expected):
    monkeypatch.setenv(GRAPHS, value)
    assert expected == envs.VLLM_KEPLER_CUDA_GRAPHS


@pytest.mark.parametrize("value", ["yes", "true", "2"])
def test_other_values_are_refused(monkeypatch, value):
    monkeypatch.setenv(GRAPHS, value)
    with pytest.raises(ValueError, match=f"VLLM_KEPLER_CUDA_GRAPHS: found '{value}'; expected 1 for CUDA graphs"):
        assert envs.VLLM_KEPLER_CUDA_GRAPHS


def test_the_cpu_has_none(tiny, engine, monkeypatch, caplog):
    """The stand-in says so and decodes eagerly."""
    monkeypatch.setenv(GRAPHS, "1")
    config = engine(tiny("llama")).llm_engine.vllm_config
    assert config.model_config.enforce_eager
    assert config.compilation_config.cudagraph_capture_sizes == []
    assert f"{GRAPHS}=1 changes nothing here" in caplog.text


BLOCK_SIZE, BLOCKS, HEADS, HEAD_SIZE, LONGEST = 16, 12, 2, 32, 64


@pytest.fixture
def runner():
    """What the backend asks of upstream's GPU model runner, on the CPU."""
    return SimpleNamespace(
        device=torch.device("cpu"), pin_memory=False, attn_backend=KeplerBackend, max_seq_len_to_capture=LONGEST,
        graph_block_tables=np.zeros((8, LONGEST // BLOCK_SIZE), dtype=np.int32),
    )


def metadata_of(runner, sequences, padding):
    """Metadata of a decoding step, as upstream builds it; sequences: (tokens, blocks) of each; padding: -1 for none."""
    groups = [
        SimpleNamespace(
            is_prompt=False, seq_ids=[index], input_tokens=[[0]], orig_seq_lens=[length], seq_lens=[length],
            query_lens=[1], context_lens=[length - 1], curr_sliding_window_blocks=[0], prefix_cache_hit=False,
            block_tables={index: blocks}, multi_modal_placeholder_maps=None,
        )
        for index, (length, blocks) in enumerate(sequences)
    ]
    builder = GpuMetadataBuilder(SimpleNamespace(
        runner=runner, sliding_window=None, block_size=BLOCK_SIZE, inter_data_list=groups,
        chunked_prefill_enabled=False,
    ))
    builder.prepare()
    lengths = [length for length, _ in sequences] + [1] * max(padding, 0)
    return builder.build(lengths, [1] * len(sequences), padding, len(lengths))


SEQUENCES = [(17, [3, 5]), (16, [7]), (40, [1, 9, 2])]


def test_a_padded_step(runner):
    """Rows beyond the sequences: one token, no slot; the tables are as wide as the graph's."""
    step = metadata_of(runner, SEQUENCES, 1)
    assert step.use_cuda_graph
    assert step.num_decode_tokens == 4
    assert step.decode_seq_lens.tolist() == [17, 16, 40, 1]
    assert step.slot_mapping.tolist() == [5 * 16, 7 * 16 + 15, 2 * 16 + 7, PAD_SLOT_ID]
    assert step.decode_block_tables.shape == (4, LONGEST // BLOCK_SIZE)
    assert not metadata_of(runner, SEQUENCES, -1).use_cuda_graph


def attend(step, query, kv_cache):
    """What a layer does in a decoding step: (output, cache)."""
    kv_cache, out = kv_cache.clone(), torch.full_like(query, float("nan"))
    cache.write_kv(kv_cache, query, query, step.slot_mapping)
    attention.decode(
        out, query, kv_cache, step.decode_block_tables, step.decode_seq_lens, step.max_decode_seq_len,
        attention.AttentionSpec(scale=HEAD_SIZE**-0.5),
    )
    return out, kv_cache


def test_a_graph_works_on_the_step_that_is_put_in(runner):
    """The captured metadata, filled as for a replay, gives what the step alone gives, and padding stores nothing.

    Two steps through one graph, the second with other blocks: what the first left must not be read.
    """
    state = KeplerState(runner)
    # Its own part of capturing measures a GPU's memory.
    with CommonAttentionState.graph_capture(state, 8):
        graph = state.graph_capture_get_metadata_for_batch(4)
        buffers = state.get_graph_input_buffers(graph)
    # On a GPU the graph's tables are a copy of the host's.
    runner.graph_block_tables = runner.graph_block_tables.copy()
    kv_cache = torch.randn(cache.kv_cache_shape(BLOCKS, BLOCK_SIZE, HEADS, HEAD_SIZE))
    for sequences in (SEQUENCES, [(18, [3, 5]), (17, [7, 8]), (41, [6, 4, 10])]):
        step = metadata_of(runner, sequences, 1)
        # Upstream's runner fills this one.
        buffers["slot_mapping"].copy_(step.slot_mapping)
        state.prepare_graph_input_buffers(buffers, step)
        query = torch.randn(4, HEADS, HEAD_SIZE)
        found, written = attend(graph, query, kv_cache)
        expected, stored = attend(metadata_of(runner, sequences, -1), query[:3], kv_cache)
        assert torch.equal(written, stored)
        torch.testing.assert_close(found[:3], expected, rtol=1e-5, atol=1e-6)
        assert found.isfinite().all()


@pytest.fixture
def gpu(runner, monkeypatch):
    """A GPU whose free memory is 1,000 MiB and then 940; gives what was waited for, in seconds."""
    free, waited = iter((1000 << 20, 940 << 20)), []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (next(free), 1 << 40))
    monkeypatch.setattr(time, "sleep", waited.append)
    runner.parallel_config = SimpleNamespace(world_size=1)
    runner.vllm_config = SimpleNamespace(compilation_config=SimpleNamespace(cudagraph_capture_sizes=[4, 2, 1]))
    return waited


@pytest.mark.parametrize(("ranks", "seconds"), [(1, []), (2, [WATCHDOG_SECONDS])])
def test_what_capturing_says_and_waits_for(runner, gpu, caplog, ranks, seconds):
    runner.parallel_config.world_size = ranks
    with caplog.at_level("INFO"), KeplerState(runner).graph_capture(8):
        assert gpu == seconds
    assert caplog.messages[-1] == (
        "CUDA graphs: captured decoding steps of 1 to 4 sequences, up to 64 tokens each; they take 60 MiB beside the "
        "KV cache."
    )


def test_a_step_that_cannot_be_captured_says_what_to_do(runner, gpu):
    said = "could not be captured: it waits. Serve without graphs (leave VLLM_KEPLER_CUDA_GRAPHS out)"
    with pytest.raises(RuntimeError, match=re.escape(said)), KeplerState(runner).graph_capture(8):
        raise RuntimeError("it waits")


def test_hidden_states_keep_their_memory():
    tensor = torch.randn(2, 3)
    kept = torch.ops._C.weak_ref_tensor(tensor)
    assert kept.data_ptr() == tensor.data_ptr()
    assert torch.equal(kept, tensor)
