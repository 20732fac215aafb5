"""A decoding step's inputs: those that upstream's runner makes of the same sequences. Needs no GPU.

That engines answer the same with them is shown by tests/gpu.
"""

import random
import weakref
from array import array
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm.model_executor.layers.sampler import Sampler
from vllm.sampling_params import SamplingParams
from vllm.sequence import SequenceData, SequenceGroupMetadata
from vllm_kepler import absent_modules

absent_modules.stand_in()

from vllm.worker.model_runner import ModelInputForGPUBuilder, ModelRunner  # noqa: E402
from vllm_kepler import model_runner  # noqa: E402
from vllm_kepler.attention.metadata import GpuMetadataBuilder  # noqa: E402

BLOCK_SIZE, LONGEST, GRAPHS, VOCABULARY = 16, 256, 8, 100


@pytest.fixture
def groups_of_ranks(monkeypatch):
    monkeypatch.setattr(model_runner, "get_pp_group", lambda: SimpleNamespace(is_last_rank=True))
    monkeypatch.setattr("vllm.worker.model_runner.get_pp_group", lambda: SimpleNamespace(is_last_rank=True))


def make_runner(graphs=True, **differing):
    """A runner without a model, on the CPU; graphs are there for up to eight sequences, of 1, 2, 4 and 8."""
    runner = object.__new__(model_runner.KeplerModelRunner)
    runner.__dict__.update({
        "device": torch.device("cpu"), "pin_memory": False, "block_size": BLOCK_SIZE, "sliding_window": None,
        "lora_config": None, "prompt_adapter_config": None, "generators": {},
        "attn_backend": SimpleNamespace(get_builder_cls=lambda: GpuMetadataBuilder),
        "scheduler_config": SimpleNamespace(is_multi_step=False, chunked_prefill_enabled=False),
        "model_config": SimpleNamespace(
            is_encoder_decoder=False, is_multimodal_model=False, uses_mrope=False, enforce_eager=not graphs,
        ),
        "vllm_config": SimpleNamespace(pad_for_cudagraph=lambda size: next(n for n in (1, 2, 4, 8) if n >= size)),
        "max_seq_len_to_capture": LONGEST, "max_batchsize_to_capture": GRAPHS, "inter_data_cache": {},
        "graph_block_tables": np.zeros((GRAPHS, LONGEST // BLOCK_SIZE), dtype=np.int32),
        "sampling_metadata_cache": None, "_model_input_cls": ModelRunner._model_input_cls,
        "start": torch.zeros(1, dtype=torch.int32), "last": None,
        "tables": model_runner.BlockTables(torch.device("cpu"), pin_memory=False), **differing,
    })  # fmt: skip
    runner.builder = ModelInputForGPUBuilder(weakref.proxy(runner))
    return runner


class Batch:
    """Sequences as the scheduler keeps them; the groups of a step are made anew."""

    def __init__(self, rng):
        self.rng, self.sequences, self.made, self.block = rng, {}, 0, 0

    def add(self, params):
        prompt = [self.rng.randrange(VOCABULARY) for _ in range(self.rng.randrange(1, 60))]
        self.sequences[self.made] = SequenceData(array("l", prompt)), params, []
        self.made += 1

    def step(self):
        """Let each sequence have a token more, and the blocks for it."""
        for data, _, table in self.sequences.values():
            data.update_num_computed_tokens(data.get_len() - data.get_num_computed_tokens())
            data.append_token_id(self.rng.randrange(VOCABULARY), 0.0)
            while len(table) * BLOCK_SIZE < data.get_len():
                self.block += 1
                table.append(self.block)

    def groups(self):
        return [
            SequenceGroupMetadata(request_id=f"r{name}", is_prompt=False, seq_data={name: data},
                                  sampling_params=params, block_tables={name: table}, computed_block_nums=[])
            for name, (data, params, table) in self.sequences.items()
        ]


def assert_equal(found, expected):
    """All that a step is computed from; of the tables, what belongs to a sequence."""
    for name in ("input_tokens", "input_positions"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    for name in ("seq_lens", "query_lens", "is_prompt", "virtual_engine", "lora_requests", "multi_modal_kwargs",
                 "prompt_adapter_requests", "finished_requests_ids", "inputs_embeds", "token_types"):  # fmt: skip
        assert getattr(found, name) == getattr(expected, name), name
    assert found.request_ids_to_seq_ids == {k: list(v) for k, v in expected.request_ids_to_seq_ids.items()}
    one, other = found.attn_metadata, expected.attn_metadata
    for name in ("slot_mapping", "query_start_loc", "prefill_seq_lens", "decode_seq_lens"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert getattr(one, name).dtype == getattr(other, name).dtype
    for name in ("num_prefills", "num_prefill_tokens", "num_decode_tokens", "max_query_len", "use_cuda_graph",
                 "max_decode_seq_len", "multi_modal_placeholder_index_maps"):  # fmt: skip
        assert getattr(one, name) == getattr(other, name), name
    assert one.decode_block_tables.dtype == torch.int32
    assert len(one.decode_block_tables) == len(other.decode_block_tables)
    for row, length in enumerate(found.seq_lens[: len(found.query_lens)]):
        blocks = -(-length // BLOCK_SIZE)
        assert torch.equal(one.decode_block_tables[row, :blocks], other.decode_block_tables[row, :blocks])
    one, other = found.sampling_metadata, expected.sampling_metadata
    assert torch.equal(one.selected_token_indices, other.selected_token_indices)
    assert one.num_prompts == other.num_prompts == 0
    assert one.categorized_sample_indices.keys() == other.categorized_sample_indices.keys()
    for kind, indices in one.categorized_sample_indices.items():
        assert torch.equal(indices, other.categorized_sample_indices[kind])
    for mine, theirs in zip(one.seq_groups, other.seq_groups, strict=True):
        assert {**vars(mine), "generator": None} == {**vars(theirs), "generator": None}
        assert (mine.generator is None) == (theirs.generator is None)


SAMPLING = (
    {"temperature": 0}, {"temperature": 0.7, "seed": 3}, {"top_p": 0.5, "logprobs": 2}, {"min_p": 0.1},
    {"temperature": 0, "repetition_penalty": 1.5}, {"top_k": 5, "presence_penalty": 0.5},
    {"temperature": 0, "min_tokens": 9, "stop_token_ids": [7]},
)  # fmt: skip


def sampled(sampler, step, logits):
    torch.manual_seed(0)
    return [group.samples for group in sampler(logits.clone(), step.sampling_metadata).outputs]


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
def test_steps_are_those_of_upstream(seed, groups_of_ranks, graphs):
    """Sequences come, go and change places, blocks are replaced, batches outgrow the graphs; and what is sampled."""
    rng, reused = random.Random(seed), 0
    ours, theirs, batch = make_runner(graphs), make_runner(graphs), Batch(rng)
    samplers = Sampler(), Sampler()
    for index in range(240):
        if not batch.sequences or (len(batch.sequences) < 11 and rng.random() < 0.1):
            batch.add(SamplingParams(**rng.choice(SAMPLING)))
            name = f"r{batch.made - 1}"
            ours.generators[name], theirs.generators[name] = (torch.Generator().manual_seed(3) for _ in range(2))
        finished = []
        if len(batch.sequences) > 2 and rng.random() < 0.1:
            gone = rng.choice(list(batch.sequences))
            del batch.sequences[gone]
            finished = [f"r{gone}"]
        if rng.random() < 0.05:
            batch.sequences = dict(rng.sample(list(batch.sequences.items()), len(batch.sequences)))
        if rng.random() < 0.1:
            # A prompt has the sampler in between.
            data = SequenceData(array("l", [1, 2, 3]))
            prompt = [SequenceGroupMetadata(request_id="prompt", is_prompt=True, seq_data={10**6: data},
                                            sampling_params=SamplingParams(top_k=1), block_tables={10**6: [1]})]
            for runner, sampler in zip((ours, theirs), samplers, strict=True):
                sampled(sampler, runner.prepare_model_input(prompt), torch.randn(1, VOCABULARY))
        batch.step()
        if rng.random() < 0.1:
            # A block of a prefix that another sequence has cached already.
            rng.choice(list(batch.sequences.values()))[2][0] = 1000 + index
        found = ours.prepare_model_input(batch.groups(), 0, finished)
        expected = ModelRunner.prepare_model_input(theirs, batch.groups(), 0, finished)
        assert_equal(found, expected)
        logits = torch.randn(len(batch.sequences), VOCABULARY)
        assert sampled(samplers[0], found, logits) == sampled(samplers[1], expected, logits)
        reused += found.sampling_metadata.reuse_sampling_tensors
    assert reused > 20


def test_other_sequences_may_have_the_same_parameters(seed, groups_of_ranks):
    ours, theirs, batch = make_runner(), make_runner(), Batch(random.Random(seed))
    params = SamplingParams(temperature=0)
    for gone in (None, 0, 1):
        batch.sequences.pop(gone, None)
        while len(batch.sequences) < 2:
            batch.add(params)
        batch.step()
        found = ours.prepare_model_input(batch.groups())
        assert_equal(found, ModelRunner.prepare_model_input(theirs, batch.groups()))


@pytest.mark.parametrize("differing", [
    {"lora_config": object()}, {"prompt_adapter_config": object()}, {"sliding_window": 64},
], ids=lambda differing: next(iter(differing)))  # fmt: skip
def test_what_is_left_to_upstream(differing):
    assert make_runner().decodes
    assert not make_runner(**differing).decodes


def test_steps_that_do_more_than_decode(seed):
    batch = Batch(random.Random(seed))
    batch.add(SamplingParams(temperature=0))
    batch.step()
    (group,) = batch.groups()
    assert model_runner.decoding_of([group], BLOCK_SIZE)
    for name, value in (("is_prompt", True), ("do_sample", False), ("block_tables", None)):
        (other,) = batch.groups()
        setattr(other, name, value)
        assert model_runner.decoding_of([group, other], BLOCK_SIZE) is None
    ((data, _, _),) = batch.sequences.values()
    # A step that checks a token more than one.
    data.append_token_id(1, 0.0)
    assert model_runner.decoding_of([group], BLOCK_SIZE) is None
    assert model_runner.decoding_of([], BLOCK_SIZE) is None
