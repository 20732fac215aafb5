"""Requests that once ended, blocked or misled a server, and what must be said of each.

For a model of `vocabulary` token ids; the tokenizer may have one more, `extra`, that the embedding lacks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

COMPLETIONS, CHAT, INVOCATIONS, TOKENIZE, DETOKENIZE = (
    "/v1/completions", "/v1/chat/completions", "/invocations", "/tokenize", "/detokenize"
)
EMBEDDINGS, POOLING, SCORE, RERANK = "/v1/embeddings", "/pooling", "/v1/score", "/v1/rerank"
# In bodies: what must be in no log.
SECRET = "nobody-else-may-read-this"
# Path, body, and words of the refusal.
Case = tuple[str, dict[str, Any], str]

# What a model that generates does not have; the status of upstream's own refusal is 200.
WITHOUT_ANSWERS: list[tuple[str, dict[str, Any]]] = [
    (EMBEDDINGS, {"input": "a"}), (POOLING, {"input": "a"}), ("/classify", {"input": "a"}),
    (SCORE, {"text_1": "a", "text_2": "b"}), (RERANK, {"query": "a", "documents": ["b"]}),
]  # fmt: skip

# JSON schemas that llguidance does not compile, or not within bounds.
SCHEMAS: list[tuple[dict[str, Any], str]] = [
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "uniqueItems"),
    ({"type": "string", "format": "uri"}, "format: uri"),
    ({"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}}, '"if", "then"'),
    ({"not": {"type": "string"}}, "not"),
    ({"type": "string", "format": "iban"}, "format: iban"),
    ({"type": "array", "contains": {"type": "integer"}}, "contains"),
    ({"type": "string", "format": "password"}, "format: password"),
    ({"type": "string", "format": "binary"}, "format: binary"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "Unsatisfiable"),
    ({"type": "object", "properties": {"a": {"$ref": "#/$defs/missing"}}}, "missing"),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames"),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 10**9, "maxItems": 2 * 10**9}, "to compile"),
    ({"type": "array", "minItems": 500, "items": {"type": "array", "minItems": 500, "maxItems": 10**6,
                                                  "items": {"enum": ["a", "b"]}}}, "to compile"),
]  # fmt: skip
# Guides of other kinds.
LONG_CHAIN = "\n".join(["root ::= r0", *(f'r{one} ::= "a" r{one + 1} | "b"' for one in range(5000)), 'r5000 ::= "z"'])
GUIDES: list[tuple[dict[str, Any], str]] = [
    ({"guided_regex": "(?!a)b"}, "look-around"), ({"guided_regex": "(a)\\1"}, "backreferences"),
    ({"guided_regex": "[^\\s\\S]"}, "NoExtension"), ({"guided_regex": "(?<=a)b"}, "look-around"),
    ({"guided_regex": "a{2000000000}"}, "compile"), ({"guided_regex": "("}, "unclosed group"),
    ({"guided_regex": "(" * 3000 + ")" * 3000}, "cannot be compiled"), ({"guided_regex": ""}, "guided decoding mode"),
    ({"guided_grammar": "start: foo bar ???"}, "cannot be compiled"),
    ({"guided_grammar": "start: missing_rule"}, "missing_rule"), ({"guided_grammar": "root ::= nowhere"}, "nowhere"),
    ({"guided_grammar": LONG_CHAIN}, "to compile"),
    ({"guided_grammar": "root ::= " + "(" * 20000 + "'a'" + ")" * 20000}, "cannot be compiled"),
    ({"guided_choice": []}, "guided decoding mode"), ({"guided_json": "no schema"}, ""), ({"guided_json": "[]"}, ""),
    ({"guided_json": {"type": "string"}, "guided_whitespace_pattern": "(?=a)"}, "look-around"),
    ({"guided_json": {"type": "string"}, "response_format": {"type": "json_object"}}, "one kind"),
    ({"guided_regex": "a", "use_beam_search": True}, "beam search"),
    ({"response_format": {"type": "structural_tag", "structures": [], "triggers": []}}, "structural tags"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True}}}, "with a schema"),
    ({"response_format": {"type": "json_schema"}}, "with a schema"),
]  # fmt: skip


def tool(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a tool with these parameters."""
    return {"type": "function", "function": {"name": "f", "parameters": schema}}


