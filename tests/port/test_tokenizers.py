"""Tokenizers as transformers 5 saves them."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from vllm.transformers_utils.tokenizer import get_tokenizer
from vllm_kepler import tokenizers

WORDS = {word: number for number, word in enumerate(["<s>", "</s>", "<tool>", "a", "b", "c"])}


@pytest.fixture
def saved(tmp_path):
    """Function that writes a tokenizer with a config of other keys, and reads it as the server does."""
    tokenizers.register()
    made = Tokenizer(models.WordLevel(WORDS, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<s>", "</s>", "<tool>"])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")

    def read(**config):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(
            {"bos_token": "<s>", "eos_token": "</s>", "model_max_length": 64, **config}))
        return get_tokenizer(str(tmp_path))

    return read


@pytest.mark.parametrize("name", ["TokenizersBackend", "PreTrainedTokenizerFast", "Qwen2Tokenizer"])
def test_tokenizer_of_transformers_5_is_read(saved, name):
    """Special tokens are a list without names there, and the class has another name; both have no files but JSON."""
    if name == "Qwen2Tokenizer":
        pytest.importorskip("transformers.models.qwen2")
    found = saved(tokenizer_class=name, extra_special_tokens=["<tool>"], backend="tokenizers", is_local=True)
    assert found.is_fast and found("a <tool> b").input_ids[-3:] == [WORDS["a"], WORDS["<tool>"], WORDS["b"]]
    assert found.additional_special_tokens == ["<tool>"] and found.eos_token_id == 1
    assert found.decode([3, 2, 4], skip_special_tokens=True).split() == ["a", "b"]
    assert found.apply_chat_template([{"role": "user", "content": "a b"}], tokenize=False) == "a b"


def test_special_tokens_with_names_are_read_as_before(saved):
    found = saved(tokenizer_class="PreTrainedTokenizerFast", extra_special_tokens={"tool_token": "<tool>"})
    assert found.tool_token == "<tool>" and found.additional_special_tokens == []
