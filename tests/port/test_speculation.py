"""Speculative decoding: the answers of plain decoding, in fewer steps where the text repeats itself."""

import json
from array import array
from types import SimpleNamespace

import pytest
import torch
from conftest import generate
from overlapped import overlap
from serve_once import serve
from tiny_models import CONTEXT, FAMILIES, VOCABULARY, assert_same, make
from vllm import SamplingParams, TokensPrompt
from vllm.model_executor.layers import sampler
from vllm.spec_decode import spec_decode_worker
from vllm_kepler.speculation.lookup import Balance, look_up
from vllm_kepler.speculation.scheduler import SpeculativeScheduler
from vllm_kepler.speculation.worker import Metrics

TOKENS, PROPOSED = 112, 4
NGRAM = {"method": "ngram", "num_speculative_tokens": PROPOSED, "prompt_lookup_min": 2, "prompt_lookup_max": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory, seed):
    """A model whose answers repeat little."""
    return make("llama", tmp_path_factory.mktemp("speculation"), seed, tokens=TOKENS)


@pytest.fixture(scope="module")
def circling(tmp_path_factory, seed):
    """A model whose greedy answers soon go in circles."""
    return make("llama", tmp_path_factory.mktemp("circling"), seed, lengths=(1, 33), tokens=TOKENS, heard=0.001)


@pytest.fixture(scope="module")
def smaller(tmp_path_factory, seed):
    """Directory of a model of another size and other weights, with the same vocabulary."""
    FAMILIES["smaller"] = ("llama", {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 96})
    try:
        return make("smaller", tmp_path_factory.mktemp("smaller"), seed + 1, lengths=(1,), tokens=1).directory
    finally:
        del FAMILIES["smaller"]


@pytest.fixture
def steps(monkeypatch):
    """What each decoding step was so far: the tokens of its proposals, 0 if nobody speculated."""
    seen, choose = [], SpeculativeScheduler.choose

    def watched(scheduler, groups, everywhere):
        count = choose(scheduler, groups, everywhere)
        if not all(group.is_prompt for group in groups):
            seen.append(count)
        return count

    monkeypatch.setattr(SpeculativeScheduler, "choose", watched)
    return seen


@pytest.fixture
def beside(monkeypatch):
    """Tokens of the proposals of each step beside which the last one's output was handled, as with a GPU."""
    return overlap(monkeypatch.setattr)


def sample(llm, prompts, **options):
    """Token ids of a batch of requests with the same sampling parameters, and the log-probability of each."""
    sampling = SamplingParams(max_tokens=24, ignore_eos=True, detokenize=False, logprobs=1, **options)
    done = llm.generate([TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], sampling, use_tqdm=False)
    answers = [output.outputs[0] for output in done]
    logprobs = [
        [chosen[token].logprob for token, chosen in zip(answer.token_ids, answer.logprobs, strict=True)]
        for answer in answers
    ]
    return [list(answer.token_ids) for answer in answers], logprobs


def no_fives(output, logits):
    logits[5::10] = -torch.inf
    return logits


def test_text_that_repeats_itself(circling, engine, steps, monkeypatch):
    """One request after the other: far fewer steps than tokens; the others sample as plain decoding does.

    Nobody asks for log-probabilities, so none are looked for.
    """
    written, write = [], sampler._modify_greedy_probs_inplace
    monkeypatch.setattr(sampler, "_modify_greedy_probs_inplace", lambda *given: (written.append(0), write(*given)))
    monkeypatch.delattr(spec_decode_worker, "get_sampled_token_logprobs")
    llm = engine(circling, speculative_config=dict(NGRAM))
    found = [generate(llm, [prompt], TOKENS)[0] for prompt in circling.prompts]
    assert_same(circling, found)
    # What is accepted becomes longer: two tokens, then four.
    assert {0, 2, PROPOSED} <= set(steps)
    assert len(written) == sum(map(bool, steps))
    # Plain decoding takes one step for each token after the first.
    assert len(steps) < 0.85 * len(found) * (TOKENS - 1)


