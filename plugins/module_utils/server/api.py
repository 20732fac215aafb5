"""Client of an OpenAI-compatible server of this host, and the check of its answers."""

import http.client
import json
import ssl
import time
import urllib.error
import urllib.request

from ..errors import KeplerError, reason_of
from .addresses import QUARANTINE_HEADER, WILDCARDS, authority
from .key_file import KeyFileError, read_key

# While this file exists, the server answers only requests with the token in it: its answers are not checked yet.
QUARANTINE = "/run/vllm-%s.held"
# Options of modules by which they name a server; documented in doc_fragments/server.py.
SERVER_OPTIONS = {
    "name": {"type": "str", "required": True},
    "host": {"type": "str", "default": "127.0.0.1"},
    "port": {"type": "int", "default": 8000},
}
KEY_OPTION = {"api_key_file": {"type": "path", "no_log": False}}
# Raised for no answer, a truncated answer, or one that is not HTTP.
UNANSWERED = (OSError, http.client.HTTPException)


def base_url(host, port):
    """http:// address of a server that listens on `host` and `port`, without a last slash."""
    return "http://" + authority(WILDCARDS.get(host, host), port)


def quarantine_headers(name):
    """Return the header with which the server `name` answers while it is quarantined; none if it is not."""
    try:
        with open(QUARANTINE % name) as stream:
            return {QUARANTINE_HEADER: stream.read().strip()}
    except OSError:
        return {}


def open_url(request, timeout, ca_file=None):
    """The answer to an address or request, whatever proxy the environment names. Raises OSError.

    timeout: seconds. ca_file: certificates that are trusted in place of the system's.
    """
    handlers = [urllib.request.ProxyHandler({})]
    if ca_file:
        handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file)))
    return urllib.request.build_opener(*handlers).open(request, timeout=timeout)


class CheckFailed(KeplerError):
    """A server does not answer as it must. `status` is that of HTTP, if it answered with an error."""

    status = None


def part_of(answer, path, kind, *keys, missing=None):
    """Return the part of a decoded answer at `keys`. Raises CheckFailed if it is no `kind`.

    path: what was requested, for people. kind: a type. missing: replaces a part that is not there, or null.
    """
    part = answer
    try:
        for key in keys:
            part = part[key]
    except (LookupError, TypeError):
        part = None
    part = missing if part is None else part
    if not isinstance(part, kind) or isinstance(part, bool):
        where = ".".join(map(str, keys))
        raise CheckFailed("%s answered %.200s; expected %s: %s" % (path, json.dumps(answer), where, kind.__name__))
    return part


