"""The supervisor and the door with vLLM itself: two ranks over gloo, under a systemd that only listens."""

import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from random_bodies import SECRET, bodies

TESTS = Path(__file__).resolve().parents[1]
sys.path.append(str(TESTS / "unit" / "serving"))
from supervised import KEY, Unit, wait_for  # noqa: E402

MODEL = TESTS / "models" / "licence-llama"
VOCABULARY, CONTEXT = 512, 1024
# Seconds. A start on a machine whose two cores are busy reads the libraries for long.
WATCHDOG, DRAIN, START = 12, 60, 240
PROMPTS = ("Permission is hereby granted", "THE SOFTWARE IS PROVIDED", "You may reproduce")
BODIES = 500
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
                 VLLM_KEPLER_DRAIN=DRAIN, VLLM_KEPLER_BODY=1, WATCHDOG_USEC=WATCHDOG * 1_000_000)

    def fed(self):
        """When the watchdog was fed."""
        return [seconds for seconds, fields in list(self.sent) if "WATCHDOG" in fields]

    def ask(self, path, body=None, **headers):
        """Status, headers and text of an answer to somebody with the key."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **headers}
            content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("GET" if body is None else "POST", path, content, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()

    def complete(self, prompt, tokens=24):
        """Greedy text."""
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        status, _, text = self.ask("/v1/completions", body)
        assert status == 200, text
        return json.loads(text)["choices"][0]["text"]

    def rank(self):
        """The process of rank 1; rank 0 is the engine's own."""
        return int(re.search(r"VllmWorkerProcess pid=(\d+)", self.output())[1])

    def stream(self, prompt, tokens):
        """A connection on which a greedy stream has begun, and its first line."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
                "stream_options": {"include_usage": True}}  # fmt: skip
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        assert answer.status == 200
        return contextlib.closing(connection), answer, answer.readline()

    def ended(self, seconds):
        """Exit status, once the supervisor and all that it started are gone."""
        status = self.process.wait(seconds)
        wait_for(lambda: not self.processes(), 5)
        return status

    def processes(self):
        """Whatever was started with this unit's environment and still runs."""
        mark = f"RUNTIME_DIRECTORY={self.runtime}\0".encode()
        return [path for path in Path("/proc").glob("[0-9]*") if mark in read(path / "environ")]

    def close(self):
        for path in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.name), signal.SIGKILL)
        super().close()


def read(path):
    """The bytes of a file in /proc; none where its process is gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture
def fresh(tmp_path):
    """A server that a test may break."""
    server = Server(tmp_path)
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that no test breaks; test_stop_drains, its last one, stops it."""
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    server.ready(START)
    yield server
    server.close()


def test_ready_is_a_token(server):
    """Nobody else has asked yet, and the model has answered."""
    _, _, metrics = server.ask("/metrics")
    made = [line.split()[-1] for line in metrics.splitlines() if line.startswith("vllm:generation_tokens_total{")]
    assert sum(map(float, made)) >= 1
    assert "starting the ranks" in server.fields("STATUS")
    said = [line for line in server.output().splitlines() if line.startswith("vllm@main ")]
    assert said[0] == (
        f"vllm@main starts: generation 7, model {MODEL}, dies cpu, http://127.0.0.1:{server.port}"
    )
    assert said[1].startswith("vllm@main is ready after ")
    assert "?probe-" not in server.output()


def test_a_healthy_server_feeds_the_watchdog(server):
    """Idle, and with one request that takes longer than a look: systemd would never have ended it."""
    began = time.monotonic()
    time.sleep(WATCHDOG / 2)
    idle = time.monotonic()
    while time.monotonic() - idle < WATCHDOG:
        server.complete("1", CONTEXT - 10)
    busy = time.monotonic()
    fed = server.fed()
    assert any(began < seconds < idle for seconds in fed)
    assert any(idle + WATCHDOG / 2 < seconds < busy for seconds in fed)
    ready = next(seconds for seconds, fields in server.sent if "READY" in fields)
    assert max(later - earlier for earlier, later in itertools.pairwise([ready, *fed, time.monotonic()])) < WATCHDOG


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
    answered, _, text = server.ask(path, body, **headers)
    assert answered == status, text
    assert message in text


