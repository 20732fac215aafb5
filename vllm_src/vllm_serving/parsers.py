"""Which of vLLM's parsers reads the tool calls and the reasoning of a model, by its chat template."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .checkpoint.files import try_json


class Format(NamedTuple):
    """A way to write tool calls or reasoning.

    Attributes:
        parser: vLLM's name of its parser.
        has: what chat templates of it contain.
        lacks: what those of others contain as well.
        tokens: what must be one token of the tokenizer each, or the parser fails.
        types: types of the model; any if there are none.
    """

    parser: str
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    types: tuple[str, ...] = ()


# The first that fits counts.
TOOLS = (
    Format("mistral", ("[TOOL_CALLS]",), tokens=("[TOOL_CALLS]",)),
    Format("granite", ("<|tool_call|>",), types=("granite", "granitemoe", "granitemoeshared")),
    Format("llama3_json", ("<|python_tag|>", '"parameters": '), tokens=("<|python_tag|>",), types=("llama",)),
    Format("deepseek_v3", ("<\uff5ctool\u2581calls\u2581begin\uff5c>",), types=("deepseek_v2", "deepseek_v3"),
           tokens=("<\uff5ctool\u2581calls\u2581begin\uff5c>", "<\uff5ctool\u2581calls\u2581end\uff5c>")),
    # Not those that write XML or pairs of keys and values in place of JSON.
    Format("hermes", ("<tool_call>",), lacks=("<function=", "<arg_key>"), tokens=("<tool_call>", "</tool_call>")),
)
# Both leave an answer without reasoning as it is. deepseek_r1 takes it, and every answer that a guide shapes, for
# reasoning: no template makes it the default.
REASONING = (
    Format("qwen3", ("<think>", "enable_thinking"), tokens=("<think>", "</think>")),
    Format("granite", ("Here is my thought process:",), types=("granite", "granitemoe")),
)


def templates(directory: Path, options: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> str:
    """Return the text of the chat templates that a model answers by; empty if there are none, or none that is a text.

    vLLM reports what is wrong with a file that cannot be read.
    """
    named = options.get("chat-template")
    # The option may hold the template itself, which the system refuses as a path.
    with contextlib.suppress(OSError, ValueError):
        return (directory / "chat_template.jinja" if named is None else Path(str(named))).read_text()
    if named is not None:
        return str(named)
    found = tokenizer.get("chat_template")
    if isinstance(found, list):
        return "\n".join(str(one.get("template", "")) for one in found if isinstance(one, dict))
    return found if isinstance(found, str) else ""


def tokens_of(directory: Path, tokenizer: Mapping[str, Any]) -> set[str]:
    """Return the tokens that were added to the tokenizer's vocabulary: those with a meaning."""
    added = tokenizer.get("added_tokens_decoder")
    found = list(added.values()) if isinstance(added, dict) else []
    if not found:
        own = (try_json(str(directory / "tokenizer.json")) or {}).get("added_tokens")
        found = own if isinstance(own, list) else []
    return {one["content"] for one in found if isinstance(one, dict) and isinstance(one.get("content"), str)}


def first(formats: tuple[Format, ...], template: str, tokens: set[str], model_type: str) -> str | None:
    """Return the parser of the first of `formats` that a template, its tokens and its model's type have; else None."""
    for form in formats:
        if (all(mark in template for mark in form.has) and not any(mark in template for mark in form.lacks)
                and tokens.issuperset(form.tokens) and model_type in (form.types or (model_type,))):
            return form.parser
    return None


def arguments(
    directory: Path, options: Mapping[str, Any], config: Mapping[str, Any], tokenizer: Mapping[str, Any]
) -> list[str]:
    """Return the arguments of `vllm serve` for a model's parsers, as far as its options do not name any.

    config, tokenizer: what config.json and tokenizer_config.json hold.
    """
    template, found = templates(directory, options, tokenizer), []
    tokens, model_type = tokens_of(directory, tokenizer), str(config.get("model_type", ""))
    if not {"tool-call-parser", "enable-auto-tool-choice"} & set(options):
        parser = first(TOOLS, template, tokens, model_type)
        found += ["--enable-auto-tool-choice", "--tool-call-parser", parser] if parser else []
    if not {"reasoning-parser", "enable-reasoning"} & set(options):
        parser = first(REASONING, template, tokens, model_type)
        found += ["--reasoning-parser", parser] if parser else []
    return found