class Api(object):
    """One server.

    key_file: the server's; None if it has no key.
    timeout: seconds for one answer, and between two parts of a stream.
    headers: of every request.
    base: address in place of that of host and port, without a last slash.
    ca_file: certificates that are trusted in place of the system's.
    """

    def __init__(self, host, port, key_file, timeout, headers=(), base=None, ca_file=None):
        """Raise CheckFailed for a file without a key."""
        self.base, self.timeout, self.headers = base or base_url(host, port), timeout, dict(headers)
        self.ca_file = ca_file
        try:
            self.key = read_key(key_file) if key_file else None
        except KeyFileError as error:
            raise CheckFailed("the key file %s: %s" % (key_file, error))

    def open(self, path, body, with_key=True):
        """The open answer to one request. Raises CheckFailed."""
        headers = dict(self.headers, **{"Content-Type": "application/json"})
        if self.key and with_key:
            headers["Authorization"] = "Bearer " + self.key
        data = None if body is None else json.dumps(body).encode("utf-8")
        try:
            request = urllib.request.Request(self.base + path, headers=headers, data=data)
            return open_url(request, self.timeout, self.ca_file)
        except urllib.error.HTTPError as error:
            try:
                text = error.read().decode("utf-8", "replace")[:500]
            except UNANSWERED as fault:
                text = reason_of(fault)
            failed = CheckFailed("%s answered %d: %s" % (path, error.code, text))
            failed.status = error.code
            raise failed
        except UNANSWERED as error:
            raise CheckFailed("%s: %s" % (path, reason_of(error)))
        except ValueError:  # its text would show the key
            raise CheckFailed("%s: an address or a key that a request cannot have" % path)

    def check_key_is_required(self):
        """Raise CheckFailed if the server has a key and answers without it."""
        path = "/v1/models"
        if not self.key:
            return
        try:
            self.open(path, None, with_key=False).close()
        except CheckFailed as error:
            if error.status in (401, 403):
                return
            raise
        raise CheckFailed("%s answered without the key: systemd took none from the key file" % path)

    def read(self, path, body=None, decode=str):
        """The answer to one request, as `decode` makes it of its text. Raises CheckFailed."""
        answer = self.open(path, body)
        try:
            return decode(answer.read().decode("utf-8"))
        except UNANSWERED + (ValueError,) as error:
            raise CheckFailed("%s: %s" % (path, reason_of(error)))

    def ask(self, path, body=None):
        """The answer to one request, decoded. Raises CheckFailed."""
        return self.read(path, body, json.loads)

    def stream(self, path, body):
        """Parts of a streamed answer: (seconds since the request, decoded part). Raises CheckFailed without its end."""
        started = time.time()
        answer = self.open(path, dict(body, stream=True))
        try:
            for line in answer:
                name, _, value = line.decode("utf-8").partition(":")
                if name != "data":
                    continue
                if value.strip() == "[DONE]":
                    return
                yield time.time() - started, json.loads(value)
        except UNANSWERED + (ValueError,) as error:
            raise CheckFailed("%s: %s" % (path, reason_of(error)))
        raise CheckFailed("%s: the stream ended without [DONE]" % path)

    def version(self):
        """The version of its vLLM. Raises CheckFailed."""
        return part_of(self.ask("/version"), "/version", str, "version")

    def model(self):
        """(name of the first model, longest prompt and answer together in tokens). Raises CheckFailed."""
        path = "/v1/models"
        answer = self.ask(path)
        # 0 if the server does not report it.
        longest = part_of(answer, path, int, "data", 0, "max_model_len", missing=0)
        return part_of(answer, path, str, "data", 0, "id"), longest or None

    def complete(self, model, prompt, tokens):
        """The greedy answer to `prompt`, `tokens` long: (text, tokens, their log-probabilities). Raises CheckFailed."""
        path = "/v1/completions"
        answer = self.ask(path, greedy(model, prompt, tokens))
        part_of(answer, path, dict, "choices", 0)
        return (
            part_of(answer, path, str, "choices", 0, "text", missing=""),
            [str(token) for token in part_of(answer, path, list, "choices", 0, "logprobs", "tokens", missing=[])],
            part_of(answer, path, list, "choices", 0, "logprobs", "token_logprobs", missing=[]),
        )

    def complete_twice(self, model, prompt, tokens):
        """One greedy answer, requested twice: (text, seconds of the second). Raises CheckFailed if they differ."""
        texts = []
        for _ in range(2):
            started = time.time()
            text, _, probabilities = self.complete(model, prompt, tokens)
            check_answer(text, probabilities, tokens)
            texts.append(text)
        if texts[0] != texts[1]:
            raise CheckFailed("two answers to one greedy question: %r and %r" % tuple(texts))
        return texts[0], time.time() - started


def greedy(model, prompt, tokens):
    """Body of a request for the most probable answer, `tokens` long, with log-probabilities."""
    return {
        "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 1, "ignore_eos": True,
    }


def check_answer(text, probabilities, tokens):
    """Raise CheckFailed for an answer that no working model gives.

    probabilities: natural logarithms, one for each of its `tokens` tokens.
    """
    if len(probabilities) != tokens:
        raise CheckFailed("%d tokens instead of %d: %r" % (len(probabilities), tokens, text))
    # Comparisons with NaN are always false.
    if not all(isinstance(value, (int, float)) and -1e4 < value <= 1e-3 for value in probabilities):
        raise CheckFailed("log-probabilities that no model has: %s" % probabilities[:20])
