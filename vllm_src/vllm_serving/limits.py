"""Limits of what one request may ask, by the JSON of its body: checked before vLLM reads any of it.

Upstream takes "1", 1.0 and true for integers and reports each wrong item of a list by itself. Here a field that names
token ids or counts work holds plain integers, and the first wrong one ends the request.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import envs
from .errors import Rejected

# Values in a body, token ids not counted, and how deep they may nest. vLLM reads them on the API's event loop: an item
# of the wrong kind costs it up to 0.3 ms.
MOST_VALUES, DEEPEST = 32_768, 64
# Items of a list or object that holds no token ids: messages, tools, biases and the rest.
MOST_ITEMS = 4096
# Characters of a text for each token that the model takes, four times what English has, and characters of all prompts
# together. One thread makes tokens of them, 200,000 a second, and the supervisor's probe waits with the others.
CHARACTERS, MOST_CHARACTERS = 16, 1 << 20
# Fields of a chat that become one text, and those that hold texts to compare.
SPOKEN = ("messages", "tools", "documents", "chat_template_kwargs")
COMPARED = ("text_1", "text_2", "query", "documents")
# Fields with a limit of their own, since each item costs something for every token.
MOST_OF = {
    "messages": 1024, "stop": 64, "stop_token_ids": 256, "bad_words": 256, "logit_bias": 1024, "tools": 128
}  # fmt: skip
LONGEST_WORD = 1024
# Items for all sequences of a request: the engine goes through them at every step, which takes these 60 ms.
MOST_FOR_ALL = {"bad_words": 2048, "logit_bias": 8192}
# Characters of bad words for all: it makes tokens of them anew for each, which takes these 0.5 s.
MOST_BAD_CHARACTERS = 1 << 18
# Lists of token ids at the top of a body.
TOKEN_LISTS = ("tokens", "stop_token_ids", "allowed_token_ids")
# Beyond these, float32 makes NaN or infinity of a result.
RANGES = {"temperature": (0, 100), "repetition_penalty": (0.01, 100), "length_penalty": (-10, 10)}
# Half of a pair of UTF-16, as an escape.
HALF = re.compile(r"\\u[dD][89a-fA-F]")
LOGPROBS = ("logprobs", "top_logprobs", "prompt_logprobs")
# Fields that only the operator decides, and the reason that the message gives.
OPERATORS = {
    # A pattern that another backend cannot read ends the engine.
    "guided_decoding_backend": "the server chooses it",
    # Upstream decodes it before it refuses it.
    "prompt_embeds": "the server takes text and tokens",
    # A template is a program, and the API's event loop runs it.
    "chat_template": "the server's operator chooses it",
    "logits_processors": "the server has none",
    # They name the cache of another server.
    "kv_transfer_params": "the server has none",
}
# Normalizers of the tokenizers library that change a text. The compiler of guides makes tokens of what a guide leaves
# no choice in: if they are of another text, the answer ends there, as if it were whole.
CHANGING = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase")
# Fields that shape an answer.
GUIDED = ("structured_outputs", "response_format", "tools")
# Keys of structured_outputs that vLLM's own code alone may set, or that it answers with 500.
UNGUIDED = ("_backend", "_backend_was_auto", "structural_tag")


@dataclass(frozen=True)
class Limits:
    """Limits of the served model and its operator.

    Attributes:
        sequences: most sequences of one request: its prompts times n, or times best_of.
        vocabulary: number of token ids that both the embedding and the tokenizer have; 0 if unknown.
        length: most tokens of a sequence; 0 if unknown.
        logprobs: most log-probabilities for each token.
        renderer: names of what chat_template_kwargs may not replace.
        ignored: fields that this version of vLLM would ignore: a value that means nothing, and what to send.
        normalize: what the tokenizer of guides makes of a text; None if it leaves texts alone.
    """

    sequences: int = int(envs.NUMBERS["VLLM_SERVING_SEQUENCES"])
    vocabulary: int = 0
    length: int = 0
    logprobs: int = 20
    renderer: frozenset[str] = frozenset({"chat_template"})
    ignored: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    normalize: Callable[[str], str] | None = None

    def of_model(self, model: Any, tokenizer: Any) -> Limits:
        """Return the operator's limits with those of the model. model: vLLM's configuration of it."""
        # The embedding may have rows without a token, and the tokenizer tokens without a row.
        vocabulary = min(model.get_vocab_size(), max(tokenizer.get_vocab().values()) + 1)
        return replace(self, vocabulary=vocabulary, length=model.max_model_len, logprobs=model.max_logprobs)

    def check(self, body: dict[str, Any]) -> None:
        """Raise Rejected for a body that would hurt the server or be answered with 500."""
        for name, reason in OPERATORS.items():
            if body.get(name) is not None:
                raise Rejected(400, f"{name}: {reason}. Leave it out.")
        for name, (neutral, instead) in self.ignored.items():
            if body.get(name) not in (None, neutral):
                raise Rejected(400, f"{name}: the server's vLLM would ignore it. Send {instead}.")
        self.check_guide(body)
        # Lists of token ids may be long; their items are checked below.
        tokens = {name for name in TOKEN_LISTS if isinstance(body.get(name), list)}
        prompts, inputs = self.prompts("prompt", body.get("prompt")), self.prompts("input", body.get("input"))
        check_size({name: value for name, value in body.items() if name not in tokens | {"prompt", "input"}})
        if len(inputs) > MOST_ITEMS:
            raise Rejected(400, f"input: found {len(inputs)} items; the server takes {MOST_ITEMS}.")
        for name in tokens:
            self.check_tokens(name, body[name])
        for name, several in (("prompt", prompts), ("input", inputs)):
            for ids in several:
                if isinstance(ids, list):
                    self.check_tokens(name, ids)
        self.check_text({"prompt": prompts, "input": inputs}, body)
        self.check_lists(body)
        self.check_numbers(body, max(len(prompts), 1))
        given = body.get("chat_template_kwargs")
        if isinstance(given, dict) and (taken := sorted(self.renderer & given.keys())):
            raise Rejected(400, f"chat_template_kwargs: {taken[0]} is not the template's to receive. Leave it out.")

    def check_guide(self, body: dict[str, Any]) -> None:
        """Raise Rejected for a guide that is not the client's to choose, or that vLLM answers with 500."""
        guide, wanted = body.get("structured_outputs"), body.get("response_format")
        if isinstance(guide, dict) and (found := [key for key in UNGUIDED if guide.get(key) is not None]):
            raise Rejected(400, f"structured_outputs: the server takes no {found[0]}. Leave it out.")
        if isinstance(wanted, dict) and wanted.get("type") == "structural_tag":
            raise Rejected(400, "response_format: the server has no structural tags; use json_schema.")
        if self.normalize:
            for name in GUIDED:
                if any(self.normalize(text) != text for text in texts(body.get(name))):
                    raise Rejected(400, f"{name}: a text in it is not in the form in which the model's tokenizer reads "
                                        "texts, so the answer would end there. Send it in Unicode's form NFC.")

    def prompts(self, name: str, prompt: Any) -> list[str | list[int]]:
        """Return the prompts of a field that may hold a text, token ids, or a list of either. Raise Rejected."""
        if prompt is None:
            return []
        if isinstance(prompt, str):
            return [prompt]
        if isinstance(prompt, list):
            kinds = set(map(type, prompt))
            if kinds <= {int}:
                return [prompt]
            if kinds in ({str}, {list}):
                return prompt
        raise Rejected(400, f"{name}: expected a text, token ids, or a list of texts or of lists of token ids.")

    def check_tokens(self, name: str, ids: list[Any]) -> None:
        """Raise Rejected for a list with anything but token ids of this model."""
        if self.length and len(ids) > max(self.length, self.vocabulary if name not in ("prompt", "input") else 0):
            raise Rejected(400, f"{name}: found {len(ids)} token ids; the model takes {self.length}.")
        if set(map(type, ids)) - {int}:
            raise Rejected(400, f"{name}: expected integers of 0 to {self.vocabulary - 1}, the model's token ids.")
        if self.vocabulary and ids and not (min(ids) >= 0 and max(ids) < self.vocabulary):
            raise self.unknown_token(name, next(one for one in ids if not 0 <= one < self.vocabulary))

    def check_text(self, prompts: dict[str, list[str | list[int]]], body: dict[str, Any]) -> None:
        """Raise Rejected for a text that is too long for the model whatever its tokens are."""
        if not self.length:
            return
        one = CHARACTERS * self.length
        spoken = [body.get(name) for name in SPOKEN if name != "documents" or "messages" in body]
        found = [("messages", characters(spoken), one)]
        for name, value in {**prompts, **{name: body.get(name) for name in COMPARED}}.items():
            several = value if isinstance(value, list) else [value]
            texts = [len(text) for text in several if isinstance(text, str)]
            found += [(name, max(texts, default=0), one), (name, sum(texts), max(one, MOST_CHARACTERS))]
        for name, number, most in found:
            if number > most:
                raise Rejected(400, f"{name}: found {number} characters; a model of {self.length} tokens takes {most}.")

    def unknown_token(self, name: str, token: int) -> Rejected:
        """Return the answer to a token id that the model lacks."""
        return Rejected(400, f"{name}: found the token id {token}; the model's vocabulary has 0 to "
                             f"{self.vocabulary - 1}.")

    def check_lists(self, body: dict[str, Any]) -> None:
        """Raise Rejected for lists whose items cost too much, or are of a kind that upstream answers with 500."""
        tools = body.get("tools")
        if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
            raise Rejected(400, "tools: expected a list of objects.")
        choice = body.get("tool_choice", "auto")
        if not isinstance(choice, dict) and choice not in ("none", "auto", "required"):
            raise Rejected(400, "tool_choice: expected none, auto, required, or an object that names a function.")
        for name, most in MOST_OF.items():
            if isinstance(found := body.get(name), list) and len(found) > most:
                raise Rejected(400, f"{name}: found {len(found)} items; the server takes {most}.")
        for name in ("stop", "bad_words"):
            words = [body[name]] if isinstance(body.get(name), str) else body.get(name) or []
            if isinstance(words, list) and any(isinstance(word, str) and len(word) > LONGEST_WORD for word in words):
                raise Rejected(400, f"{name}: expected at most {LONGEST_WORD} characters each.")
        words = body.get("bad_words")
        if isinstance(words, list) and any(isinstance(word, str) and not word.strip() for word in words):
            raise Rejected(400, "bad_words: expected words that are not blank.")
        biases = body.get("logit_bias")
        if isinstance(biases, dict):
            for key in biases:
                if not (key.isascii() and key.removeprefix("-").isdigit() and len(key) <= 20):
                    raise Rejected(400, "logit_bias: expected token ids, which are integers, as names.")
                if self.vocabulary and not 0 <= int(key) < self.vocabulary:
                    raise self.unknown_token("logit_bias", int(key))

    def check_numbers(self, body: dict[str, Any], prompts: int) -> None:
        """Raise Rejected for counts that multiply work, and for numbers that float32 does not hold."""
        for name, (least, most) in RANGES.items():
            if (found := body.get(name)) is not None and not (type(found) in (int, float) and least <= found <= most):
                raise Rejected(400, f"{name}: expected a number of {least} to {most}.")
        for name in LOGPROBS:
            # In a chat `logprobs` is true or false.
            if type(found := body.get(name)) is int and found > self.logprobs:
                raise Rejected(400, f"{name}: found {found}; the server gives {self.logprobs}.")
        counts = {name: body[name] for name in ("n", "best_of") if body.get(name) is not None}
        for name, count in counts.items():
            if type(count) is not int or count < 1:
                raise Rejected(400, f"{name}: expected an integer of at least 1.")
        found = prompts * max(counts.values(), default=1)
        if found > self.sequences:
            raise Rejected(400, f"The request asks for {found} sequences, which are its prompts times n or best_of; "
                                f"the server takes {self.sequences} at once.")
        for name, most in MOST_FOR_ALL.items():
            items = body.get(name)
            if isinstance(items, (list, dict)) and found * len(items) > most:
                raise Rejected(400, f"{name}: found {len(items)} for each of {found} sequences; the server takes "
                                    f"{most} for all.")
        if found * (size := characters(body.get("bad_words"))) > MOST_BAD_CHARACTERS:
            raise Rejected(400, f"bad_words: found {size} characters for each of {found} sequences; the server takes "
                                f"{MOST_BAD_CHARACTERS} for all.")
        # For each beam upstream asks for twice as many log-probabilities as there are beams.
        if body.get("use_beam_search") and 2 * counts.get("n", 1) > self.logprobs:
            raise Rejected(400, f"n: found {counts['n']}; a beam search takes {self.logprobs // 2}.")


