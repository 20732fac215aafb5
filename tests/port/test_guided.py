"""Guided decoding constrains: a model that knows nothing of JSON writes what the schema asks.

The model was trained on a license text alone; any freedom that a back end leaves would show. On a GPU too, where
VLLM_KEPLER_DEVICE is empty and VLLM_KEPLER_VERIFY is 1.
"""

import gc
import json
import re
from pathlib import Path

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

MODEL = Path(__file__).resolve().parents[1] / "models" / "licence-llama"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{2,8}$"},
        "count": {"type": "integer", "minimum": 3, "maximum": 9},
        "color": {"enum": ["red", "green", "blue"]},
        "flags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "count", "color", "flags"],
    "additionalProperties": False,
}
REGEX = r"[0-9]{3}-[A-F]{2}(;[0-9]{3}-[A-F]{2}){1,2}"
CHOICES = ["Kepler", "Maxwell", "Pascal"]
PROMPTS = ["Permission is hereby granted", "THE SOFTWARE IS PROVIDED", "The above copyright notice", "1"]
# The back end that the port chooses, and those that a request may name.
BACKENDS = [None, "xgrammar", "outlines", "lm-format-enforcer"]


@pytest.fixture(scope="module")
def llm():
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    made = LLM(str(MODEL), max_num_seqs=8, gpu_memory_utilization=0.5, num_gpu_blocks_override=512, swap_space=0)
    yield made
    del made
    gc.collect()
    cleanup_dist_env_and_memory()


def answers(llm, temperature, **guide):
    from vllm import SamplingParams
    from vllm.sampling_params import GuidedDecodingParams

    sampling = SamplingParams(temperature=temperature, max_tokens=200, seed=7,
                              guided_decoding=GuidedDecodingParams(**guide))
    return [output.outputs[0].text for output in llm.generate(PROMPTS, sampling, use_tqdm=False)]


@pytest.mark.parametrize("temperature", [0, 1])
def test_json_schema(llm, temperature):
    """Every constraint of the schema, ranges and patterns included, in the port's own choice of a back end.

    Without whitespace: with any, a small model does not come to an end.
    """
    for text in answers(llm, temperature, json=SCHEMA):
        jsonschema.validate(json.loads(text), SCHEMA)
        assert text == json.dumps(json.loads(text), separators=(",", ":"))


@pytest.mark.parametrize(("pattern", "spaces"), [(None, False), (" *", True)])
def test_whitespace_is_there_for_those_who_ask(llm, pattern, spaces):
    from vllm.model_executor.guided_decoding import guidance_decoding
    from vllm.sampling_params import GuidedDecodingParams

    guide = GuidedDecodingParams(json_object=True, whitespace_pattern=pattern)
    grammar = guidance_decoding.get_local_guidance_guided_decoding_logits_processor(guide, llm.get_tokenizer()).grammar
    matcher = LLMatcher(LLTokenizer("byte"), grammar)
    assert (matcher.validate_tokens(list(b'{"a": 1}')) == 8) == spaces


@pytest.mark.parametrize("backend", BACKENDS)
def test_regex(llm, backend):
    for text in answers(llm, 1, regex=REGEX, backend=backend):
        assert re.fullmatch(REGEX, text), text


@pytest.mark.parametrize("backend", BACKENDS)
def test_choice(llm, backend):
    assert set(answers(llm, 1, choice=CHOICES, backend=backend)) <= set(CHOICES)


# The model's tokenizer makes one space of each of these, in front of a text too; others bring texts into NFC.
CHANGED = ["two  spaces", "a\u2028b", "\u2028", "a\tb", "\U0001f1e9\U0001f1ea ok", " end ", "e\u0301"]


@pytest.mark.parametrize("text", CHANGED)
def test_what_a_tokenizer_would_change_is_written(llm, text):
    assert set(answers(llm, 0, choice=[text])) == {text}
    assert {json.loads(found) for found in answers(llm, 0, json={"enum": [text]})} == {text}


def test_without_a_guide_the_model_writes_none_of_these(llm):
    """What the other tests constrain is there."""
    from vllm import SamplingParams

    for output in llm.generate(PROMPTS, SamplingParams(temperature=1, seed=7, max_tokens=20), use_tqdm=False):
        text = output.outputs[0].text
        assert text not in CHOICES
        assert not re.fullmatch(REGEX, text)
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)