def test_random_bodies(server, seed):
    """None ends it, none is its fault, and nothing of them is written anywhere."""
    before = [server.complete(prompt) for prompt in PROMPTS]
    left, faults, lock = iter(list(enumerate(bodies(BODIES, seed)))), [], threading.Lock()

    def send():
        while True:
            with lock:
                number, body = next(left, (None, None))
            if body is None:
                return
            try:
                status, _, text = server.ask(("/v1/completions", "/v1/chat/completions")[number % 2], body)
            except (OSError, http.client.HTTPException) as error:
                status, text = 999, repr(error)
            if status >= 500:
                faults.append((status, body, text[:200]))

    senders = [threading.Thread(target=send) for _ in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert faults == []
    assert [server.complete(prompt) for prompt in PROMPTS] == before
    assert server.process.poll() is None
    output = server.output()
    assert '"POST /v1/chat/completions HTTP/1.1" 400' in output
    for secret in (KEY, SECRET, *PROMPTS):
        assert secret not in output


def test_a_rank_that_hangs(server):
    """/health answers on, and the watchdog gets no more food. A hang that ends before systemd acts does no harm."""
    before = server.complete(PROMPTS[0])
    os.kill(server.rank(), signal.SIGSTOP)
    try:
        stopped = time.monotonic()
        # As systemd counts: from the last sign of life.
        wait_for(lambda: time.monotonic() - max([stopped, *server.fed()]) > WATCHDOG, 3 * WATCHDOG)
        # One look may have begun before the stop, and the next one counts what was made before it.
        assert max(server.fed()) - stopped < WATCHDOG * 2 / 3
        assert server.ask("/health")[0] == 200
        assert server.fields("STATUS")[-1].startswith("no sign of life for ")
    finally:
        os.kill(server.rank(), signal.SIGCONT)
    resumed = time.monotonic()
    wait_for(lambda: max(server.fed()) > resumed, WATCHDOG)
    assert server.complete(PROMPTS[0]) == before


def test_stop_drains(server):
    """A stream ends whole, others are turned away, and the status is that of success."""
    connection, stream, first = server.stream("1", CONTEXT // 2)
    with connection:
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: any(text.startswith("draining: 1 running") for text in server.fields("STATUS")))
        for path, body in (("/v1/completions", {"prompt": "1"}), ("/health", None)):
            status, headers, text = server.ask(path, body)
            assert status == 503, text
            assert int(headers["Retry-After"]) > 0
        said = (first + stream.read()).decode()
    assert said.rstrip().endswith("data: [DONE]")
    events = [json.loads(line[len("data: "):]) for line in said.splitlines() if line.startswith("data: {")]
    assert events[-1]["usage"]["completion_tokens"] == CONTEXT // 2
    assert server.ended(60) == 0
    assert server.last() == "vllm@main ends: stopped as asked"


def test_a_rank_that_is_killed(fresh):
    """In the midst of a stream: that is cut off and never ends as if it were whole."""
    fresh.ready(START)
    connection, stream, said = fresh.stream(SECRET, CONTEXT // 2)
    with connection:
        os.kill(fresh.rank(), signal.SIGKILL)
        with contextlib.suppress(OSError, http.client.HTTPException):
            while line := stream.readline():
                said += line
    assert b'"completion_tokens"' not in said
    # A look that finds it where no stream runs, vLLM's own 5 seconds, and its end.
    assert fresh.ended(WATCHDOG / 6 + 5 + 20) != 0
    reason = r"ends: vLLM ended by itself with status \d+ while serving: \w+Error: .*(died|by peer)"
    assert re.search(reason, fresh.last()), fresh.last()
    for secret in (KEY, SECRET):
        assert secret not in fresh.output()


def test_a_port_that_is_taken(tmp_path):
    """vLLM would share it; nothing is loaded before that is found."""
    server = Server(tmp_path)
    try:
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind(("127.0.0.1", server.port))
            other.listen()
            server.start()
            assert server.ended(30) == 1
        reason = f"vllm@main ends: port {server.port} of 127.0.0.1 cannot be had: Address already in use"
        assert server.output().splitlines() == [reason]
        assert server.fields("READY") == []
    finally:
        server.close()
