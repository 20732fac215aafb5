"""licence-llama as `transformers` sees it: the reference for what a server has to answer with it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = Path(__file__).parent / "licence-llama"
LICENSE = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
WORDS = LICENSE.split()
PROMPT_WORDS = 8
TOKENS = 40
# The text has these words twice, with different words after them.
TWICE = "Subject to the terms and conditions of this"


def sentence_starts():
    """Indices of words that follow a full stop and have a prompt and its completion after them."""
    last = len(WORDS) - PROMPT_WORDS - TOKENS
    starts = [i for i in range(1, last) if WORDS[i - 1].endswith(".") and WORDS[i][0].isupper()]
    return [i for i in starts if " ".join(WORDS[i : i + PROMPT_WORDS]) != TWICE]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The sums are so small that more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL).eval()


def complete(model, tokenizer, prompt):
    """The greedy completion of `prompt`, as text."""
    encoded = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**encoded, max_new_tokens=TOKENS, do_sample=False)[0]
    return tokenizer.decode(ids[encoded["input_ids"].shape[1] :])


def what_follows(tokenizer, first_word):
    """40 tokens of the text from the word `first_word` on, as text."""
    following = tokenizer(" ".join(WORDS[first_word:]), verbose=False)["input_ids"][:TOKENS]
    text = tokenizer.decode(following)
    assert (" " + " ".join(WORDS[first_word:])).startswith(text)
    return text


def test_the_files_are_small():
    sizes = {path.name: path.stat().st_size for path in MODEL.iterdir()}
    assert sizes["model.safetensors"] <= 2_000_000
    assert sum(sizes.values()) <= 2_000_000


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_it_divides_among_ranks(ranks):
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    for size in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
        assert config[size] % ranks == 0, size
    assert config["vocab_size"] % 64 == 0
    assert config["head_dim"] == 32
    assert config["torch_dtype"] == "float32"


def test_sentences_go_on_word_for_word(model, tokenizer):
    starts = sentence_starts()
    assert len(starts) == 30
    wrong = {}
    for start in starts:
        prompt = " ".join(WORDS[start : start + PROMPT_WORDS])
        completion = complete(model, tokenizer, prompt)
        if completion != what_follows(tokenizer, start + PROMPT_WORDS):
            wrong[prompt] = completion
    assert wrong == {}


def test_lines_and_indentation_of_a_prompt_do_not_matter(model, tokenizer):
    begin = LICENSE.index("      Notwithstanding the above")
    wrapped = LICENSE[begin : begin + 300].rsplit(maxsplit=1)[0] + "\n"
    assert wrapped.count("\n") > 2
    flowing = " ".join(wrapped.split())
    assert tokenizer(wrapped)["input_ids"] == tokenizer(flowing)["input_ids"]
    first_word = len(LICENSE[:begin].split()) + len(wrapped.split())
    assert complete(model, tokenizer, wrapped) == what_follows(tokenizer, first_word)


def test_a_chat_message_is_text_to_go_on_from(tokenizer):
    prompt = "You may reproduce and distribute copies of the"
    chat = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    assert ids == tokenizer(prompt)["input_ids"] == tokenizer(prompt, add_special_tokens=False)["input_ids"]


def test_the_text_ends_where_it_ends(model, tokenizer):
    prompt = " ".join(WORDS[-12:-4])
    assert complete(model, tokenizer, prompt) == " " + " ".join(WORDS[-4:]) + tokenizer.eos_token


@pytest.mark.parametrize("rank", range(4))
@pytest.mark.parametrize("layer", range(2))
@pytest.mark.parametrize("part", ["self_attn.o_proj", "mlp.down_proj"])
def test_a_missing_rank_shows(model, tokenizer, layer, part, rank):
    """Without what one of four ranks adds to one sum, some sentences go wrong.  One alone may not."""
    with torch.no_grad():
        weight = model.get_submodule(f"model.layers.{layer}.{part}").weight
        weight.chunk(4, dim=1)[rank].zero_()
    assert any(
        complete(model, tokenizer, " ".join(WORDS[start : start + PROMPT_WORDS]))
        != what_follows(tokenizer, start + PROMPT_WORDS)
        for start in sentence_starts()
    )
