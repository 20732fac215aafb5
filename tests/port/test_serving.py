"""The admission with vLLM itself behind it: one rank, and two over gloo.

The server's life is in tests/unit/serving with a server that does what it is told, and in the scenario `default` with
vLLM under systemd.
"""

import contextlib
import json
import re
import resource
import shutil
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import corpus
import fuzz
import pytest
import transformers
from corpus import COMPLETIONS
from lora_models import write_adapter
from vllm.entrypoints.openai.tool_parsers import ToolParserManager
from vllm.reasoning import ReasoningParserManager

TESTS = Path(__file__).resolve().parents[1]
sys.path.append(str(TESTS / "unit" / "serving"))
from supervised import KEY, Unit, wait_for  # noqa: E402

MODEL = TESTS / "models" / "licence-llama"
VOCABULARY = 512
# Seconds. A start on a machine whose two cores are busy reads the libraries for long.
START = 240
OPTIONS = {
    "served-model-name": "license", "dtype": "float32", "max-num-seqs": 32, "disable-log-requests": True,
}  # fmt: skip
# A token of the tokenizer for which the model's embedding has no row.
EXTRA = "<|extra|>"
# Seconds for an answer that needs no work, on a machine whose two cores are busy.
AT_ONCE = 10


class Server(Unit):
    """One unit whose server is vLLM."""

    def __init__(self, directory, ranks, **options):
        self.ranks = ranks
        model = shutil.copytree(MODEL, directory / "model")
        said = json.loads((model / "tokenizer.json").read_text())
        for number, content in enumerate((EXTRA, "<tool_call>", "</tool_call>")):
            said["added_tokens"].append({**said["added_tokens"][0], "id": VOCABULARY + number, "content": content})
        (model / "tokenizer.json").write_text(json.dumps(said))
        # As a model that writes tool calls in Hermes' format has it, with tokens of its own.
        settings = json.loads((model / "tokenizer_config.json").read_text())
        settings["added_tokens_decoder"] = {str(one["id"]): {**one} for one in said["added_tokens"]}
        (model / "tokenizer_config.json").write_text(json.dumps(settings))
        (model / "chat_template.jinja").write_text(
            "{# <tool_call> #}{% for message in messages %}{{ message['content'] }}{% endfor %}")
        base = transformers.AutoModelForCausalLM.from_pretrained(model)
        write_adapter(base, directory / "adapter", {"r": 4, "lora_alpha": 16, "target_modules": ("q_proj", "o_proj")})
        super().__init__(directory, **OPTIONS, **{"model": model, "tensor-parallel-size": ranks}, **options)

    def start(self):
        self.run("-m", "vllm_serving", "main", self.directory / "main.yaml", 7, VLLM_USE_V1=0, VLLM_SERVING_BODY=1,
                 VLLM_SERVING_ADAPTERS=f"own={self.directory / 'adapter'}")

    def close(self):
        self.kill()
        super().close()

    def children(self):
        """Ids of the supervisor's children: vLLM's API, which dies with its engine."""
        found = re.findall(r"\d+", (Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")).read_text())
        return [int(one) for one in found]

    def running(self):
        """Requests that the engine has."""
        _, text = self.ask("/metrics")
        return sum(map(float, re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", text, re.MULTILINE)))


# What the API alone answers, whose process is the same for any number of ranks.
with_two_ranks = pytest.mark.parametrize("server", [2], indirect=True, ids=["tp2"])


@pytest.fixture(scope="module", params=[1, 2], ids=["tp1", "tp2"])
def server(tmp_path_factory, request):
    server = Server(tmp_path_factory.mktemp("server"), request.param)
    server.start()
    server.ready(START)
    yield server
    server.close()


ADMISSION = [
    (corpus.INVOCATIONS, {"prompt": "1"}, {"Authorization": "Bearer x"}, 401, "The key is missing or wrong."),
    ("/v1/models", None, {"Authorization": "x"}, 401, "The key is missing or wrong."),
    ("/health", None, {"Authorization": "x"}, 200, ""),
    (COMPLETIONS, b" " * ((1 << 20) + 1), {}, 413, "larger than 1048576 bytes"),
    (COMPLETIONS, b"{", {}, 400, "The body is no JSON"),
    (COMPLETIONS, {"prompt": "1", "temperature": float("nan")}, {}, 400, "The body is no JSON"),
    (COMPLETIONS, {"prompt": "1", "max_tokens": -1}, {}, 400, "max_tokens must be at least 1"),
    (COMPLETIONS, {"prompt": "1", "stop_token_ids": [VOCABULARY - 1], "min_tokens": 1}, {}, 200, "choices"),
    (COMPLETIONS, {"prompt": "1", "guided_regex": "(?=a)", "guided_decoding_backend": "outlines"}, {}, 400,
     "guided_decoding_backend: the server chooses it."),
    # Upstream compares this with a number before it knows what it is.
    (COMPLETIONS, {"prompt": "1", "logprobs": "many"}, {}, 400, "not of the kind that it must be"),
]  # fmt: skip


@with_two_ranks
@pytest.mark.parametrize(("path", "body", "headers", "status", "message"), ADMISSION)
def test_admission(server, path, body, headers, status, message):
    answered, text = server.ask(path, body, **headers)
    assert answered == status, text
    assert message in text


@contextlib.contextmanager
def others_are_served(server):
    """Ask all the time, for health too; nobody waits long, and nothing ends."""
    before, slowest, stop = server.children(), [0.0], threading.Event()

    def ask():
        while not stop.is_set():
            for path, body in (("/health", None), (COMPLETIONS, {"prompt": "1", "max_tokens": 1})):
                began = time.monotonic()
                assert server.ask(path, body)[0] == 200
                slowest.append(time.monotonic() - began)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        stop.set()
        asking.join()
    assert len(slowest) > 2
    assert max(slowest) < AT_ONCE
    assert server.children() == before


@with_two_ranks
def test_guides_that_cannot_be_compiled_are_refused(server):
    """In every way in; also those that take memory or time without a bound. Nobody else notices."""
    with others_are_served(server):
        for path, body, message in corpus.guides():
            began = time.monotonic()
            status, text = server.ask(path, body)
            assert status == 400, (path, body, text)
            assert message in json.loads(text)["message"], (path, body, text)
            assert time.monotonic() - began < AT_ONCE


def test_guides_that_can_be_compiled_are_obeyed(server):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    for path, body in corpus.in_every_way(schema):
        if body.get("stream") or body.get("tool_choice") == "required":
            continue
        status, text = server.ask(path, {**body, "max_tokens": 60, "temperature": 0, "seed": 1})
        assert status == 200, text
        choice = json.loads(text)["choices"][0]
        message = choice.get("message") or {}
        calls = message.get("tool_calls")
        said = calls[0]["function"]["arguments"] if calls else message.get("content") or choice.get("text")
        assert re.match(r"\s*\{", said), (path, body, text)
    for guide, pattern in (({"guided_regex": "[ab]{3}"}, "[ab]{3}"), ({"guided_choice": ["x.", "y"]}, r"x\.|y"),
                           ({"guided_grammar": 'root ::= "a" | "b" [0-9]'}, "a|b[0-9]"),
                           ({"guided_grammar": 'start: "a" | "b" /[0-9]/'}, "a|b[0-9]")):
        status, text = server.ask(COMPLETIONS, {"prompt": "The", "max_tokens": 20, "temperature": 1, "n": 4, **guide})
        assert status == 200, text
        for choice in json.loads(text)["choices"]:
            assert re.fullmatch(pattern, choice["text"]), text


@with_two_ranks
def test_guides_of_many_sequences_are_bounded(server):
    schema = {"type": "object", "properties": {f"p{one}": {"type": "integer"} for one in range(400)}}
    assert server.ask(COMPLETIONS, {"prompt": "a", "max_tokens": 1, "guided_json": schema})[0] == 200
    status, text = server.ask(COMPLETIONS, {"prompt": "a", "n": 128, "max_tokens": 1, "guided_json": schema})
    assert status == 400
    assert "128 sequences" in text


def test_requests_that_hurt_are_refused(server):
    with others_are_served(server):
        for path, body, message in corpus.hurting(VOCABULARY, EXTRA):
            status, text = server.ask(path, body)
            assert status == 400, (path, body, text)
            assert message in text


SHARP = [
    {"repetition_penalty": 0.01}, {"repetition_penalty": 100, "logit_bias": {"1": 100}}, {"temperature": 1e-45},
    {"temperature": 100, "min_tokens": 2}, {"top_p": 1e-45}, {"min_p": 1.0}, {"top_k": (1 << 63) - 1},
    {"logit_bias": {"1": -1e308, "2": 1e308}}, {"presence_penalty": -2, "frequency_penalty": 2, "min_p": 1e-320},
    {"temperature": 100, "guided_regex": "[a-z]{3}", "repetition_penalty": 0.01},
    {"use_beam_search": True, "n": 2, "temperature": 1, "length_penalty": 10},
    {"use_beam_search": True, "length_penalty": -10}, {"allowed_token_ids": [65, 66], "min_tokens": 6},
]  # fmt: skip


@pytest.mark.parametrize("sampling", SHARP)
def test_sampling_at_the_limits_gives_an_answer(server, sampling):
    for more in ({"logprobs": 5}, {"temperature": 0, "logprobs": 1}):
        body = {"prompt": "Permission is", "max_tokens": 6, "seed": 3, **more, **sampling}
        status, text = server.ask(COMPLETIONS, body)
        assert status == 200, text
        assert "NaN" not in text


@with_two_ranks
@pytest.mark.parametrize("more", [
    {}, {"echo": True}, {"echo": True, "stream": True}, {"prompt": ["a", "Permission is"], "logprobs": 1, "n": 2},
])  # fmt: skip
def test_completion_without_a_length_is_answered(server, more):
    """Upstream makes all tokens and then answers 500."""
    status, text = server.ask(COMPLETIONS, {"prompt": "Permission is", "max_tokens": None, "stop": ["e"], **more})
    assert status == 200, text
    assert "choices" in text


@with_two_ranks
def test_requests_with_one_id_are_all_answered(server):
    bodies = [{"prompt": "Permission is", "max_tokens": 30, "n": count} for count in (1, 2, 3)]
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda body: server.ask(COMPLETIONS, body, **{"X-Request-Id": "one"}), bodies))
    for body, (status, text) in zip(bodies, answers, strict=True):
        assert status == 200, text
        assert len(json.loads(text)["choices"]) == body["n"]
        assert json.loads(text)["id"].startswith("cmpl-one-")


@pytest.mark.parametrize("masks", [
    {"allowed_token_ids": [259, 66, 77], "bad_words": ["a", "Mb"]}, {"allowed_token_ids": [0, 65], "min_tokens": 3},
    {"min_tokens": 3, "bad_words": ["a", "xb"]},
])  # fmt: skip
def test_masks_that_leave_a_token_are_obeyed(server, masks):
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 6, "logprobs": True, **masks}
    status, text = server.ask(corpus.CHAT, body)
    assert status == 200, text
    assert "NaN" not in text


SAMPLES = [
    (COMPLETIONS, {}), (COMPLETIONS, {"logprobs": 2, "stop": ["e", "s"]}), (COMPLETIONS, {"echo": True, "stop": ["e"]}),
    (COMPLETIONS, {"guided_regex": "[a-z]{1,9}", "logprobs": 0}), (corpus.CHAT, {"stop": ["e"]}),
    (corpus.CHAT, {"logprobs": True, "top_logprobs": 1, "ignore_eos": True}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "more"), SAMPLES)
def test_streamed_samples_are_those_of_one_answer(server, path, more):
    """Whichever ends first takes nothing from the others. Upstream lost a token of each, or ended with an error."""
    body = {"n": 4, "seed": 5, "temperature": 1.5, "max_tokens": 9, **more}
    body |= {"prompt": "The"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "The"}]}
    status, text = server.ask(path, body)
    assert status == 200, text
    whole, streamed, reasons = {}, {}, []
    for choice in json.loads(text)["choices"]:
        whole[choice["index"]] = choice["text"] if path == COMPLETIONS else choice["message"]["content"]
        reasons.append((choice["index"], choice["finish_reason"]))
    status, text = server.ask(path, {**body, "stream": True})
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert not any("error" in event for event in events), text
    ended = []
    for choice in (choice for event in events for choice in event["choices"]):
        said = choice["text"] if path == COMPLETIONS else choice["delta"].get("content") or ""
        streamed[choice["index"]] = streamed.get(choice["index"], "") + said
        if choice["finish_reason"]:
            ended.append((choice["index"], choice["finish_reason"]))
    assert streamed == whole
    assert sorted(ended) == reasons


