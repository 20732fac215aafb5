"""The middleware in front of an application that takes down what reaches it."""

import asyncio
import json
import os
import re
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from supervised import ROOT
from vllm_serving import admission
from vllm_serving.admission import QUARANTINE_HEADER

KEY = "a-key-that-nobody-else-has"
BEARER = ("authorization", f"Bearer {KEY}")
JSON = ("content-type", "application/json")
LIMIT = 1 << 10
VOCABULARY = 512
SECRET = "nobody-else-may-read-this"


class Application:
    """What stands behind the middleware.

    Attributes:
        got: path and body of each request. ids: the X-Request-Id of each.
        go: a stream ends once this is set.
        error: raised instead of an answer.
    """

    def __init__(self):
        self.got, self.ids, self.go, self.error = [], [], asyncio.Event(), None
        self.go.set()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            self.got.append((scope["type"], b""))
            return
        content, more = b"", True
        while more:
            message = await receive()
            content += message["body"]
            more = message["more_body"]
        self.got.append((scope["path"], content))
        self.ids.append([value.decode() for name, value in scope["headers"] if name == b"x-request-id"])
        if self.error:
            self.error()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if b"stream" in content:
            await self.go.wait()
        await send({"type": "http.response.body", "body": b"done"})


class Entrance:
    """The middleware with an application behind it."""

    def __init__(self):
        self.app = Application()
        self.middleware = admission.AdmissionMiddleware(self.app)
        # It learns this from vLLM before the first request.
        self.middleware.limits = replace(self.middleware.limits, vocabulary=VOCABULARY)

    async def send(self, path="/v1/completions", body=b"{}", method="POST", headers=(BEARER, JSON), root=""):
        """Status, headers and text of the answer; a list as body is sent in these parts."""
        parts, sent = list(body) if isinstance(body, list) else [body], []

        async def receive():
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)} if part is not None else {
                "type": "http.disconnect"
            }

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "root_path": root,
                 "headers": [(name.encode(), value.encode()) for name, value in headers]}
        await self.middleware(scope, receive, send)
        start, *rest = sent
        found = {name.decode(): value.decode() for name, value in start["headers"]}
        self.left = parts
        return start["status"], found, b"".join(part["body"] for part in rest).decode()

    def ask(self, *arguments, **options):
        return asyncio.run(self.send(*arguments, **options))


