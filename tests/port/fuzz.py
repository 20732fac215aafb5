"""Requests that no client means, made from what a server says of its API, and from its model.

usage: tests/fuzz.sh REQUESTS [--ranks N] [--seed N]

Starts a server and sends it the corpus and REQUESTS more, eight at a time; some clients leave before they are answered.
Prints what was answered. Ends with 1 if an answer is the server's fault, if /health takes longer than two seconds, if a
process of the server is another one afterwards, or if its memory has grown.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import random
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import corpus
import hypothesis
from corpus import CHAT, COMPLETIONS, DETOKENIZE, INVOCATIONS, SECRET, TOKENIZE
from hypothesis import strategies as st

# What a client may be told: an answer, or that its request is wrong, names another model, or is too large or late.
STATUSES = {200, 400, 404, 408, 413, 415}
# Seconds for /health, and bytes by which a server may grow: allocators keep what busy threads needed.
HEALTHY, GROWTH = 2.0, 256 << 20
CLIENTS = 8
# Most requests whose answers say something of a guide are short.
TOKENS = 8
# An event of a stream that says what the status should have said.
FAILED_STREAM = re.compile(rb'^data: \{"(?:error"|object": ?"error")', re.MULTILINE)

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
    """One request, and when its client leaves: after that many seconds, or never."""

    path: str
    content: bytes
    leaves: float | None = None

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
    """What became of many requests."""

    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0
    grown: int = 0


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
            "object": st.dictionaries(st.text(max_size=8), JUNK, max_size=3)}.get(kind, JUNK)


def of_model(vocabulary: int) -> dict[str, st.SearchStrategy[Any]]:
    """Values of fields that reach the engine, around the limits of the model and of the server."""
    near = [0, 1, vocabulary - 1, vocabulary, vocabulary + 1, -1, 1 << 31, (1 << 63) - 1, -(1 << 63)]
    ids = st.sampled_from(near) | st.integers(0, vocabulary + 3)
    lists = st.lists(ids, max_size=4)
    messages = st.lists(st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool", "x"]), "content": st.text(max_size=12) | JUNK}
    ), max_size=3)  # fmt: skip
    function = st.fixed_dictionaries({"name": st.sampled_from(["f", "g"]), "parameters": SCHEMAS | st.none()})
    tools = st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": function}), max_size=2)
    named = st.just({"type": "json_schema"}) | st.fixed_dictionaries({
        "type": st.just("json_schema"),
        "json_schema": st.fixed_dictionaries({"name": st.just("x"), "schema": SCHEMAS, "strict": st.booleans()}),
    })  # fmt: skip
    known: dict[str, st.SearchStrategy[Any]] = {
        "prompt": st.text(max_size=9) | lists | st.lists(lists, max_size=3) | st.lists(st.text(max_size=9), max_size=3),
        "messages": messages, "tools": tools, "response_format": named | st.just({"type": "json_object"}),
        "tool_choice": st.sampled_from(["auto", "none", "required", {"type": "function", "function": {"name": "f"}}]),
        "guided_json": SCHEMAS | SCHEMAS.map(json.dumps), "guided_regex": REGEXES, "guided_grammar": GRAMMARS,
        "guided_choice": st.lists(st.text(max_size=5), max_size=3), "guided_whitespace_pattern": REGEXES,
        "logit_bias": st.dictionaries(ids.map(str), NUMBERS, max_size=3), "bad_words": st.lists(st.text(max_size=5)),
        "stop": st.lists(st.text(max_size=3), max_size=3), "chat_template": st.text(max_size=9),
        "chat_template_kwargs": st.dictionaries(st.sampled_from(["chat_template", "tokenize", "x"]), JUNK, max_size=2),
    }  # fmt: skip
    known |= dict.fromkeys(("tokens", "stop_token_ids", "allowed_token_ids"), lists)
    for name in ("n", "best_of", "logprobs", "top_logprobs", "prompt_logprobs", "min_tokens", "top_k"):
        known[name] = COUNTS
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "length_penalty", "presence_penalty"):
        known[name] = NUMBERS
    return known


def strategy(api: dict[str, Any], vocabulary: int) -> st.SearchStrategy[Request]:
    """Requests of an API, as its openapi.json describes it."""
    parts, known = api["components"]["schemas"], of_model(vocabulary)

    def fields(path: str) -> dict[str, st.SearchStrategy[Any]]:
        said = api["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        names = [one["$ref"].rpartition("/")[2] for one in said.get("anyOf", [said])]
        properties = {name: schema for part in names for name, schema in parts[part]["properties"].items()}
        return {name: st.one_of(*[known[name]] * 8 if name in known else [], *[of_schema(schema, parts)] * 3, JUNK)
                for name, schema in properties.items()}

    message = [{"role": "user", "content": SECRET}]
    bases = {COMPLETIONS: {"prompt": SECRET}, CHAT: {"messages": message}, TOKENIZE: {"prompt": SECRET},
             DETOKENIZE: {"tokens": [1, 2]}}  # fmt: skip
    of_path = {path: fields(path) for path in bases}

    @st.composite
    def request(draw: st.DrawFn) -> Request:
        path = draw(st.sampled_from([COMPLETIONS, COMPLETIONS, CHAT, CHAT, TOKENIZE, DETOKENIZE]))
        values = of_path[path]
        body = dict(bases[path])
        for name in draw(st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=3, unique=True)):
            body[name] = draw(values[name])
        # Answers stay short, whatever else is asked for; another model's name would hide the rest.
        for name in ("max_tokens", "max_completion_tokens"):
            if path in (COMPLETIONS, CHAT) and (name in body or name == "max_tokens"):
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
        return Request(INVOCATIONS if path in (COMPLETIONS, CHAT) and shape == 2 else path, content, leaves)

    return request()


def requests(api: dict[str, Any], vocabulary: int, count: int, seed: int) -> list[Request]:
    """The corpus, and `count` different requests that a seed makes of an API."""
    known = [Request(path, json.dumps(body).encode())
             for path, body, _ in (*corpus.guides(), *corpus.hurting(vocabulary))]
    made: dict[Request, None] = {}
    dice, strange = random.Random(seed), strategy(api, vocabulary)
    while len(made) < count:

        # Few at a time: hypothesis repeats, with changes, what it made before.
        @hypothesis.seed(dice.random())
        @hypothesis.settings(max_examples=100, deadline=None, database=None, phases=[hypothesis.Phase.generate],
                             suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(strange)
        def collect(request: Request) -> None:
            made[request] = None

        collect()
    several = [*known, *list(made)[:count]]
    dice.shuffle(several)
    return several


def ids_of(body: dict[str, Any]) -> Iterator[int]:
    """Yield the token ids that a body names."""
    for name in ("prompt", "tokens", "stop_token_ids", "allowed_token_ids"):
        found = body.get(name)
        for one in found if isinstance(found, list) else []:
            yield from (token for token in (one if isinstance(one, list) else [one]) if type(token) is int)


def fault_of(request: Request, status: int, answer: bytes, vocabulary: int) -> str | None:
    """Return what is wrong with an answer, or None."""
    if status not in STATUSES:
        return f"status {status}"
    if status != 200:
        return None
    body = request.body
    if FAILED_STREAM.search(answer):
        return "an error in a stream of status 200"
    fields = ("tokens",) if request.path in (TOKENIZE, DETOKENIZE) else tuple(set(body) - {"tokens"})
    if any(not 0 <= token < vocabulary for token in ids_of({name: body.get(name) for name in fields})):
        return "an answer for a token id that the model lacks"
    if isinstance(body.get("guided_json"), (dict, str)) and answer.startswith(b"{") and "/tok" not in request.path:
        for choice in json.loads(answer).get("choices", []):
            text = choice.get("text") or (choice.get("message") or {}).get("content") or ""
            if choice.get("finish_reason") == "stop" and not body.get("stop") and not text.strip():
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
    return sum(int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{one}/status").read_text())[1]) << 10 for one in processes)


def descendants(process: int) -> list[int]:
    """Return the ids of all processes below one."""
    found = []
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [child, *descendants(child)]
    return sorted(found)


def watch(port: int, report: Report, stop: threading.Event) -> None:
    """Ask for health all the time."""
    while not stop.wait(0.1):
        began = time.monotonic()
        try:
            with socket.create_connection(("127.0.0.1", port), 60) as connection:
                connection.sendall(b"GET /health HTTP/1.0\r\nHost: x\r\n\r\n")
                if b" 200 " not in connection.recv(64):
                    report.faults.append("/health: not 200")
        except OSError as error:
            report.faults.append(f"/health: {error!r}")
        report.slowest = max(report.slowest, time.monotonic() - began)


def run(port: int, key: str, supervisor: int, vocabulary: int, made: list[Request]) -> Report:
    """Send requests to a server, and report what became of them and of it."""
    report, stop = Report(), threading.Event()

    def send(request: Request) -> None:
        answered = ask(port, key, request)
        if answered is None:
            report.statuses[-1] += 1
            return
        report.statuses[answered[0]] += 1
        if fault := fault_of(request, *answered, vocabulary):
            report.faults.append(f"{fault}: {request.path} {request.content[:2000]!r}: {answered[1][:500]!r}")

    with ThreadPoolExecutor(CLIENTS) as pool:
        watching = threading.Thread(target=watch, args=(port, report, stop))
        watching.start()
        # The first ones start the guides' compiler, and fill caches.
        first = len(made) // 5
        list(pool.map(send, made[:first]))
        processes = descendants(supervisor)
        before = memory_of(processes)
        list(pool.map(send, made[first:]))
        stop.set()
        watching.join()
    if descendants(supervisor) != processes:
        report.faults.append("the server's processes are others than before")
    else:
        report.grown = memory_of(processes) - before
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=int)
    parser.add_argument("--ranks", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    from test_serving import KEY, START, VOCABULARY, Server

    with tempfile.TemporaryDirectory() as directory:
        server = Server(Path(directory), arguments.ranks)
        try:
            server.start()
            server.ready(START)
            began = time.monotonic()
            api = json.loads(server.ask("/openapi.json")[1])
            made = requests(api, VOCABULARY, arguments.requests, arguments.seed)
            print(f"{len(made)} requests made in {time.monotonic() - began:.0f} s", flush=True)
            report = run(server.port, KEY, server.process.pid, VOCABULARY, made)
            leaked = SECRET in server.output()
        finally:
            server.close()
    counts = [f"{'left' if status < 0 else status}: {count}" for status, count in sorted(report.statuses.items())]
    print(f"{', '.join(counts)}; {time.monotonic() - began:.0f} s; slowest /health {report.slowest:.2f} s; "
          f"memory {report.grown / 2**20:+.0f} MiB; words of bodies in the log: {'yes' if leaked else 'none'}")
    print(*report.faults[:20], sep="\n")
    return int(bool(report.faults) or leaked or report.slowest > HEALTHY or report.grown > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
