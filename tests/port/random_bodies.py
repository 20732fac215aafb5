"""Bodies that no client means: random bytes, broken JSON, and requests whose fields hold anything."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

# Fields that reach the sampler, the engine or the tokenizer. Not n, best_of and use_beam_search: large ones cost hours.
FIELDS = (
    "prompt", "messages", "model", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens",
    "presence_penalty", "seed", "stop", "stream", "stream_options", "suffix", "temperature", "top_p", "top_k", "min_p",
    "repetition_penalty", "length_penalty", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "min_tokens",
    "skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens", "allowed_token_ids",
    "prompt_logprobs", "add_special_tokens", "response_format", "guided_json", "guided_regex", "guided_choice",
    "guided_grammar", "guided_decoding_backend", "guided_whitespace_pattern", "priority", "logits_processors",
    "return_tokens_as_token_ids", "kv_transfer_params", "bad_words", "prompt_embeds", "top_logprobs", "tools",
    "tool_choice", "chat_template", "chat_template_kwargs", "documents", "mm_processor_kwargs", "user",
)  # fmt: skip
# In every body that is one: what must be in no log.
SECRET = "nobody-else-may-read-this"


def value(dice: random.Random, depth: int = 0) -> Any:
    """A value of JSON, and NaN and Infinity, which Python writes too."""
    kind = dice.randrange(13 if depth < 3 else 9)
    if kind >= 11:
        return {text(dice): value(dice, depth + 1) for _ in range(dice.randrange(4))}
    if kind >= 9:
        return [value(dice, depth + 1) for _ in range(dice.randrange(5))]
    return (
        None, True, False, dice.randrange(-3, 600), dice.choice([-1, 2**31, 2**63, -(2**63), 10**30]),
        dice.uniform(-3, 3), dice.choice([1e308, -1e308, 1e-320, float("inf"), float("nan")]), text(dice), SECRET,
    )[kind]  # fmt: skip


def text(dice: random.Random) -> str:
    length = dice.randrange(9)
    return "".join(chr(dice.choice([dice.randrange(32, 127), dice.randrange(0xFFFF)])) for _ in range(length))


def body(dice: random.Random) -> bytes:
    """One body."""
    kind = dice.randrange(8)
    if kind == 0:
        return dice.randbytes(dice.randrange(400))
    if kind == 1:
        return json.dumps(value(dice)).encode()
    asked: dict[str, Any] = {"prompt": SECRET, "messages": [{"role": "user", "content": SECRET}], "max_tokens": 3}
    for name in dice.sample(FIELDS, dice.randrange(1, 4)):
        asked[name] = value(dice)
    # The log names a model that there is not; that is no secret.
    asked["model"] = asked.get("model") and "another"
    # Answers stay short whatever else is asked for.
    if not isinstance(asked["max_tokens"], int) or asked["max_tokens"] > 8:
        asked["max_tokens"] = dice.choice([-5, 0, 3])
    written = json.dumps(asked).encode()
    return written[: dice.randrange(len(written))] if kind == 2 else written


def bodies(count: int, seed: int) -> Iterator[bytes]:
    dice = random.Random(seed)
    return (body(dice) for _ in range(count))