def parse(content: bytes) -> dict[str, Any]:
    """Return the object that a body holds. Raise Rejected for JSON that vLLM answers with 500."""
    try:
        # By itself Python takes UTF-16 as well, and half of a pair.
        text = content.decode("utf-8-sig")
        body = json.loads(text, parse_constant=constant, parse_int=integer, parse_float=real)
        if HALF.search(text):
            # Raises ValueError for a half without the other one, which no answer can repeat.
            json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        # Never repeat the body: it may be confidential.
        where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise Rejected(400, f"The body is no JSON, or holds a number of more than 64 bits or half a "
                            f"character{where}.") from None
    if not isinstance(body, dict):
        raise Rejected(400, "The body must be a JSON object.")
    return body


def constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python reads and JSON does not know."""
    raise ValueError(f"{name} is no JSON")


def integer(text: str) -> int:
    """Return a number that the engine can hold."""
    # Python itself takes no more than 4,300 digits, slowly.
    number = int(text) if len(text) <= 20 else 1 << 64
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError("an integer needs more than 64 bits")
    return number


def real(text: str) -> float:
    """Return a number that an answer can repeat. Raises ValueError for one that is infinite to Python."""
    if math.isinf(number := float(text)):
        raise ValueError("a number needs more than 64 bits")
    return number


def characters(found: Any) -> int:
    """Return the characters of all texts in a value."""
    return sum(map(len, texts(found)))


def texts(found: Any) -> Iterator[str]:
    """Yield all texts in a value, but for the names of its fields."""
    level = [found]
    while level:
        yield from (value for value in level if isinstance(value, str))
        level = [value for one in level if isinstance(one, (dict, list))
                 for value in (one.values() if isinstance(one, dict) else one)]


def normalizer_of(tokenizer: Any) -> Callable[[str], str] | None:
    """Return what a tokenizer makes of a text before it cuts it; None if it leaves texts alone, as far as is known."""
    found: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return found.normalize_str if type(found).__name__ in CHANGING else None


def check_size(body: dict[str, Any]) -> None:
    """Raise Rejected for more values, longer lists or deeper nesting than the API's event loop can stand."""
    level: list[Any] = [body]
    seen = 0
    for _ in range(DEEPEST):
        level = [value for found in level for value in children(found)]
        seen += len(level)
        if seen > MOST_VALUES:
            raise Rejected(400, f"The body holds more than {MOST_VALUES} values.")
        if not level:
            return
    raise Rejected(400, f"The body nests deeper than {DEEPEST} levels.")


def children(found: Any) -> Iterator[Any]:
    """Yield the items of a list or object. Raise Rejected if there are too many."""
    if isinstance(found, (dict, list)):
        if len(found) > MOST_ITEMS:
            raise Rejected(400, f"A list or object in the body has {len(found)} items; the server takes {MOST_ITEMS}.")
        yield from found.values() if isinstance(found, dict) else found