def test_what_other_requests_get(model, engine, steps):
    """Many at once, the model's last position, log-probabilities, seeds and guides: all as in plain decoding.

    Plain answers are those of the same engine while it may not speculate.
    """
    llm = engine(model, speculative_config={**NGRAM, "prompt_lookup_min": 1, "disable_by_batch_size": 16})
    assert_same(model, generate(llm, model.prompts, TOKENS))
    assert any(steps)
    # Steps that failed are few.
    assert sum(map(bool, steps)) < len(steps) / 2
    repeated = model.prompts[-1][:20] * 24
    asked = [
        ([repeated[:90]], {"temperature": 0}), ([repeated[:90], model.prompts[1]], {"temperature": 1, "seed": 7}),
        ([repeated[:90]], {"temperature": 0, "logits_processors": [no_fives]}),
        ([repeated[: CONTEXT - 24]], {"temperature": 0}),
    ]
    found = [sample(llm, prompts, **options) for prompts, options in asked]
    llm.llm_engine.scheduler[0].disable_by_batch_size = 0
    steps.clear()
    for (prompts, options), (ids, logprobs) in zip(asked, found, strict=True):
        plain, expected = sample(llm, prompts, **options)
        assert ids == plain, options
        torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(expected), rtol=1e-3, atol=1e-3)
    assert not any(steps)


def test_outputs_beside_the_next_step(circling, engine, steps, beside):
    """Plain steps are handled beside the next one, and no others; answers end where they do without it."""
    llm = engine(circling, speculative_config={**NGRAM, "disable_by_batch_size": 16})
    answers = generate(llm, circling.prompts, TOKENS)
    assert_same(circling, answers)
    assert 0 < steps.count(0) < len(steps)
    # Once more for the prompts' step.
    assert beside == [0] * (1 + steps.count(0))
    for end in (1, 4, 60):
        last = [answer[end + index] for index, answer in enumerate(answers)]
        # The model may have said its end of text before.
        sampling = [SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, stop_token_ids=[token])
                    for token in last]
        prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in circling.prompts]
        done = llm.generate(prompts, sampling, use_tqdm=False)
        assert [list(output.outputs[0].token_ids) for output in done] == [
            answer[: answer.index(token) + 1] for answer, token in zip(answers, last, strict=True)
        ]
    longest = (circling.prompts[0] * CONTEXT)[: CONTEXT - 9]
    assert [len(ids) for ids in generate(llm, [longest, circling.prompts[1]], TOKENS)] == [9, TOKENS]


def test_chunked_prefill_and_cached_prefixes(model, engine):
    """Chunks of prompts and proposals in one step; the second time prompts come from the cache."""
    llm = engine(model, speculative_config={**NGRAM, "disable_by_batch_size": 16}, enable_prefix_caching=True,
                 enable_chunked_prefill=True, max_num_batched_tokens=48)
    for _ in range(2):
        assert_same(model, generate(llm, model.prompts, TOKENS))


