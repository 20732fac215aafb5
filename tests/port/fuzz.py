"""Requests that no client means, made from what a server says of its API, and from its model.

usage: tests/fuzz.sh REQUESTS [--ranks N] [--seed N] [--task generate|embed]

Starts a server and sends it the corpus and REQUESTS more, eight at a time. Some clients leave before they are answered,
and one request in four is what every client may ask. Prints after each round what was answered, the slowest /health,
and the memory. Ends with 1 if a status is not the right one, if /health takes longer than two seconds, if a process of
the server is another one, if its memory has grown, or if a word of a body is in its log.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import itertools
import json
import os
import random
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import corpus
import hypothesis
from corpus import CHAT, COMPLETIONS, DETOKENIZE, EMBEDDINGS, INVOCATIONS, POOLING, RERANK, SCORE, SECRET, TOKENIZE
from hypothesis import strategies as st

# Seconds for /health, and bytes by which a server may grow: allocators keep what busy threads needed.
HEALTHY, GROWTH = 2.0, 256 << 20
CLIENTS = 8
# Requests after which the server is looked at; a short run has five such rounds.
ROUND = 500
# Most requests whose answers say something of a guide are short.
TOKENS = 8
# An answer, or an event of a stream, that says what the status should have said.
FAILED = re.compile(rb'^(?:data: )?\{"(?:error"|object": ?"error")', re.MULTILINE)

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8) | st.just(SECRET),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6,
)
# Half of them usual, so that not all requests are refused.
NUMBERS = st.floats(0.05, 1) | st.sampled_from([0, 1, -1, 2, 0.01, 100, 1e-45, 1e-320, 1e30, 1e308, -1e308, 10, -10])
COUNTS = st.integers(1, 8) | st.sampled_from([0, -1, 20, 21, 128, 129, 10**6, (1 << 63) - 1])
REGEXES = st.lists(st.sampled_from([
    "a", "[a-z]", "(?!a)", "\\1", "(", ")", "{3}", "{2000000000}", "*", "|", ".", "\\d+", "é", "[^\\s\\S]",
    "(a{1,99}){1,99}",
]), max_size=6).map("".join)  # fmt: skip
GRAMMARS = st.lists(st.sampled_from([
    "root ::= a", "start: a", 'a ::= "x" a | "y"', 'a: "x"', 'a ::= [0-9]+ ("b" | root)?', "B: /[a-z]+/", "???", '"',
    "start: B", "start: a~3", 'a ::= "' + "z" * 999 + '"', "%ignore /x/", "%json {}", "start: <|end|>",
]), max_size=5).map("\n".join)  # fmt: skip
SCHEMAS = st.recursive(
    st.sampled_from([schema for schema, _ in corpus.SCHEMAS])
    | st.fixed_dictionaries({"type": st.sampled_from(["string", "integer", "number", "boolean", "null", "array", "x"])},
                            optional={"minimum": NUMBERS, "maxLength": COUNTS, "minLength": COUNTS, "pattern": REGEXES,
                                      "format": st.sampled_from(["date", "uri", "email", "x"]), "multipleOf": NUMBERS,
                                      "enum": st.lists(JUNK, max_size=3)}),
    lambda inner: st.fixed_dictionaries({"type": st.just("object")}, optional={
        "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=3), "additionalProperties": inner,
        "required": st.lists(st.sampled_from("abc"), max_size=2), "oneOf": st.lists(inner, max_size=2), "not": inner})
    | st.fixed_dictionaries({"type": st.just("array"), "items": inner},
                            optional={"minItems": COUNTS, "maxItems": COUNTS}),
    max_leaves=4,
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        leaves: seconds after which its client leaves, or None.
        status: of the right answer; None if only the server knows whether it can be answered.
    """

    path: str
    content: bytes
    leaves: float | None = None
    status: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        """What the content says, if it is an object."""
        try:
            said = json.loads(self.content)
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}