@with_two_ranks
def test_guides_leave_nothing_in_the_engine(server):
    """Upstream sends it a tokenizer with each, which stays: 80 KiB for this small one."""
    (api,) = server.children()

    def ask(count):
        body = {"prompt": "The", "max_tokens": 2, "guided_regex": "[a-z]{3,9}"}
        with ThreadPoolExecutor(8) as pool:
            assert {status for status, _ in pool.map(lambda _: server.ask(COMPLETIONS, body), range(count))} == {200}
        return fuzz.memory_of(fuzz.descendants(api))

    before = ask(50)
    assert ask(100) - before < 100 * (40 << 10)


@with_two_ranks
def test_handlers_share_a_tokenizer_without_a_clash(server):
    """Whether prompts are cut is a state of it, and handlers would change that from threads of their own."""
    text = "Permission is hereby granted " * 300
    message = [{"role": "user", "content": text}]
    asked = [("/tokenize", {"prompt": text}), (COMPLETIONS, {"prompt": text, "truncate_prompt_tokens": 5}),
             (corpus.CHAT, {"messages": message, "truncate_prompt_tokens": 9}),
             (COMPLETIONS, {"prompt": "a", "bad_words": [text[:999]]})]
    asked = [(path, body if path == "/tokenize" else {**body, "max_tokens": 1}) for path, body in asked] * 40
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: server.ask(*one), asked))
    assert {status for status, _ in answers} == {200}, [text for status, text in answers if status != 200][:3]


