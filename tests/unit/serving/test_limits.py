"""What one request may ask, by the JSON of its body."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from vllm_serving import limits
from vllm_serving.errors import Rejected
from vllm_serving.limits import Limits
from vllm_serving.versions import table_of

VOCABULARY, LENGTH = 512, 1024
LIMITS = Limits(vocabulary=VOCABULARY, length=LENGTH, logprobs=20, renderer=frozenset({"chat_template", "tokenize"}))


def refusal(body, given=LIMITS):
    """Return what is said of a body, or None."""
    try:
        given.check(limits.parse(json.dumps(body).encode()))
    except Rejected as rejected:
        return str(rejected) if rejected.status == 400 else f"{rejected.status}"
    return None


# Every field and every shape of it that can name token ids.
PLACES = [
    lambda token: {"prompt": [token]}, lambda token: {"prompt": [token, 1]}, lambda token: {"prompt": [1, token]},
    lambda token: {"prompt": [[1], [token]]}, lambda token: {"prompt": [[token]]}, lambda token: {"tokens": [1, token]},
    lambda token: {"input": [token, 1]}, lambda token: {"input": [[1], [1, token]]},
    lambda token: {"stop_token_ids": [token], "min_tokens": 1}, lambda token: {"allowed_token_ids": [1, token]},
    lambda token: {"logit_bias": {"1": 1, str(token): 1}},
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("token", [VOCABULARY, VOCABULARY + 1, -1, -VOCABULARY, (1 << 63) - 1, -(1 << 63)])
def test_token_ids_outside_the_vocabulary_are_named(place, token):
    said = refusal(place(token))
    assert f"found the token id {token}; the model's vocabulary has 0 to {VOCABULARY - 1}." in said
    assert said.startswith(tuple(place(1)))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("token", [0, 1, VOCABULARY - 1])
def test_token_ids_of_the_model_pass(place, token):
    assert refusal(place(token)) is None


STRANGE = [
    {"prompt": [1.0]}, {"prompt": [True]}, {"prompt": [[1], "a"]}, {"prompt": [[1], [None]]}, {"prompt": [[[1]]]},
    {"prompt": {}}, {"prompt": 5},
    {"input": [1.0]}, {"input": [[1], "a"]}, {"input": {}}, {"prompt": ["a", 1]}, {"prompt": [[1], 1]},
    {"prompt": True}, {"tokens": ["1"]},
    {"stop_token_ids": ["1"]}, {"stop_token_ids": [1.5]}, {"stop_token_ids": [[1]]}, {"allowed_token_ids": [None]},
    {"logit_bias": {"a": 1}}, {"logit_bias": {"": 1}}, {"logit_bias": {" 1": 1}}, {"logit_bias": {"1_0": 1}},
    {"logit_bias": {"٣": 1}}, {"logit_bias": {"9" * 5000: 1}}, {"logit_bias": {"--1": 1}},
]  # fmt: skip


@pytest.mark.parametrize("body", STRANGE)
def test_what_is_no_token_id_is_refused(body):
    assert refusal(body).startswith(next(iter(body)))


def test_without_a_known_vocabulary_token_ids_pass():
    assert refusal({"stop_token_ids": [999999], "prompt": [5] * 5000}, Limits()) is None


COUNTS = [
    {"n": 129}, {"n": 10**6}, {"best_of": 10**6}, {"n": 1, "best_of": 129}, {"prompt": ["a"] * 129},
    {"prompt": [[1]] * 129},
    {"input": ["a"] * 4097}, {"input": [1] * (LENGTH + 1)}, {"prompt": ["a"] * 2, "n": 65},
    {"prompt": [[1]] * 65, "n": 1, "best_of": 2},
    {"stop": ["a"] * 65}, {"stop_token_ids": [1] * 257}, {"stop": "a" * 1025}, {"stop": ["a", "b" * 1025]},
    {"bad_words": ["a"] * 257},
    {"bad_words": ["a"] * 17, "n": 128}, {"bad_words": ["a" * 1024] * 3, "n": 99},
    {"bad_words": ["a"] * 99, "best_of": 21}, {"bad_words": ["a"] * 200, "prompt": ["a"] * 11},
    {"logit_bias": dict.fromkeys(map(str, range(65)), 1), "n": 128},
    {"logit_bias": dict.fromkeys(map(str, range(500)), 1), "prompt": [[1]] * 17},
    {"bad_words": ["a" * 1025]}, {"tools": [{}] * 129}, {"messages": [{}] * 1025}, {"logprobs": 21},
    {"top_logprobs": 10**9}, {"prompt_logprobs": 21}, {"logit_bias": {str(one): 0 for one in range(1025)}},
    {"use_beam_search": True, "n": 11}, {"prompt": [1] * (LENGTH + 1)}, {"prompt": [[1] * (LENGTH + 1)]},
    {"allowed_token_ids": [1] * (LENGTH + 1)}, {"guided_choice": ["a"] * 4097}, {"documents": [{}] * 4097},
    {"tool_choice": None}, {"tool_choice": "x"}, {"tool_choice": ["auto"]}, {"bad_words": [""]},
    {"bad_words": ["a", "\t"]}, {"n": 0}, {"n": -1}, {"n": "1"}, {"n": 1.0}, {"n": True},
    {"best_of": [1]},
]  # fmt: skip


@pytest.mark.parametrize("body", COUNTS)
def test_counts_that_multiply_work_are_bounded(body):
    assert refusal(body)


TEXTS = [
    {"input": "a" * (16 * LENGTH + 1)}, {"input": ["a" * 16_000] * 100},
    {"prompt": "a" * (16 * LENGTH + 1)}, {"prompt": ["b", "a" * (16 * LENGTH + 1)]},
    {"messages": [{"role": "user", "content": "a" * 10_000}, {"role": "user", "content": "a" * 10_000}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a" * 20_000}]}]},
    {"messages": [], "tools": [{"function": {"description": "a" * 20_000}}]}, {"prompt": ["a" * 16_000] * 100},
    {"text_1": "a" * 20_000, "text_2": "b"}, {"text_1": "a", "text_2": ["b", "a" * 20_000]}, {"query": "a" * 20_000},
    {"query": "a", "documents": ["a" * 20_000]}, {"text_1": "a", "text_2": ["a" * 16_000] * 100},
    {"query": "a", "documents": ["a" * 16_000] * 100},
    {"messages": [], "documents": [{"text": "a" * 20_000}]}, {"chat_template_kwargs": {"x": "a" * 20_000}},
]  # fmt: skip


@pytest.mark.parametrize("body", TEXTS)
def test_texts_that_cannot_fit_are_refused(body):
    assert "characters" in refusal(body)
    assert refusal(body, Limits()) is None


ALLOWED = [
    {"input": ["a"] * 2048}, {"input": [[1] * LENGTH] * 9},
    {"n": 128}, {"n": 2, "best_of": 64, "prompt": ["a", "b"]}, {"prompt": [[1]] * 128}, {"stop": ["a" * 1024] * 64},
    {"logprobs": 20}, {"logprobs": True, "top_logprobs": 20}, {"use_beam_search": True, "n": 10}, {"n": None},
    {"prompt": [1] * LENGTH}, {"prompt": []}, {"prompt": "a" * 16 * LENGTH}, {"best_of": None}, {},
    {"chat_template": None, "chat_template_kwargs": {"enable_thinking": False}}, {"chat_template_kwargs": "x"},
    {"guided_json": {"enum": [str(one) for one in range(4000)]}},
    {"messages": [{"role": "user", "content": "a"}] * 1024},
    {"logit_bias": dict.fromkeys(map(str, range(64)), 1), "n": 128},
    {"bad_words": ["a"] * 16, "n": 128}, {"bad_words": ["a" * 1024] * 256}, {"bad_words": ["a" * 99] * 200, "n": 10},
    {"query": "a", "documents": ["a" * 10_000] * 50}, {"text_1": "a" * 10_000, "text_2": ["a" * 10_000] * 50},
]  # fmt: skip


@pytest.mark.parametrize("body", ALLOWED)
def test_requests_within_the_limits_pass(body):
    assert refusal(body) is None


@pytest.mark.parametrize(("version", "body", "instead"), [
    ("0.12.0", {"guided_choice": ["yes", "no"]}, 'structured_outputs: {"choice": [...]}'),
    ("0.12.0", {"guided_json": {}}, 'structured_outputs: {"json": ...}'),
    ("0.12.0", {"guided_regex": "a"}, 'structured_outputs: {"regex": ...}'),
    ("0.12.0", {"guided_grammar": "a"}, 'structured_outputs: {"grammar": ...}'),
    ("0.12.0", {"best_of": 5}, "n, and choose"), ("0.12.0", {"best_of": 1}, None),
    ("0.12.0", {"guided_choice": None, "best_of": None}, None), ("0.12.0", {"structured_outputs": {}}, None),
    ("0.9.2", {"structured_outputs": {"choice": ["yes"]}}, "guided_json, guided_regex, guided_choice"),
    ("0.9.2", {"guided_choice": ["yes", "no"], "best_of": 2}, None),
])  # fmt: skip
def test_fields_that_vllm_would_ignore_are_refused(version, body, instead):
    """Else a client that wants one of two words gets any text, and nobody is told."""
    found = refusal(body, replace(LIMITS, ignored=table_of(version).IGNORED_FIELDS))
    assert (found is None) == (instead is None)
    assert instead is None or f"would ignore it. Send {instead}" in found


@pytest.mark.parametrize("body", [
    {"structured_outputs": {"regex": "a", "_backend": "xgrammar"}},
    {"structured_outputs": {"regex": "a", "_backend_was_auto": True}}, {"structured_outputs": {"structural_tag": "{}"}},
    {"response_format": {"type": "structural_tag", "format": {}}}, {"kv_transfer_params": {"do_remote_prefill": True}},
])  # fmt: skip
def test_what_only_the_server_decides_is_refused(body):
    assert refusal(body).startswith(next(iter(body)))


def test_limits_of_a_model_are_those_of_both_its_parts():
    model = SimpleNamespace(get_vocab_size=lambda: 100, max_model_len=64, max_logprobs=5)
    for tokens, vocabulary in ((90, 90), (110, 100)):
        tokenizer = SimpleNamespace(get_vocab=lambda tokens=tokens: {str(token): token for token in range(tokens)})
        found = Limits(sequences=7, renderer=frozenset({"x"})).of_model(model, tokenizer)
        assert found == Limits(7, vocabulary, 64, 5, frozenset({"x"}))


@pytest.mark.parametrize("name", ["temperature", "repetition_penalty", "length_penalty"])
@pytest.mark.parametrize("number", [1e-320, 1e-45, 1e30, 1e308, -1e308, 10**18, "1", True, [1]])
def test_numbers_that_float32_cannot_use_are_refused(name, number):
    # Near zero is a temperature that upstream replaces, and no length penalty.
    passes = isinstance(number, float) and 0 < number < 1e-40 and name != "repetition_penalty"
    assert (refusal({name: number}) is None) == passes


@pytest.mark.parametrize("body", [
    {"chat_template": "{{ 1 }}"}, {"chat_template": ""}, {"chat_template": 0}, {"messages": [], "chat_template": "x"},
    {"chat_template_kwargs": {"chat_template": "x"}}, {"chat_template_kwargs": {"chat_template": None}},
    {"chat_template_kwargs": {"a": 1, "tokenize": True}}, {"logits_processors": ["x"]}, {"prompt_embeds": ""},
])  # fmt: skip
def test_what_is_the_operators_is_refused(body):
    assert refusal(body).endswith("Leave it out.")


def nested(depth, kind):
    return '{"a":' * depth + "1" + "}" * depth if kind == "object" else '{"a":' + "[" * depth + "]" * depth + "}"


@pytest.mark.parametrize("kind", ["object", "list"])
def test_deep_bodies_are_refused(kind):
    LIMITS.check(limits.parse(nested(limits.DEEPEST - 3, kind).encode()))
    with pytest.raises(Rejected, match="deeper than"):
        LIMITS.check(limits.parse(nested(limits.DEEPEST + 1, kind).encode()))


@pytest.mark.parametrize("body", [
    {"messages": [[{}] * 100] * 400}, {"metadata": {str(one): [1] * 4000 for one in range(9)}},
    {"stop": [["a"] * 4096] * 9}, {"a": [0] * 4097},
])  # fmt: skip
def test_bodies_of_many_values_are_refused(body):
    assert "values" in refusal(body) or "items" in refusal(body)


def test_largest_bodies_are_judged_at_once():
    """The API's event loop waits meanwhile: it may take some times as long as Python's own reader of JSON."""
    bodies = [b'{"prompt": [' + b"1," * 1_000_000 + b"1]}", b'{"prompt": [' + b"[]," * 700_000 + b"[]]}",
              b'{"a": ' + b"[" + b"[1]," * 500_000 + b"1]}", b'{"seed": ' + b"9" * 2_000_000 + b"}"]
    for body in bodies:
        began = time.process_time()
        json.loads(body, parse_int=len)
        read = time.process_time()
        with pytest.raises(Rejected):
            LIMITS.check(limits.parse(body))
        assert time.process_time() - read < 50 * (read - began) + 0.5
