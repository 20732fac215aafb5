"""A process that compiles guides for the API: `python -m vllm_kepler.api.guide_compiler`.

The compiler does not bound the memory, time and stack that it takes for a guide of 100 bytes, and a guide can end its
process. So each guide is compiled in a fork with limits.

One JSON object a line. The first is the tokenizer, each later one a guide; each guide gets one line back.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

# Seconds of processor time, and bytes of memory and stack, for one guide. The engine compiles it again, in a process
# with twice this stack, while everybody waits.
SECONDS, MEMORY, STACK = 0.5, 128 << 20, 4 << 20
# Seconds for a fork that waits for something.
PATIENCE = 20
# Tokens that a guide leaves no choice in which are tried.
FORCED = 64
# Characters of the compiler's message that are passed on.
LONGEST = 400
BOUNDS = f"it takes more than {SECONDS} s or {MEMORY >> 20} MiB to compile, or nests too deep. Ask for less of it"


def compile_guide(tokenizer: LLTokenizer, guide: dict[str, str]) -> dict[str, Any]:
    """Compile a guide, and find its first tokens, as the engine will.

    guide: `grammar`, as upstream hands it to the compiler, or `text` of a grammar in Lark's or GBNF's form.

    Returns `error`, empty if there is none; `text` in Lark's form; `seconds` and `bytes` that compiling took.
    """
    began, (_, before), text = time.process_time(), memory(), guide.get("text")
    try:
        if text is not None:
            text = any_to_lark(text)
        grammar = guide["grammar"] if text is None else LLMatcher.grammar_from_lark(text)
        matcher = LLMatcher(tokenizer, grammar, log_level=0)
        error = matcher.get_error() or error_of_first_tokens(matcher, tokenizer.eos_token)
        # The compiler warns of parts of a guide that it ignores.
        error = error or "; ".join(matcher.get_grammar_warnings())
    except Exception as raised:
        error = str(raised) or type(raised).__name__
    # After the message comes the state of its parser.
    return {"error": error.partition("\n<state>")[0][:LONGEST], "text": None if error else text,
            "seconds": time.process_time() - began, "bytes": max(memory()[1] - before, 0)}


def error_of_first_tokens(matcher: LLMatcher, end: int) -> str:
    """Return why a matcher, which has no error, does not get past its first token and those that follow from it alone.

    vLLM takes a matcher with an error, whose mask has the end alone, for the end of the answer. end: id of that token.
    """
    for _ in range(FORCED):
        # Bits, one a token.
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        others = mask & ~(1 << end)
        if matcher.get_error() or not others:
            return matcher.get_error()
        first = others & -others
        if not matcher.consume_token(first.bit_length() - 1):
            return matcher.get_error() or "The compiler refuses its own token"
        if mask != first:
            break
    return ""


def memory() -> tuple[int, int]:
    """Return the bytes that this process has mapped, and those of them that are in memory."""
    mapped, resident, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return mapped * resource.getpagesize(), resident * resource.getpagesize()


def limit() -> None:
    """Limit this process. The signals of its timers, and of an allocation that fails, end it."""
    mapped, _ = memory()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    resource.setrlimit(resource.RLIMIT_STACK, (STACK, STACK))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    # Rust's message of a failed allocation belongs into no log.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def in_a_fork(tokenizer: LLTokenizer, guide: dict[str, str]) -> dict[str, Any]:
    """Compile a guide in a limited process of its own."""
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(readable)
            limit()
            answer = json.dumps(compile_guide(tokenizer, guide)).encode()
            with os.fdopen(writable, "wb") as pipe:
                pipe.write(answer)
            status = 0
        finally:
            os._exit(status)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(answer) if status == 0 else {"error": BOUNDS}


def main() -> None:
    first = json.loads(sys.stdin.readline())
    tokenizer = LLTokenizer(first["tokenizer"], eos_token=first["eos"])
    for line in sys.stdin:
        sys.stdout.write(json.dumps(in_a_fork(tokenizer, json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