@dataclass
class Report:
    """What became of many requests.

    Attributes:
        statuses: how often each came; 0 for none within the time, -1 for clients that left.
        faults: what was wrong.
        slowest: seconds of the slowest /health.
        starved: how many of these seconds client and server waited for a processor that others had.
        memory: bytes of the server's processes after each round.
        seconds: that all took.
    """

    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0
    starved: float = 0.0
    memory: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def grown(self) -> int:
        """Bytes by which the server has grown. In the first fifth it fills caches, and starts the guides' compiler."""
        return self.memory[-1] - self.memory[len(self.memory) // 5 - 1]

    def __str__(self) -> str:
        counts = [f"{'left' if status < 0 else status}: {count}" for status, count in sorted(self.statuses.items())]
        sent = self.statuses.total()
        return (f"{sent} requests, {sent / self.seconds:.0f} a second; {', '.join(counts)}; slowest /health "
                f"{self.slowest:.2f} s, {self.starved:.2f} s of it without a processor; memory "
                f"{self.memory[-1] >> 20} MiB; {len(self.faults)} faults")


def of_schema(schema: dict[str, Any], parts: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a part of the API's own schema describes."""
    if "$ref" in schema:
        return st.deferred(lambda: of_schema(parts[schema["$ref"].rpartition("/")[2]], parts))
    if several := schema.get("anyOf") or schema.get("oneOf"):
        return st.one_of([of_schema(one, parts) for one in several])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    kind = schema.get("type")
    if kind == "array":
        return st.lists(of_schema(schema.get("items", {}), parts), max_size=3)
    if kind == "object" and "properties" in schema:
        known, needed = schema["properties"], schema.get("required", [])
        made = {name: of_schema(known[name], parts) for name in known}
        return st.fixed_dictionaries({name: made[name] for name in needed},
                                     optional={name: made[name] for name in known if name not in needed})
    return {"string": st.text(max_size=12), "integer": st.integers(-3, 600), "number": NUMBERS,
            "boolean": st.booleans(), "null": st.none(),
            "object": st.dictionaries(st.text(max_size=8), JUNK, max_size=3)}.get(str(kind), JUNK)


def of_model(vocabulary: int) -> dict[str, st.SearchStrategy[Any]]:
    """Values of fields that reach the engine, around the limits of the model and of the server."""
    near = [0, 1, vocabulary - 1, vocabulary, vocabulary + 1, -1, 1 << 31, (1 << 63) - 1, -(1 << 63)]
    ids = st.sampled_from(near) | st.integers(0, vocabulary + 3)
    lists = st.lists(ids, max_size=4)
    prompts = st.text(max_size=9) | lists | st.lists(lists, max_size=3) | st.lists(st.text(max_size=9), max_size=3)
    addresses = st.sampled_from(["http://127.0.0.1:9/x", "file:///etc/hosts", "data:,x", ""])
    address = st.fixed_dictionaries({"url": addresses})
    kinds = ["text", "image_url", "audio_url", "video_url", "input_audio", "refusal", "file", "x"]
    part = st.fixed_dictionaries(
        {"type": st.sampled_from(kinds)},
        optional={"text": st.text(max_size=9), "refusal": st.text(max_size=9), "file": JUNK,
                  "input_audio": st.just({"data": "AA==", "format": "wav"}) | JUNK,
                  **dict.fromkeys(("image_url", "audio_url", "video_url"), address | JUNK)})
    messages = st.lists(st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool", "x"]),
         "content": st.text(max_size=12) | st.lists(part, max_size=3) | JUNK},
        optional={"name": JUNK, "tool_call_id": JUNK, "tool_calls": st.lists(JUNK, max_size=2)},
    ), max_size=3)  # fmt: skip
    function = st.fixed_dictionaries({"name": st.sampled_from(["f", "g"]), "parameters": SCHEMAS | st.none()})
    tools = st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": function}), max_size=2)
    named = st.just({"type": "json_schema"}) | st.fixed_dictionaries({
        "type": st.just("json_schema"),
        "json_schema": st.fixed_dictionaries({"name": st.just("x"), "schema": SCHEMAS, "strict": st.booleans()}),
    })  # fmt: skip
    known: dict[str, st.SearchStrategy[Any]] = {
        "prompt": prompts, "input": prompts, "encoding_format": st.sampled_from(["float", "base64", "x"]),
        "documents": st.lists(st.text(max_size=9), max_size=3) | JUNK, "top_n": COUNTS, "dimensions": COUNTS,
        **dict.fromkeys(("text_1", "text_2"), st.text(max_size=9) | st.lists(st.text(max_size=9), max_size=3)),
        "messages": messages, "tools": tools, "response_format": named | st.just({"type": "json_object"}),
        "tool_choice": st.sampled_from(["auto", "none", "required", {"type": "function", "function": {"name": "f"}}]),
        "guided_json": SCHEMAS | SCHEMAS.map(json.dumps), "guided_regex": REGEXES, "guided_grammar": GRAMMARS,
        "guided_choice": st.lists(st.text(max_size=5), max_size=3), "guided_whitespace_pattern": REGEXES,
        "logit_bias": st.dictionaries(ids.map(str), NUMBERS, max_size=3), "bad_words": st.lists(st.text(max_size=5)),
        "stop": st.lists(st.text(max_size=3), max_size=3), "chat_template": st.text(max_size=9),
        "chat_template_kwargs": st.dictionaries(st.sampled_from(["chat_template", "tokenize", "x"]), JUNK, max_size=2),
    }  # fmt: skip
    known |= dict.fromkeys(("tokens", "stop_token_ids", "allowed_token_ids"), lists)
    for name in ("n", "best_of", "logprobs", "top_logprobs", "prompt_logprobs", "min_tokens", "top_k",
                 "truncate_prompt_tokens", "seed"):
        known[name] = COUNTS
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "length_penalty", "presence_penalty"):
        known[name] = NUMBERS
    return known