def in_every_way(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return requests that ask for a schema, each in another way."""
    said = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    messages = [{"role": "user", "content": "hi"}]
    return [
        (COMPLETIONS, {"prompt": "The", "guided_json": schema}),
        (COMPLETIONS, {"prompt": ["The", "A"], "guided_json": json.dumps(schema), "stream": True}),
        (INVOCATIONS, {"prompt": "The", "response_format": said}),
        (CHAT, {"messages": messages, "guided_json": schema}),
        (CHAT, {"messages": messages, "response_format": said, "stream": True}),
        (INVOCATIONS, {"messages": messages, "response_format": said}),
        (CHAT, {"messages": messages, "tools": [tool(schema)],
                "tool_choice": {"type": "function", "function": {"name": "f"}}}),
        (CHAT, {"messages": messages, "tools": [tool(schema)], "tool_choice": "required", "stream": True}),
    ]  # fmt: skip


def guides() -> Iterator[Case]:
    """Yield requests whose guide cannot be compiled."""
    for schema, message in SCHEMAS:
        for path, body in in_every_way(schema):
            yield path, {**body, "max_tokens": 8}, message
    for guide, message in GUIDES:
        yield COMPLETIONS, {"prompt": "The", "stream": True, "max_tokens": 8, **guide}, message
        yield CHAT, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, **guide}, message


def hurting(vocabulary: int, extra: str | None = None) -> Iterator[Case]:
    """Yield requests that name what the model lacks, ask for too much work, or bring programs of their own."""
    strange = f"the model's vocabulary has 0 to {vocabulary - 1}"
    prompts: list[Any] = [[vocabulary], [vocabulary, 1], [[1], [1, vocabulary]], [-1], [1 << 40]]
    prompts += [extra, ["a", extra]] if extra else []
    message = {"role": "user", "content": "x"}
    body: dict[str, Any]
    choice: Any
    for stream in (False, True):
        for prompt in prompts:
            yield COMPLETIONS, {"prompt": prompt, "stream": stream, "max_tokens": 4}, strange
    if extra:
        yield CHAT, {"messages": [{**message, "content": f"x {extra}"}], "max_tokens": 4}, strange
    yield INVOCATIONS, {"prompt": [vocabulary]}, strange
    # Upstream reads these outside of FastAPI.
    yield INVOCATIONS, {"prompt": "a", "guided_regex": []}, "not of the kind"
    yield INVOCATIONS, {"messages": [message], "ignore_eos": {"a": 0}}, "not of the kind"
    for choice in (None, "x", []):
        yield CHAT, {"messages": [message], "tools": [], "tool_choice": choice}, "tool_choice"
    # What the engine itself says comes late, and in a stream.
    for stream in (False, True):
        for body in ({"priority": 5}, {"prompt": ""}, {"prompt": []}):
            yield COMPLETIONS, {"prompt": "a", "max_tokens": 4, "stream": stream, **body}, ""
    yield CHAT, {"messages": [message], "allowed_token_ids": [-5]}, strange
    for tokens in ([vocabulary], [-1]):
        yield DETOKENIZE, {"tokens": tokens}, strange
    for body, said in (
        ({"stop_token_ids": [vocabulary], "min_tokens": 1}, strange), ({"allowed_token_ids": [vocabulary]}, strange),
        ({"logit_bias": {str(vocabulary): 5}}, strange), ({"n": 10**6, "temperature": 1}, "1000000 sequences"),
        ({"best_of": 10**6, "temperature": 1}, "1000000 sequences"), ({"prompt": ["a"] * 10**5}, "100000 sequences"),
        ({"logprobs": 10**9, "stream": True}, "logprobs: found"),
        ({"repetition_penalty": 1e-45, "temperature": 0, "logprobs": 1}, "repetition_penalty"),
        ({"temperature": 1e308, "min_tokens": 2}, "temperature"),
        ({"use_beam_search": True, "length_penalty": -1e308}, "length_penalty"), ({"prompt": [None] * 10**5}, "prompt"),
        ({"prompt": "ab c " * 10**5}, "characters"),
        ({"allowed_token_ids": [77], "guided_json": {}}, "no token"),
        ({"guided_regex": "a", "min_tokens": 3}, "no token"),
        ({"allowed_token_ids": [0], "min_tokens": 2, "logprobs": 1}, "no token"),
        ({"allowed_token_ids": [0, 65], "min_tokens": 2, "stop_token_ids": [65]}, "no token"),
        ({"bad_words": [f"{one} {'x' * 1000}" for one in range(200)], "n": 128, "temperature": 1}, "128 sequences"),
        ({"use_beam_search": True, "n": 2, "echo": True, "logprobs": 1}, "beam search"),
        ({"bad_words": [""]}, "bad_words"), ({"bad_words": ["a", " "], "stream": True}, "bad_words"),
    ):  # fmt: skip
        yield COMPLETIONS, {"prompt": "a", "max_tokens": 4, **body}, said
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}x"
    for template in ({"chat_template": loops},
                     {"chat_template_kwargs": {"chat_template": "{{ ('x' * 300000000) | length }}"}}):
        for path in (CHAT, TOKENIZE, INVOCATIONS):
            yield path, {"messages": [message], **template}, "chat_template"
    yield CHAT, {"messages": [{}] * 50_000}, "items"
    # "a" becomes 259, and "Mb" ends with 66.
    for body in ({"guided_choice": ["a"], "stream": True}, {"allowed_token_ids": [259], "logprobs": True},
                 {"allowed_token_ids": [259, 66], "bad_words": ["a", "Mb"]}):
        yield CHAT, {"messages": [message], "max_tokens": 4, "bad_words": ["a"], **body}, "no token"
    # Upstream's own answer is 501.
    yield TOKENIZE, {"messages": [{**message, "content": [{"type": "file", "file": {}}]}]}, "file"
    for path in (CHAT, TOKENIZE):
        yield path, {"messages": [{**message, "content": "ab c " * 10**5}]}, "characters"
    yield from ((path, body, "does not have") for path, body in WITHOUT_ANSWERS)


def pooling(vocabulary: int) -> Iterator[Case]:
    """Yield requests to an embedding model that name what it lacks, or ask for too much work."""
    strange = f"the model's vocabulary has 0 to {vocabulary - 1}"
    message = {"role": "user", "content": "x"}
    body: dict[str, Any]
    for path in (EMBEDDINGS, POOLING, INVOCATIONS):
        for tokens in ([vocabulary], [vocabulary, 1], [[1], [1, vocabulary]], [-1], [1 << 40]):
            yield path, {"input": tokens}, strange
        for body, said in (
            ({"input": ["a"] * 10**5}, "100000 items"), ({"input": "ab c " * 10**5}, "characters"),
            ({"input": [None]}, "input"), ({"input": {}}, "input"), ({"input": "a", "encoding_format": "x"}, ""),
            ({"input": "a", "dimensions": 4}, "dimensions"), ({"input": "a", "priority": 5}, ""), ({"input": ""}, ""),
            ({"input": "a", "truncate_prompt_tokens": 10**9}, "truncat"), ({"input": []}, ""), ({"input": [[]]}, ""),
            ({"messages": [message], "chat_template": "x"}, "chat_template"),
            ({"messages": [{**message, "role": 5}]}, ""),
            ({"messages": [{**message, "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]}, ""),
        ):  # fmt: skip
            yield path, body, said
    for body in ({"text_1": "ab c " * 10**5, "text_2": "a"}, {"text_1": "a", "text_2": ["ab c " * 10**5]}):
        yield SCORE, body, "characters"
    for body in ({"query": "ab c " * 10**5, "documents": ["a"]}, {"query": "a", "documents": ["a", "ab c " * 10**5]}):
        yield RERANK, body, "characters"
    yield SCORE, {"text_1": ["a"] * 3, "text_2": ["b"] * 2}, ""
    yield SCORE, {"text_1": "a", "text_2": ["b"] * 10**5}, "items"
    for path, body in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": [message]}), ("/classify", {"input": "a"})):
        yield path, body, "does not have"
