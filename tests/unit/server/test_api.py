"""What is said of a server that answers with half an answer, no HTTP, or something else than was asked for."""

import json

import pytest
from module_utils.server import acceptance, api
from ports import free_port
from raw_server import answering

OPTIONS = {"requests": 2, "concurrency": 1, "long_tokens": 20}


def http(body, length=None, status=200):
    """An answer with `body`, which says that it is `length` bytes long."""
    head = "HTTP/1.1 {} X\r\nContent-Length: {}\r\n\r\n".format(status, len(body) if length is None else length)
    return (head + body).encode()


def spoken(document):
    return http(json.dumps(document))


MODELS = spoken({"data": [{"id": "m", "max_model_len": 512}]})

BROKEN = {
    "half an answer": (http("{", length=40), "IncompleteRead"),
    "no HTTP": (b"SSH-2.0-OpenSSH_8.0\r\n", "BadStatusLine"),
    "nothing": (b"", "closed connection without response"),
    "half of an error": (http("busy", length=40, status=503), "answered 503: IncompleteRead"),
    "no JSON": (http("<html>"), "Expecting value"),
    "no text": (b"HTTP/1.1 200 X\r\nContent-Length: 1\r\n\r\n\xff", "codec can't decode"),
}


@pytest.mark.parametrize("what", sorted(BROKEN))
def test_an_answer_that_is_none(what):
    answer, said = BROKEN[what]
    with answering(answer) as port, pytest.raises(api.CheckFailed, match="^/v1/models.*" + said):
        api.Api("127.0.0.1", port, None, 10).model()


def test_a_stream_that_breaks_off():
    half = b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n40\r\ndata: 1\n\n"
    with answering(half) as port, pytest.raises(api.CheckFailed, match="^/v1/completions: IncompleteRead"):
        list(api.Api("127.0.0.1", port, None, 10).stream("/v1/completions", {}))


def test_server_that_is_not_there_is_named_in_plain_words():
    with pytest.raises(api.CheckFailed, match="^/v1/models: Connection refused$"):
        api.Api("127.0.0.1", free_port(), None, 10).model()


def test_an_address_that_is_none():
    with pytest.raises(api.CheckFailed, match="^/v1/models: InvalidURL"):
        api.Api("a b", 1, None, 10).model()


def test_a_key_that_no_request_can_have_is_not_shown(tmp_path):
    key = tmp_path / "key"
    for odd in ("\N{EURO SIGN}".encode(), b"\xff"):
        key.write_bytes(b"VLLM_API_KEY=secret" + odd)
        with pytest.raises(api.CheckFailed, match="the key file .* found .*; expected") as caught:
            api.Api("127.0.0.1", 1, str(key), 10).model()
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("document", [
    {}, [], None, "x", 7, {"data": []}, {"data": [{}]}, {"data": {"0": 1}}, {"data": [{"id": 7}]},
    {"data": [{"id": "m", "max_model_len": "512"}]}, {"data": [{"id": "m", "max_model_len": True}]},
])  # fmt: skip
def test_a_list_of_models_that_is_none(document):
    said = "^/v1/models answered .*; expected data.0"
    with answering(spoken(document)) as port, pytest.raises(api.CheckFailed, match=said):
        api.Api("127.0.0.1", port, None, 10).model()


def test_a_server_that_does_not_say_how_much_it_takes():
    with answering(spoken({"data": [{"id": "m"}]})) as port:
        assert api.Api("127.0.0.1", port, None, 10).model() == ("m", None)


@pytest.mark.parametrize("document", [
    {}, [], None, {"choices": []}, {"choices": ["a"]}, {"choices": {}}, {"choices": [{"text": 7}]},
    {"choices": [{"text": "a", "logprobs": {"token_logprobs": "b"}}]},
    {"choices": [{"text": "a", "logprobs": {"tokens": 7}}]},
])  # fmt: skip
def test_a_completion_that_is_none(document):
    expected = "^/v1/completions answered .*; expected "
    with answering(spoken(document)) as port, pytest.raises(api.CheckFailed, match=expected):
        api.Api("127.0.0.1", port, None, 10).complete("m", "p", 3)


@pytest.mark.parametrize("values", [
    ["a"], [{}], [[]], [None], [float("nan")], [float("-inf")], [float("inf")], [-1e5], [0.5],
])
def test_probabilities_that_are_no_numbers(values):
    with pytest.raises(api.CheckFailed, match="no model has"):
        api.check_answer("a", values, 1)


STREAMED = 'data: {"choices": %s}\n\ndata: [DONE]\n\n'
TALK = spoken({"choices": [{"message": {"content": "a b"}}]})
ODD = {
    "chat": [spoken({"choices": [{"message": "a"}], "error": 1}), spoken({"choices": 7})],
    "chat_stream": [TALK, http(STREAMED % '[{"delta": {"content": 7}}]')],
    "load": [http(STREAMED % '[{"delta": {}}]'), http(STREAMED % "7")],
    "decisions": [
        spoken({"choices": [{"text": "a"}]}),
        spoken({"choices": [{"text": "a", "logprobs": {"token_logprobs": [-1], "top_logprobs": [7]}}]}),
        spoken({"choices": [{"text": "a", "logprobs": {"token_logprobs": [-1], "top_logprobs": [{"a": "b"}]}}]}),
    ],
    "coherent": [spoken({"choices": [{"text": "a", "logprobs": {"tokens": [{}] * 20, "token_logprobs": [-1] * 20}}]})],
}


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name in sorted(ODD) for number in range(len(ODD[name]))]
)
def test_checks_of_a_server_that_answers_something_else(name, number):
    """Each says what is wrong, and none ends with another error."""
    answers = ODD[name] if name == "chat_stream" else [ODD[name][number]]
    with answering(MODELS, *answers) as port:
        asked = acceptance.CheckContext(api.Api("127.0.0.1", port, None, 10), OPTIONS)
        with pytest.raises(api.CheckFailed):
            acceptance.CHECKS[name](asked)


def test_request_that_cannot_be_made_does_not_show_the_key(monkeypatch):
    """http.client's error has the header in it."""
    monkeypatch.setattr(api, "read_key", lambda path: "secret\n")
    with pytest.raises(api.CheckFailed, match="a key that a request cannot have") as caught:
        api.Api("127.0.0.1", 1, "a file", 10).model()
    assert "secret" not in str(caught.value)


def key_file(tmp_path):
    path = tmp_path / "key.env"
    path.write_text("VLLM_API_KEY=secret\n")
    return str(path)


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [(MODELS, "answered without the key"), (http("busy", status=503), "answered 503"), (b"", "closed connection")],
)
def test_server_that_does_not_ask_for_its_key_is_wrong(tmp_path, answer, wrong):
    with answering(answer) as port, pytest.raises(api.CheckFailed, match="^/v1/models.*" + wrong):
        api.Api("127.0.0.1", port, key_file(tmp_path), 10).check_key_is_required()


@pytest.mark.parametrize("status", [401, 403])
def test_server_that_asks_for_its_key_is_right(tmp_path, status):
    with answering(http("{}", status=status)) as port:
        api.Api("127.0.0.1", port, key_file(tmp_path), 10).check_key_is_required()
    api.Api("127.0.0.1", port, None, 10).check_key_is_required()