@pytest.fixture
def entrance(monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    monkeypatch.setenv("VLLM_SERVING_BODY", str(LIMIT / (1 << 20)))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    return Entrance()


PATHS = ["/v1/completions", "/v1/models", "/invocations", "/tokenize", "/", "/docs", "/openapi.json", "/health/",
         "/metrics/x", "//health", "/HEALTH"]  # fmt: skip
WRONG = [
    (), (("authorization", ""),), (("authorization", KEY),), (("authorization", f"Basic {KEY}"),),
    (("authorization", f"Bearer {KEY[:-1]}"),), (("authorization", f"Bearer {KEY}x"),),
    (("authorization", "Bearer "),), (("authorization", "Bearer ключ"),), (("x-api-key", KEY),),
    (("authorization", "Bearer x"), BEARER),  # the first counts, as it does for vLLM
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PUT"])
def test_every_path_wants_the_key(entrance, path, method):
    status, headers, _ = entrance.ask(path, method=method, headers=[JSON])
    assert status == 401
    assert headers["www-authenticate"] == "Bearer"
    assert entrance.app.got == []
    assert entrance.ask(path, method=method)[0] == 200


@pytest.mark.parametrize("headers", WRONG)
def test_a_wrong_key(entrance, headers):
    status, _, text = entrance.ask(headers=[*headers, JSON])
    assert status == 401
    assert json.loads(text)["message"] == "The key is missing or wrong."
    assert entrance.app.got == []
    assert KEY[:-1] not in text


@pytest.mark.parametrize("path", ["/health", "/ping", "/metrics", "/version"])
def test_open_paths(entrance, path):
    assert entrance.ask(path, method="GET", headers=[])[0] == 200
    assert entrance.ask(path, method="GET", headers=[("authorization", "Bearer x")])[0] == 200


class NFC:
    """The normalizer of that name, of the tokenizers library."""

    def normalize_str(self, text):
        return unicodedata.normalize("NFC", text)


def application(backend="guidance", size=VOCABULARY, normalizer=None):
    """A scope of the start of vLLM's own application, as it is released."""
    tokenizer = SimpleNamespace(get_vocab=lambda: {str(token): token for token in range(size)},
                                backend_tokenizer=SimpleNamespace(normalizer=normalizer))

    async def get_tokenizer():
        return tokenizer

    model = SimpleNamespace(get_vocab_size=lambda: size, max_model_len=64, max_logprobs=20)
    return {"type": "lifespan", "app": SimpleNamespace(state=SimpleNamespace(
        vllm_config=SimpleNamespace(
            model_config=model, structured_outputs_config=SimpleNamespace(backend=backend),
        ),
        engine_client=SimpleNamespace(get_tokenizer=get_tokenizer, errored=False),
    ))}


@pytest.fixture
def released(entrance, monkeypatch):
    """The middleware of vLLM as it is released, which has learned the model."""
    monkeypatch.setattr(admission.metadata, "version", lambda _: "0.12.0+cpu")
    asyncio.run(entrance.middleware(application(), None, None))
    entrance.app.got.clear()
    return entrance


@pytest.mark.parametrize("path", ["/pause", "/resume", "/scale_elastic_ep", "/inference/v1/generate"])
def test_paths_that_no_client_may_use_are_closed(released, path):
    assert released.ask(path)[0] == 404
    assert released.ask(path, root="/api")[0] == 404
    assert released.app.got == []
    assert released.ask(path, headers=[JSON])[0] == 401


@pytest.mark.parametrize("body", [
    {"prompt": [1, -5]}, {"prompt": [VOCABULARY]}, {"stop_token_ids": [10**9], "min_tokens": 1},
    {"guided_choice": ["yes", "no"]}, {"prompt": [1] * 65},
])  # fmt: skip
def test_released_engine_gets_nothing_that_ends_it(released, body):
    for path in ("/v1/completions", "/invocations"):
        assert released.ask(path, json.dumps(body).encode())[0] == 400
    assert released.app.got == []
    assert released.ask(body=b'{"prompt": [1, 5]}')[0] == 200


@pytest.mark.parametrize("body", [
    {"structured_outputs": {"choice": ["ok", "e\u0301"]}}, {"structured_outputs": {"json": {"enum": ["e\u0301"]}}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": "e\u0301"}}}},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"const": "e\u0301"}}}]},
])  # fmt: skip
def test_guide_that_the_tokenizer_would_change_is_refused(released, body):
    """The engine would end its answer where the text changes, as if it were whole."""
    assert released.ask(body=json.dumps(body).encode())[0] == 200
    asyncio.run(released.middleware(application(normalizer=NFC()), None, None))
    released.app.got.clear()
    status, _, text = released.ask(body=json.dumps(body).encode())
    assert (status, released.app.got) == (400, [])
    assert f"{next(iter(body))}: a text in it" in text and "NFC" in text
    composed = json.dumps(body).replace("e\\u0301", "\\u00e9").encode()
    assert released.ask(body=composed)[0] == 200
    assert released.ask(body='{"prompt": "e\u0301"}'.encode())[0] == 200


def test_requests_after_the_end_of_the_engine_get_503(released):
    """So a balancer asks another server; /health says what vLLM says."""
    released.middleware.engine.errored = True
    for path in ("/v1/completions", "/v1/models"):
        status, headers, text = released.ask(path)
        assert (status, headers["retry-after"]) == (503, "10")
        assert "The engine has ended" in text
    assert released.app.got == []
    assert released.ask("/health", method="GET")[0] == 200
    assert released.ask(headers=[JSON])[0] == 401


@pytest.mark.parametrize(("header", "body", "start"), [
    ("abc", {}, "abc"), (None, {"request_id": "abc"}, "abc"), ("abc", {"request_id": "other"}, "abc"),
    ("a\xe9 b\n", {}, "a_b_"), ("x" * 9000, {}, "x" * 64), (None, {"request_id": 5}, None), (None, {}, None),
])  # fmt: skip
def test_request_has_an_id_that_nobody_else_has(entrance, header, body, start):
    """vLLM refuses the id of a request that still runs, be it another client's."""
    headers = [BEARER, JSON, *([("x-request-id", header)] if header else [])]
    for _ in range(2):
        assert entrance.ask(body=json.dumps(body).encode(), headers=headers)[0] == 200
    first, second = entrance.app.ids
    assert (first, second) == ([], []) if start is None else first != second
    for name in first + second:
        assert re.fullmatch(f"{re.escape(start)}-[0-9a-f]{{16}}", name)


def test_completion_without_a_length_gets_one_for_its_answer(released):
    """As both versions of vLLM name the calls, and with what they assert."""

    class Handler:
        def request_output_to_completion_response(self, batch, request, number):
            return (batch, request.max_tokens, number)

        def completion_stream_generator(self, request, *, number):
            return (request.max_tokens, number)

    scope, handler = application(), Handler()
    scope["app"].state.openai_serving_completion = handler
    asyncio.run(released.middleware(scope, None, None))
    open_end, short = SimpleNamespace(max_tokens=None), SimpleNamespace(max_tokens=0)
    assert handler.request_output_to_completion_response(["out"], open_end, 3) == (["out"], 64, 3)
    assert handler.completion_stream_generator(SimpleNamespace(max_tokens=None), number=5) == (64, 5)
    assert handler.completion_stream_generator(short, number=5) == (0, 5)


def test_released_engine_with_other_guides_does_not_start():
    """xgrammar ends the engine at a pattern that it does not know."""
    text = (
        "import asyncio, sys; sys.path[:0] = sys.argv[1:]; import test_admission as t; admission = t.admission\n"
        "admission.metadata.version = lambda _: '0.12.0'\n"
        "asyncio.run(admission.AdmissionMiddleware(None)(t.application(backend='auto'), None, None))"
    )
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", text, *sys.path, here], capture_output=True, text=True)
    assert done.returncode == 78, done.stderr
    assert "ERROR structured-outputs-config: found the backend auto; expected guidance" in done.stdout


def test_a_browser_may_ask_whether_it_may_ask(entrance):
    assert entrance.ask(method="OPTIONS", headers=[])[0] == 200


def test_paths_below_a_root(entrance):
    """vLLM's option root-path: a server behind a proxy that leaves the path as it is."""
    assert entrance.ask("/api/health", method="GET", headers=[], root="/api")[0] == 200
    assert entrance.ask("/api/v1/models", method="GET", headers=[], root="/api")[0] == 401


def test_a_server_without_a_key(entrance, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY")
    open_to_all = Entrance()
    assert open_to_all.ask(headers=[JSON])[0] == 200
    assert open_to_all.ask(headers=[JSON], body=b"[]")[0] == 400


def opened(address, key):
    """Run a process that has bound a port, as vLLM has, and starts the middleware."""
    program = (
        "import asyncio, socket, sys\n"
        "from vllm_serving.admission import AdmissionMiddleware\n"
        "held = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)\n"
        "held.bind((sys.argv[1], 0))\n"
        "async def app(*_): print('started')\n"
        "asyncio.run(AdmissionMiddleware(app)({'type': 'lifespan'}, None, None))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "vllm_src"), **({} if key is None else {"VLLM_API_KEY": key})}
    return subprocess.run([sys.executable, "-c", program, address], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("address", "key"), [("0.0.0.0", None), ("0.0.0.0", ""), ("::", " "), ("0.0.0.0", "\t")])
def test_server_beyond_loopback_without_key_never_starts(address, key):
    ended = opened(address, key)
    assert (ended.returncode, ended.stderr) == (78, "")
    assert ended.stdout.startswith(f"ERROR VLLM_API_KEY: found no key for a server on {address};")


@pytest.mark.parametrize(("address", "key"), [("127.0.0.1", None), ("::1", ""), ("0.0.0.0", KEY)])
def test_server_on_loopback_or_with_a_key_starts(address, key):
    ended = opened(address, key)
    assert (ended.returncode, ended.stdout) == (0, "started\n")


def test_what_is_no_request_passes(entrance):
    asyncio.run(entrance.middleware({"type": "lifespan"}, None, None))
    assert entrance.app.got == [("lifespan", b"")]


def test_socket_gets_no_further(entrance):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(entrance.middleware({"type": "websocket", "path": "/v1/realtime", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
    assert entrance.app.got == []


@pytest.mark.parametrize("text", ['"\\ud83d\\ude00"', '"\U0001f600"', '"\\\\ud800"', "1e308", "-1.5e-300"])
def test_whole_characters_and_numbers_pass(entrance, text):
    body = b'{"prompt": "a", "user": %s}' % text.encode()
    assert entrance.ask(body=body)[0] == 200
    assert entrance.ask(body=b"\xef\xbb\xbf" + body)[0] == 200


def padded(size):
    return b'{"prompt": "' + b"a" * (size - 14) + b'"}'


def test_a_body_at_the_limit(entrance):
    assert entrance.ask(body=padded(LIMIT))[0] == 200
    assert entrance.ask(body=[padded(LIMIT)[:7], b"", padded(LIMIT)[7:]])[0] == 200
    assert entrance.app.got == [("/v1/completions", padded(LIMIT))] * 2


@pytest.mark.parametrize("length", [None, str(LIMIT + 1), "1", "many"])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_a_body_that_is_too_large(entrance, length, parts):
    """By one byte, in one part or in chunks, whatever its header says."""
    body = padded(LIMIT + 1)
    step = len(body) // parts + 1
    headers = [BEARER, JSON, *([("content-length", length)] if length else [])]
    status, answered, text = entrance.ask(body=[body[at: at + step] for at in range(0, len(body), step)],
                                          headers=headers)
    assert status == 413
    assert answered["connection"] == "close"
    assert f"larger than {LIMIT} bytes" in text
    assert entrance.app.got == []
    # All was read: who sends before it listens would not hear the answer otherwise.
    assert entrance.left == []


def test_no_body_is_read_for_ever(entrance):
    chunks = 100
    assert entrance.ask(body=[b" " * LIMIT] * chunks)[0] == 413
    assert len(entrance.left) == chunks - admission.PATIENCE - 1


def test_who_asks_first_is_told_at_once(entrance):
    headers = [BEARER, JSON, ("expect", "100-continue")]
    body = padded(LIMIT + 1)
    assert entrance.ask(body=body, headers=[*headers, ("content-length", str(len(body)))])[0] == 413
    assert entrance.left == [body]  # not asked for
    assert entrance.ask(body=padded(LIMIT), headers=[*headers, ("content-length", str(LIMIT))])[0] == 200


def test_a_wrong_key_gets_no_body_read(entrance):
    assert entrance.ask(body=[padded(LIMIT)] * 3, headers=[JSON])[0] == 401
    assert len(entrance.left) == 3


def test_a_client_that_leaves_while_it_sends(entrance):
    assert entrance.ask(body=[b'{"prompt": "', None])[0] == 400
    assert entrance.app.got == []
    assert entrance.middleware.running == 0


NO_JSON = [
    b"", b"{", b"\xff\xfe", b"prompt=1", b'{"prompt": NaN}', b'{"a": [-Infinity]}', b'{"a": Infinity}',
    b'{"seed": 9223372036854775808}', b'{"seed": -9223372036854775809}', b'{"a": {"b": [1' + b"0" * 400 + b"]}}",
    b"[" * 1000, b'{"model": "\xed\xa0\x80"}', b'{"model": "\\ud800"}', b'{"stop": ["a\\uDC00\\ud83d"]}',
    '{"prompt": "1"}'.encode("utf-16"), b'{"model": "\xff"}', b'{"top_p": 1e400}', b'{"a": [-1e999]}',
]  # fmt: skip


@pytest.mark.parametrize("body", NO_JSON)
def test_no_json(entrance, body):
    status, _, text = entrance.ask(body=body)
    assert status == 400
    assert "The body is no JSON, or holds a number of more than 64 bits" in text
    assert entrance.app.got == []


def test_deep_nesting(entrance, monkeypatch):
    monkeypatch.setenv("VLLM_SERVING_BODY", "8")
    deep = Entrance()
    assert deep.ask(body=b"[" * 1_000_000 + b"]" * 1_000_000)[0] == 400
    assert deep.app.got == []


@pytest.mark.parametrize("seed", [(1 << 63) - 1, -(1 << 63)])
def test_the_largest_integers(entrance, seed):
    assert entrance.ask(body=json.dumps({"seed": seed}).encode())[0] == 200


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"text"', b"true", b'[{"prompt": "1"}]'])
def test_no_object(entrance, body):
    status, _, text = entrance.ask(body=body)
    assert (status, json.loads(text)["message"]) == (400, "The body must be a JSON object.")


REFUSED = [
    ({"guided_decoding_backend": "outlines"}, "guided_decoding_backend"),
    ({"guided_decoding_backend": ""}, "guided_decoding_backend"),
    ({"guided_decoding_backend": 0}, "guided_decoding_backend"),
    ({"prompt_embeds": "5Di\u6699d"}, "prompt_embeds"),
    ({"tools": {}}, "tools: expected a list of objects."),
    ({"tools": "x"}, "tools: expected a list of objects."),
    ({"tools": [{}, 1]}, "tools: expected a list of objects."),
    ({"tools": [None]}, "tools: expected a list of objects."),
    ({"prompt": [VOCABULARY]}, "prompt: found the token id 512; the model's vocabulary has 0 to 511."),
    ({"n": 1_000_000}, "asks for 1000000 sequences"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"stop_token_ids": ["1"]}, "stop_token_ids"),
    ({"stop_token_ids": [1.5]}, "stop_token_ids"),
    ({"stop_token_ids": [[1]]}, "stop_token_ids"),
]


@pytest.mark.parametrize(("body", "message"), REFUSED)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/invocations"])
def test_requests_that_hurt(entrance, path, body, message):
    status, _, text = entrance.ask(path, json.dumps({"prompt": SECRET, **body}).encode())
    assert status == 400
    assert message in json.loads(text)["message"]
    assert entrance.app.got == []


PASSED = [
    {"guided_decoding_backend": None}, {"tools": None}, {"tools": []}, {"tools": [{}]}, {"stop_token_ids": None},
    {"stop_token_ids": []}, {"stop_token_ids": [0, VOCABULARY - 1]}, {"prompt": [0, VOCABULARY - 1]},
]  # fmt: skip


@pytest.mark.parametrize("body", PASSED)
def test_requests_that_do_not(entrance, body):
    content = json.dumps(body).encode()
    assert entrance.ask(body=content)[0] == 200
    assert entrance.app.got == [("/v1/completions", content)]


def test_sequences_of_a_request_are_the_operators_to_limit(monkeypatch, entrance):
    monkeypatch.setenv("VLLM_SERVING_SEQUENCES", "2")
    assert Entrance().ask(body=b'{"n": 2}')[0] == 200
    assert Entrance().ask(body=b'{"n": 3}')[0] == 400


KINDS = [
    ([("content-type", "Application/JSON; charset=utf-8")], 400),
    ([JSON, ("content-type", "text/plain")], 400),  # the first counts, as it does for vLLM
    ([("content-type", "text/plain")], 200),  # vLLM's to refuse, or an uploaded file
    ([], 200),
]


@pytest.mark.parametrize(("headers", "status"), KINDS)
def test_what_is_looked_at(entrance, headers, status):
    assert entrance.ask(body=b"no JSON", headers=[BEARER, *headers])[0] == status


def raised_in(module, function="fail"):
    """A function of that module that raises."""
    space = {"__name__": module}
    exec(f"def {function}():\n    raise TypeError('unorderable')", space)
    return space[function]


@pytest.mark.parametrize("place", [("fastapi.dependencies.utils",), ("pydantic.main", "model_validate")])
def test_an_error_of_validation_is_the_clients(entrance, place):
    entrance.app.error = raised_in(*place)
    status, _, text = entrance.ask()
    assert status == 400
    assert "not of the kind" in text
    assert "unorderable" not in text
    assert entrance.middleware.running == 0


@pytest.mark.parametrize("place", [("vllm.entrypoints.openai.serving_completion",), ("pydantic.main", "__init__")])
def test_any_other_error_is_passed_on(entrance, place):
    entrance.app.error = raised_in(*place)
    with pytest.raises(TypeError, match="unorderable"):
        entrance.ask()
    assert entrance.middleware.running == 0


def test_draining(entrance, tmp_path):
    """New requests are turned away, a running stream goes on, and /health counts what still runs."""

    async def scene():
        entrance.app.go.clear()
        stream = asyncio.ensure_future(entrance.send(body=b'{"stream": true}'))
        while not entrance.app.got:
            await asyncio.sleep(0)
        (tmp_path / admission.DRAINING).touch()
        for path in ("/v1/completions", "/v1/models", "/invocations"):
            status, headers, _ = await entrance.send(path)
            assert status == 503
            assert int(headers["retry-after"]) > 0
            assert admission.RUNNING not in headers
            assert (await entrance.send(path, headers=[JSON]))[0] == 401  # nobody learns that without the key
        for path in ("/health", "/ping"):
            status, headers, _ = await entrance.send(path, method="GET", headers=[])
            assert (status, headers[admission.RUNNING]) == (503, "1")
            assert int(headers["retry-after"]) > 0
        for path in ("/metrics", "/version"):
            assert (await entrance.send(path, method="GET", headers=[]))[0] == 200
        entrance.app.go.set()
        assert await stream == (200, {}, "done")
        assert (await entrance.send("/health", method="GET", headers=[]))[1][admission.RUNNING] == "0"
        (tmp_path / admission.DRAINING).unlink()
        assert (await entrance.send())[0] == 200

    asyncio.run(scene())


def test_server_in_quarantine_answers_only_with_its_token(monkeypatch, tmp_path, entrance):
    """Before its answers were looked at, and no longer."""
    held = tmp_path / "held"
    monkeypatch.setenv("VLLM_SERVING_HELD", str(held))
    entrance = Entrance()
    assert entrance.ask()[0] == 200
    held.write_text("open-sesame")
    for path, known in (("/v1/completions", [BEARER, JSON]), ("/health", []), ("/ping", [])):
        for wrong in ([], *([(QUARANTINE_HEADER, token)] for token in ("", "open-sesam", "open-sésame"))):
            status, headers, _ = entrance.ask(path, headers=[*known, *wrong])
            assert status == 503
            assert int(headers["retry-after"]) > 0
        assert entrance.ask(path, headers=[*known, (QUARANTINE_HEADER, "open-sesame")])[0] == 200
    assert entrance.ask(headers=[JSON, (QUARANTINE_HEADER, "open-sesame")])[0] == 401
    assert entrance.ask("/metrics", method="GET", headers=[])[0] == 200
    held.unlink()
    assert entrance.ask()[0] == 200


def test_a_request_whose_body_still_comes_is_running(entrance):
    """It was admitted: a server that ended now would cut it off."""

    async def scene():
        arrived = asyncio.Event()

        async def receive():
            await arrived.wait()
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message):
            pass

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "root_path": "",
                 "headers": [(name.encode(), value.encode()) for name, value in (BEARER, JSON)]}
        request = asyncio.ensure_future(entrance.middleware(scope, receive, send))
        await asyncio.sleep(0)
        assert entrance.middleware.running == 1
        arrived.set()
        await request
        assert entrance.middleware.running == 0

    asyncio.run(scene())


def test_nothing_of_a_body_or_key_is_said(entrance, capfd, caplog):
    bodies = [
        f'{{"prompt": "{SECRET}"', f'{{"{SECRET}": NaN}}', f'"{SECRET}"', f'{{"tools": "{SECRET}"}}',
        f'{{"guided_decoding_backend": "{SECRET}"}}', f'{{"stop_token_ids": ["{SECRET}"]}}', SECRET * LIMIT,
    ]  # fmt: skip
    for body in bodies:
        status, headers, text = entrance.ask(body=body.encode())
        assert 400 <= status < 500
        assert SECRET not in text + str(headers)
        assert KEY not in text + str(headers)
    assert SECRET not in entrance.ask(headers=[("authorization", f"Bearer {SECRET}")])[2]
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""