def answerable(task: str, vocabulary: int) -> st.SearchStrategy[Request]:
    """Requests that every client may send, and that must be answered."""
    # A text of spaces alone becomes an empty prompt in the model's template.
    text = st.text(min_size=1, max_size=40).filter(str.strip)
    ids = st.lists(st.integers(0, vocabulary - 1), min_size=1, max_size=12)
    prompt = text | ids | st.lists(text, min_size=1, max_size=3) | st.lists(ids, min_size=1, max_size=3)
    if task == "embed":
        more = {"encoding_format": st.sampled_from(["float", "base64"]), "truncate_prompt_tokens": st.integers(1, 9),
                "add_special_tokens": st.booleans(), "user": text}
        bodies = [(EMBEDDINGS, {"input": prompt}), (INVOCATIONS, {"input": prompt}), (POOLING, {"input": prompt})]
        texts = st.lists(text, min_size=1, max_size=5)
        made = [st.tuples(st.just(path), st.fixed_dictionaries(body, optional=more)) for path, body in bodies]
        made += [st.tuples(st.just(SCORE), st.fixed_dictionaries({"text_1": text, "text_2": texts})),
                 st.tuples(st.just(RERANK), st.fixed_dictionaries({"query": text, "documents": texts}))]
    else:
        more = {
            "n": st.integers(1, 4), "seed": st.integers(0, 1 << 31), "temperature": st.floats(0.05, 2),
            "top_p": st.floats(0.1, 1), "top_k": st.integers(1, 50), "min_p": st.floats(0, 1),
            "presence_penalty": st.floats(-2, 2), "frequency_penalty": st.floats(-2, 2),
            "repetition_penalty": st.floats(0.5, 2), "stop": st.lists(text, max_size=4), "stream": st.booleans(),
            "ignore_eos": st.booleans(), "skip_special_tokens": st.booleans(),
            "truncate_prompt_tokens": st.integers(1, 9),
            "logit_bias": st.dictionaries(st.integers(0, vocabulary - 1).map(str), st.floats(-100, 100), max_size=3),
        }  # fmt: skip
        messages = st.lists(st.fixed_dictionaries({
            "role": st.sampled_from(["user", "system", "assistant"]), "content": text
        }), min_size=1, max_size=3)  # fmt: skip
        base = {"max_tokens": st.integers(1, TOKENS)}
        guide = st.sampled_from([
            {"guided_json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
            {"guided_regex": "[a-z]{3,9}"}, {"guided_choice": ["x.", "yes"]}, {},
            {"guided_grammar": 'start: "a" | "b" /[0-9]/'}, {"response_format": {"type": "json_object"}},
        ])  # fmt: skip
        plain = st.fixed_dictionaries({"prompt": prompt, **base}, optional={**more, "logprobs": st.integers(0, 5)})
        chat = st.fixed_dictionaries({"messages": messages, **base}, optional={**more, "logprobs": st.booleans()})
        merged = [st.builds(lambda body, more: {**body, **more}, body, guide) for body in (plain, chat)]
        made = [st.tuples(st.sampled_from(paths), body)
                for paths, body in zip(((COMPLETIONS, INVOCATIONS), (CHAT, INVOCATIONS)), merged, strict=True)]
    return st.one_of(made).map(lambda one: Request(one[0], json.dumps(one[1]).encode(), status=200))


def strategy(api: dict[str, Any], task: str, vocabulary: int) -> st.SearchStrategy[Request]:
    """Requests of an API, as its openapi.json describes it."""
    parts, known = api["components"]["schemas"], of_model(vocabulary)

    def fields(path: str) -> dict[str, st.SearchStrategy[Any]]:
        said = api["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        names = [one["$ref"].rpartition("/")[2] for one in said.get("anyOf", [said])]
        properties = {name: schema for part in names for name, schema in parts[part]["properties"].items()}
        return {name: st.one_of(*[known[name]] * 8 if name in known else [], *[of_schema(schema, parts)] * 3, JUNK)
                for name, schema in properties.items()}

    message = [{"role": "user", "content": SECRET}]
    generating = {COMPLETIONS: {"prompt": SECRET}, CHAT: {"messages": message}}
    pooling = {EMBEDDINGS: {"input": SECRET}, POOLING: {"input": SECRET}, SCORE: {"text_1": SECRET, "text_2": SECRET},
               RERANK: {"query": SECRET, "documents": [SECRET]}}  # fmt: skip
    bases: dict[str, dict[str, Any]] = {
        **generating, **pooling, TOKENIZE: {"prompt": SECRET}, DETOKENIZE: {"tokens": [1, 2]}}
    own, others = (pooling, generating) if task == "embed" else (generating, pooling)
    paths = [*list(own) * (12 // len(own)), *[TOKENIZE, DETOKENIZE] * 3, *others]
    of_path = {path: fields(path) for path in bases}

    @st.composite
    def strange(draw: st.DrawFn) -> Request:
        path = draw(st.sampled_from(paths))
        values = of_path[path]
        body = dict(bases[path])
        for name in draw(st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=3, unique=True)):
            body[name] = draw(values[name])
        # Answers stay short, whatever else is asked for; another model's name would hide the rest.
        for name in ("max_tokens", "max_completion_tokens"):
            if path in generating and (name in body or name == "max_tokens"):
                body[name] = draw(st.sampled_from([1, TOKENS, TOKENS, TOKENS, TOKENS, 0, -1]))
        if "model" in body:
            body["model"] = draw(st.sampled_from([None, "another"]))
        content = json.dumps(body).encode()
        shape = draw(st.integers(0, 19))
        if shape == 0:
            content = content[:draw(st.integers(0, len(content)))]
        elif shape == 1:
            content = draw(st.binary(max_size=200) | JUNK.map(lambda value: json.dumps(value).encode()))
        leaves = draw(st.none() | st.none() | st.sampled_from([0.0, 0.02, 0.2])) if shape > 1 else None
        return Request(INVOCATIONS if path in own and shape == 2 else path, content, leaves)

    return st.one_of(answerable(task, vocabulary), strange(), strange(), strange())


def rounds(api: dict[str, Any], task: str, vocabulary: int, count: int, seed: int) -> Iterator[list[Request]]:
    """Yield the corpus and `count` different requests that a seed makes of an API, some at a time."""
    cases = corpus.pooling(vocabulary) if task == "embed" else (*corpus.guides(), *corpus.hurting(vocabulary))
    several = [Request(path, json.dumps(body).encode(), status=400) for path, body, _ in cases]
    made: dict[Request, None] = {}
    dice, all_kinds = random.Random(seed), strategy(api, task, vocabulary)
    size = min(ROUND, -(-count // 5))
    for first in range(0, count, size):
        last = min(first + size, count)
        while len(made) < last:

            # Few at a time: hypothesis repeats, with changes, what it made before.
            @hypothesis.seed(dice.random())
            @hypothesis.settings(max_examples=100, deadline=None, database=None, phases=[hypothesis.Phase.generate],
                                 suppress_health_check=list(hypothesis.HealthCheck))
            @hypothesis.given(all_kinds)
            def collect(request: Request) -> None:
                made[request] = None

            collect()
        several += itertools.islice(made, first, last)
        dice.shuffle(several)
        yield several
        several = []


def ids_of(body: dict[str, Any]) -> Iterator[int]:
    """Yield the token ids that a body names."""
    for name in ("prompt", "input", "tokens", "stop_token_ids", "allowed_token_ids"):
        found = body.get(name)
        for one in found if isinstance(found, list) else []:
            yield from (token for token in (one if isinstance(one, list) else [one]) if type(token) is int)


def fault_of(request: Request, status: int, answer: bytes, vocabulary: int) -> str | None:
    """Return what is wrong with an answer, or None."""
    body = request.body
    right = {request.status} if request.status else {200, 400}
    if status not in right | ({404} if body.get("model") else set()):
        return f"status {status}"
    if status != 200:
        return None
    if FAILED.search(answer):
        return "an error with the status 200"
    fields = ("tokens",) if request.path in (TOKENIZE, DETOKENIZE) else tuple(set(body) - {"tokens"})
    if any(not 0 <= token < vocabulary for token in ids_of({name: body.get(name) for name in fields})):
        return "an answer for a token id that the model lacks"
    if isinstance(body.get("guided_json"), (dict, str)) and answer.startswith(b"{") and "/tok" not in request.path:
        for choice in json.loads(answer).get("choices", []):
            text = choice.get("text") or (choice.get("message") or {}).get("content") or ""
            stopped = choice.get("finish_reason") == "stop" and not {"stop", "stop_token_ids"} & body.keys()
            if stopped and not text.strip():
                return "an empty text for a guide"
    return None


def ask(port: int, key: str, request: Request) -> tuple[int, bytes] | None:
    """Return status and content of an answer, or None if the client left before."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=request.leaves or 120)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        connection.request("POST", request.path, request.content, headers)
        if request.leaves == 0:
            return None
        answer = connection.getresponse()
        return answer.status, answer.read()
    except TimeoutError:
        if request.leaves is None:
            return 0, b"no answer within 120 s"
        return None
    except (OSError, http.client.HTTPException) as error:
        return 0, repr(error).encode()
    finally:
        connection.close()


def memory_of(processes: list[int]) -> int:
    """Return the bytes that processes have in memory, what they share counted once for each."""
    found = [re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{one}/status").read_text()) for one in processes]
    return sum(int(size) << 10 for (size,) in found)


def children_of(process: int) -> list[int]:
    """Return the ids of a process's children."""
    children = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for found in children for child in found.read_text().split()]


def descendants(process: int) -> list[int]:
    """Return the ids of all processes below one, but for those that compile a guide and end."""
    found = []
    for child in children_of(process):
        compiles = b"guide_compiler" in Path(f"/proc/{child}/cmdline").read_bytes()
        found += [child, *([] if compiles else descendants(child))]
    return sorted(found)


def waited(*threads: str) -> float:
    """Return the seconds for which threads have waited for a processor so far."""
    return sum(int(Path(f"/proc/{one}/schedstat").read_text().split()[1]) for one in threads) / 1e9


def healthy(port: int) -> bool:
    """Return whether a server says that it is well."""
    try:
        with socket.create_connection(("127.0.0.1", port), 60) as connection:
            connection.sendall(b"GET /health HTTP/1.0\r\nHost: x\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


def watch(port: int, server: int, report: Report, stop: threading.Event) -> None:
    """Ask for health all the time. server: the process of the API, whose first thread has the event loop."""
    threads = ("thread-self", str(server))
    while not stop.wait(0.1):
        began, before = time.monotonic(), waited(*threads)
        if not healthy(port):
            report.faults.append("/health: not 200")
        if (seconds := time.monotonic() - began) > report.slowest:
            report.slowest, report.starved = seconds, waited(*threads) - before


def run(port: int, key: str, supervisor: int, vocabulary: int, made: Iterator[list[Request]],
        tell: Callable[[Any], None] = lambda _: None) -> Report:
    """Send requests to a server, round by round, and report what became of them and of it.

    supervisor: the process whose child is the API. tell: gets the report after each round, and each fault when found.
    """
    report, stop, began = Report(), threading.Event(), time.monotonic()
    processes: list[int] = []

    def fault(found: str) -> None:
        report.faults.append(found)
        tell(found)

    def send(request: Request) -> int:
        answered = ask(port, key, request)
        if answered and (found := fault_of(request, *answered, vocabulary)):
            fault(f"{found}: {request.path} {request.content[:2000]!r}: {answered[1][-500:]!r}")
        return answered[0] if answered else -1

    watching = threading.Thread(target=watch, args=(port, children_of(supervisor)[0], report, stop))
    watching.start()
    with ThreadPoolExecutor(CLIENTS) as pool, ThreadPoolExecutor(1) as maker:
        coming = maker.submit(next, made, None)
        while several := coming.result():
            coming = maker.submit(next, made, None)
            report.statuses.update(pool.map(send, several))
            found = descendants(supervisor)
            if processes and found != processes:
                fault(f"the server's processes are {found}, and were {processes}")
            processes = found
            report.memory.append(memory_of(processes))
            report.seconds = time.monotonic() - began
            tell(report)
        stop.set()
    watching.join()
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=int)
    parser.add_argument("--ranks", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--task", choices=("generate", "embed"), default="generate")
    arguments = parser.parse_args()
    # It puts the others on the path.
    from test_serving import KEY, START, VOCABULARY, Server, wait_for
    from vllm_serving.supervisor import command_of

    with tempfile.TemporaryDirectory() as directory:
        server = Server(Path(directory), arguments.ranks, task=arguments.task)
        try:
            if arguments.task == "embed":
                # A supervisor would wait for a token.
                server.run(*command_of(server.directory / "main.yaml")[1:], VLLM_USE_V1=0)
                wait_for(lambda: healthy(server.port), START)
            else:
                server.start()
                server.ready(START)
            api = json.loads(server.ask("/openapi.json")[1])
            made = rounds(api, arguments.task, VOCABULARY, arguments.requests, arguments.seed)
            parent = os.getpid() if arguments.task == "embed" else server.process.pid
            report = run(server.port, KEY, parent, VOCABULARY, made, lambda said: print(said, flush=True))
            leaked = SECRET in server.output()
        finally:
            server.close()
    print(f"memory {report.grown / 2**20:+.0f} MiB after the first fifth; words of bodies in the log: "
          f"{'yes' if leaked else 'none'}")
    return int(bool(report.faults) or leaked or report.slowest > HEALTHY or report.grown > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