def test_a_draft_model_of_another_size(model, smaller, engine, steps):
    """Its proposals are wrong: each answer soon goes on without them."""
    llm = engine(model, speculative_config={"model": str(smaller), "num_speculative_tokens": 2,
                                            "disable_by_batch_size": 16})
    assert_same(model, generate(llm, model.prompts, TOKENS))
    assert any(steps)
    assert not any(steps[-TOKENS // 2:])


def test_a_draft_model_that_is_right(circling, engine, steps):
    """The model itself drafts: all of the tokens are accepted."""
    llm = engine(circling, speculative_config={"model": str(circling.directory), "num_speculative_tokens": 2})
    assert_same(circling, generate(llm, circling.prompts, TOKENS))
    assert len(steps) < 0.5 * TOKENS


@pytest.mark.parametrize(("drafted", "overlapped"), [(False, False), (False, True), (True, False), (True, True)], ids=[
    "lookup", "lookup-overlapped", "draft", "draft-overlapped",
])
def test_two_ranks(model, smaller, drafted, overlapped):
    config = {"model": str(smaller), "num_speculative_tokens": 2} if drafted else dict(NGRAM)
    done = serve(model, tensor_parallel_size=2, speculative_config=config, overlapped=overlapped)
    assert done.status == 0, done.printed[-3000:]
    assert bool(done.overlaps) is overlapped
    assert_same(model, done.ids)


@pytest.mark.parametrize(("config", "message"), [
    ({"method": "ngram", "num_speculative_tokens": 16}, "num_speculative_tokens: found 16; expected an integer of 1 "),
    ({**NGRAM, "acceptance_method": "typical_acceptance_sampler"}, "acceptance_method: found 'typical_acceptance_sam"),
    ({"model": "narrow", "num_speculative_tokens": 2}, "model: found a vocabulary of 256 tokens; expected that of "),
    ({"model": "medusa", "num_speculative_tokens": 2}, "method: found 'medusa'; expected ngram for prompt lookup, or"),
], ids=["tokens", "acceptance", "vocabulary", "medusa"])  # fmt: skip
def test_what_cannot_speculate_is_refused(model, tmp_path, config, message):
    from vllm.engine.arg_utils import EngineArgs

    if "model" in config:
        differs = {"narrow": {"vocab_size": 256}, "medusa": {"model_type": "medusa", "vocab_size": VOCABULARY}}
        said = json.loads((model.directory / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**said, **differs[config["model"]]}))
        config = {**config, "model": str(tmp_path)}
    with pytest.raises(ValueError, match=f"speculative_config.{message}"):
        EngineArgs(str(model.directory), skip_tokenizer_init=True, speculative_config=config).create_engine_config()


@pytest.mark.parametrize(("ids", "found"), [
    ([1, 2, 3, 4, 1, 2], [3, 4, 1, 2]), ([1, 2, 9, 1, 2, 8, 1, 2], [8, 1, 2, 8]), ([5, 5, 5], [5, 5, 5, 5]),
    ([3, 1, 2, 9, 4, 1, 2, 8, 3, 1, 2], [9, 4, 1, 2]), ([1, 2, 3], None), ([1, 2], None), ([7], None),
    # Of an id of 256 the bytes begin with a zero, as those between two small ones do.
    ([1, 256, 1, 2, 256, 1], [2, 256, 1, 2]), ([256, 1, 0, 256], None),
])  # fmt: skip
def test_what_followed_before(ids, found):
    """Of n-grams of two and three tokens the longest, of its places the last; what follows may repeat itself."""
    assert look_up(array("l", ids), 2, 3, 4) == found


def test_a_lookup_equals_a_plain_search():
    for _ in range(200):
        ids = torch.randint(254, 258, (int(torch.randint(1, 40, ())),)).tolist()
        expected = None
        for size in (2, 3):
            for place in range(size, len(ids)):
                if size < len(ids) and ids[place - size:place] == ids[-size:]:
                    following = ids[place:]
                    expected = [following[index % len(following)] for index in range(4)]
        assert look_up(array("l", ids), 2, 3, 4) == expected, ids


def pattern(balance, accepted, looks):
    """How many tokens it proposes at each of so many looks, up to 4, where up to `accepted` of them always are."""
    length, seen = 10, []
    for _ in range(looks):
        count = min(balance.look(length), 4)
        seen.append(count)
        balance.proposed = (length, count) if count else None
        length += 1 + min(accepted, count)
    return seen


def test_proposals_that_fail_become_rare():
    """Seven in 600 steps: it rests for 7, 35 and then 127; all but the first have one token."""
    seen = pattern(Balance(4, 127), 0, 600)
    assert {index: count for index, count in enumerate(seen) if count} == {
        0: 2, 8: 1, 44: 1, 172: 1, 300: 1, 428: 1, 556: 1
    }


def test_proposals_that_are_accepted_become_long():
    assert pattern(Balance(4, 127), 4, 10) == [2] + 9 * [4]
    assert pattern(Balance(4, 127), 2, 50) == [2] + 49 * [4]
    # As long as they are right.
    assert pattern(Balance(4, 127), 1, 50) == [2] * 50


def test_a_sequence_that_rested_speculates_again():
    balance = Balance(4, 127)
    pattern(balance, 0, 20)
    assert pattern(balance, 4, 60)[-20:] == [4] * 20


def test_a_draft_that_fails_is_left_alone():
    assert sum(map(bool, pattern(Balance(8 * 4, 0, 8 * 4), 0, 500))) == 9


def test_figures_count_proposals_of_any_length():
    """Two proposals of two tokens and one of three, of which six are accepted; two of them with a further token."""
    counted = Metrics(None, 7)
    counted.proposals = 3
    counted._aggregate_num_accepted_tokens, counted._aggregate_num_emitted_tokens = torch.tensor(6), torch.tensor(8)
    counted._aggregate_num_draft_tokens = 7
    found = counted._collect_rejsample_metrics(7, SimpleNamespace(synchronize=lambda: None))
    assert (found.draft_acceptance_rate, found.system_efficiency) == (6 / 7, 8 / 10)
