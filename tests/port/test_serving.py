"""The door with vLLM itself behind it: two ranks over gloo.

The server's life is in tests/unit/serving with a server that does what it is told, and in the scenario `default` with
vLLM under systemd.
"""

import contextlib
import http.client
import json
import os
import signal
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.append(str(TESTS / "unit" / "serving"))
from supervised import KEY, Unit  # noqa: E402

MODEL = TESTS / "models" / "licence-llama"
VOCABULARY = 512
# Seconds. A start on a machine whose two cores are busy reads the libraries for long.
START = 240
OPTIONS = {
    "model": MODEL, "served-model-name": "licence", "dtype": "float32", "tensor-parallel-size": 2, "max-num-seqs": 32,
    "disable-log-requests": "true",
}  # fmt: skip


class Server(Unit):
    """One unit whose server is vLLM."""

    def __init__(self, directory):
        super().__init__(directory, **OPTIONS)

    def start(self):
        self.run("-m", "vllm_kepler.serving", "main", self.directory / "main.yaml", 7, VLLM_USE_V1=0,
                 VLLM_KEPLER_BODY=1)

    def ask(self, path, body=None, **headers):
        """Status and text of an answer to somebody with the key."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **headers}
            content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("GET" if body is None else "POST", path, content, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def close(self):
        """End whatever was started with this unit's environment."""
        mark = f"RUNTIME_DIRECTORY={self.runtime}\0".encode()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (path / "environ").read_bytes():
                    os.kill(int(path.name), signal.SIGKILL)
        super().close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    server.ready(START)
    yield server
    server.close()


DOOR = [
    ("/invocations", {"prompt": "1"}, {"Authorization": "Bearer x"}, 401, "The key is missing or wrong."),
    ("/v1/models", None, {"Authorization": "x"}, 401, "The key is missing or wrong."),
    ("/health", None, {"Authorization": "x"}, 200, ""),
    ("/v1/completions", b" " * ((1 << 20) + 1), {}, 413, "larger than 1048576 bytes"),
    ("/v1/completions", b"{", {}, 400, "The body is no JSON"),
    ("/v1/completions", {"prompt": "1", "temperature": float("nan")}, {}, 400, "The body is no JSON"),
    ("/v1/completions", {"prompt": "1", "max_tokens": -1}, {}, 400, "max_tokens must be at least 1"),
    ("/v1/completions", {"prompt": "1", "stop_token_ids": [VOCABULARY], "min_tokens": 1}, {}, 400,
     f"stop_token_ids: expected integers of 0 to {VOCABULARY - 1}."),
    ("/v1/completions", {"prompt": "1", "stop_token_ids": [VOCABULARY - 1], "min_tokens": 1}, {}, 200, "choices"),
    ("/v1/completions", {"prompt": "1", "guided_regex": "(?=a)", "guided_decoding_backend": "outlines"}, {}, 400,
     "guided_decoding_backend: the server chooses it."),
    # Upstream compares this with a number before it knows what it is.
    ("/v1/completions", {"prompt": "1", "logprobs": "many"}, {}, 400, "not of the kind that it must be"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "headers", "status", "message"), DOOR)
def test_the_door(server, path, body, headers, status, message):
    answered, text = server.ask(path, body, **headers)
    assert answered == status, text
    assert message in text
