"""Asking an OpenAI-compatible server of this host."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

import json
import time
import urllib.error
import urllib.request

from .server import base_url, open_url


class Wrong(Exception):
    """What is wrong with an answer."""


def read_key(path):
    """The key in a file of lines NAME=VALUE; None without a file. Raises Wrong."""
    if not path:
        return None
    try:
        with open(path) as stream:
            for line in stream:
                name, _, value = line.strip().partition("=")
                if name == "VLLM_API_KEY":
                    return value
    except OSError as error:
        raise Wrong("the key file cannot be read: %s" % error)
    raise Wrong("%s holds no line VLLM_API_KEY=..." % path)


class Api(object):
    """One server.

    timeout: seconds for one answer, and between two parts of a stream.
    headers: of every request.
    """

    def __init__(self, host, port, key_file, timeout, headers=()):
        self.base, self.key, self.timeout = base_url(host, port), read_key(key_file), timeout
        self.headers = dict(headers)

    def open(self, path, body):
        """The open answer to one request. Raises Wrong."""
        headers = dict(self.headers, **{"Content-Type": "application/json"})
        if self.key:
            headers["Authorization"] = "Bearer " + self.key
        data = None if body is None else json.dumps(body).encode("utf-8")
        try:
            return open_url(urllib.request.Request(self.base + path, headers=headers, data=data), self.timeout)
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", "replace")[:500]
            raise Wrong("%s answered %d: %s" % (path, error.code, text))
        except OSError as error:
            raise Wrong("%s: %s" % (path, error))

    def ask(self, path, body=None):
        """The answer to one request, decoded. Raises Wrong."""
        answer = self.open(path, body)
        try:
            return json.loads(answer.read().decode("utf-8"))
        except (OSError, ValueError) as error:
            raise Wrong("%s: %s" % (path, error))

    def stream(self, path, body):
        """The parts of a streamed answer as (seconds since the request, decoded part). Raises Wrong without its end."""
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
        except (OSError, ValueError) as error:
            raise Wrong("%s: %s" % (path, error))
        raise Wrong("%s: the stream ended without [DONE]" % path)

    def model(self):
        """(name of the first model, longest prompt and answer together in tokens). Raises Wrong."""
        listed = self.ask("/v1/models")["data"][0]
        return listed["id"], listed.get("max_model_len")

    def complete(self, model, prompt, tokens):
        """The greedy answer to `prompt`, `tokens` long: (text, tokens, their log-probabilities). Raises Wrong."""
        choice = self.ask("/v1/completions", greedy(model, prompt, tokens))["choices"][0]
        logprobs = choice.get("logprobs") or {}
        return choice.get("text") or "", logprobs.get("tokens") or [], logprobs.get("token_logprobs") or []


def greedy(model, prompt, tokens):
    """Body of a request for the most probable answer, `tokens` long, with log-probabilities."""
    return {
        "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 1, "ignore_eos": True,
    }


def look_at(text, probabilities, tokens):
    """Raise Wrong for an answer that no working model gives.

    probabilities: natural logarithms, one for each of its `tokens` tokens.
    """
    if len(probabilities) != tokens:
        raise Wrong("%d tokens instead of %d: %r" % (len(probabilities), tokens, text))
    # NaN is above nothing and below nothing.
    if not all(value is not None and -1e4 < value <= 1e-3 for value in probabilities):
        raise Wrong("log-probabilities that no model has: %s" % probabilities[:20])