def test_requests_that_no_client_means(server):
    """Made from the API's own description; tests/fuzz.sh sends many more."""
    api = json.loads(server.ask("/openapi.json")[1])
    made = fuzz.rounds(api, "generate", VOCABULARY, 100, seed=server.ranks)
    report = fuzz.run(server.port, KEY, server.process.pid, VOCABULARY, made)
    assert report.faults == []
    assert report.slowest < AT_ONCE
    assert report.grown < fuzz.GROWTH
    assert {200, 400} <= set(report.statuses)
    assert fuzz.SECRET not in server.output()


def test_what_a_client_abandoned_costs_nothing(server):
    body = json.dumps({"prompt": ["a"] * 16, "n": 8, "temperature": 1, "max_tokens": 900, "ignore_eos": True}).encode()
    for stream in (b"", b'"stream": true, '):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            said = b"{" + stream + body[1:]
            head = f"Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\nContent-Length: {len(said)}"
            connection.sendall(f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode() + said)
            wait_for(server.running, AT_ONCE)
        wait_for(lambda: not server.running(), AT_ONCE)


@with_two_ranks
def test_without_files_clients_are_turned_away(server):
    """More half-sent requests than the API may have files. None of them lasts, and vLLM goes on."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    (api,) = server.children()
    resource.prlimit(api, resource.RLIMIT_NOFILE, (4096, 4096))

    def files():
        return len(list(Path(f"/proc/{api}/fd").iterdir()))

    with contextlib.ExitStack() as stack, others_are_served(server):
        for _ in range(5000):
            held = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
            with contextlib.suppress(OSError):
                held.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: ")
        time.sleep(2)
        assert files() < 4096
    # The last ones may have ten seconds.
    end = time.monotonic() + 30
    while files() > 200 and time.monotonic() < end:
        time.sleep(0.5)
    assert files() < 200
    assert server.ask(COMPLETIONS, {"prompt": "1", "max_tokens": 1})[0] == 200


@with_two_ranks
def test_a_request_names_its_adapter(server):
    """The model comes first in the list, which the smoke test reads. A wrong name is answered, and harms nobody."""
    _, text = server.ask("/v1/models")
    assert [model["id"] for model in json.loads(text)["data"]] == ["license", "own"]
    answers = set()
    for model in ("license", "own"):
        status, text = server.ask(COMPLETIONS, {"model": model, "prompt": "The", "max_tokens": 12, "temperature": 0})
        assert status == 200, text
        answers.add(json.loads(text)["choices"][0]["text"])
    assert len(answers) == 2
    before = server.children()
    status, text = server.ask(COMPLETIONS, {"model": "other", "prompt": "The", "max_tokens": 1})
    assert status == 404
    assert "other" in text
    assert server.ask("/health")[0] == 200
    assert server.children() == before


@with_two_ranks
def test_tools_are_answered_without_options(server):
    status, text = server.ask(corpus.CHAT, {
        "messages": [{"role": "user", "content": "The"}], "max_tokens": 8, "tools": [corpus.tool({"type": "object"})],
        "tool_choice": "auto"})
    assert status == 200, text
    assert json.loads(text)["choices"][0]["message"]["content"]


def test_vllm_has_the_parsers_that_templates_name():
    from vllm_serving import parsers

    assert {form.parser for form in parsers.TOOLS} <= set(ToolParserManager.tool_parsers)
    assert {form.parser for form in parsers.REASONING} <= set(ReasoningParserManager.reasoning_parsers)
