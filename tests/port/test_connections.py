"""What connections may cost, with uvicorn and an application that needs no vLLM."""

import asyncio
import contextlib
import resource
import socket
import threading
import time

import pytest
import uvicorn
from vllm_kepler.api import connections, middleware  # noqa: F401

LARGE = 4 << 20
# A request for /wait has arrived.
ARRIVED = threading.Event()


async def application(scope, receive, send):
    """Answers with what its path asks for, in small parts; never to /wait."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/wait":
        ARRIVED.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    parts = 64 if scope["path"] == "/large" else 1
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(parts):
        await send({"type": "http.response.body", "body": b"x" * (LARGE // 64), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setattr(connections, "HEAD", 1)
    monkeypatch.setattr(connections, "UNREAD", 1)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        config = uvicorn.Config(application, log_level="critical", timeout_keep_alive=30)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        assert config.http_protocol_class is connections.Connection
        yield bound.getsockname()[1]
        server.should_exit = server.force_exit = True
        thread.join()
    assert not connections.Connection.waiting


def connect(port, sent=b""):
    connection = socket.create_connection(("127.0.0.1", port), 5)
    connection.sendall(sent)
    return connection


def seconds_until_dropped(connection, every=None):
    """Seconds until the server ends a connection, on which a byte more comes each `every` seconds."""
    began = time.monotonic()
    connection.settimeout(every or 5)
    while time.monotonic() - began < 5:
        try:
            if not connection.recv(1 << 16):
                break
        except TimeoutError:
            if every is None:
                break
            with contextlib.suppress(OSError):
                connection.sendall(b"a")
        except OSError:
            break
    return time.monotonic() - began


HALVES = [b"", b"GET", b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"]
ANSWERED = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
UPLOAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\na"


@pytest.mark.parametrize("half", [*HALVES, ANSWERED + HALVES[2], UPLOAD])
@pytest.mark.parametrize("every", [None, 0.1], ids=["silent", "slow"])
def test_half_sent_requests_end(port, half, every):
    """Also after an answer, and with a body that nobody waits for."""
    with connect(port, half) as connection:
        assert seconds_until_dropped(connection, every) < 3


def test_idle_connections_end(port):
    with connect(port, ANSWERED) as connection:
        assert 0.5 < seconds_until_dropped(connection) < 3


def test_requests_that_run_are_not_dropped(port):
    with connect(port, b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        connection.settimeout(2.5)
        with pytest.raises(TimeoutError):
            connection.recv(1)


@pytest.mark.parametrize("paths", [["/large"], ["/large"] * 20])
def test_answers_that_nobody_reads_end(port, paths):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in paths))
        time.sleep(3)
        connection.settimeout(5)
        read = 0
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 20):
                read += len(part)
        assert read < LARGE


def test_answers_that_are_read_slowly_arrive(port):
    with connect(port, b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as connection:
        read = 0
        while part := connection.recv(1 << 16):
            read += len(part)
            time.sleep(0.02)
        assert read > LARGE


def test_endless_heads_end(port):
    with connect(port, b"GET / HTTP/1.1\r\n") as connection:
        # Longer than what lies in the buffers of both sides.
        header = b"X: " + b"x" * 1000 + b"\r\n"
        with pytest.raises(ConnectionError):
            connection.sendall(header * 50_000)


def test_without_files_left_the_longest_idle_connection_goes(port, monkeypatch):
    monkeypatch.setattr(connections, "HEAD", 60)
    monkeypatch.setattr(connections, "most_connections", lambda: 20)
    with contextlib.ExitStack() as stack:
        ARRIVED.clear()
        busy = stack.enter_context(connect(port, b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"))
        assert ARRIVED.wait(10)
        idle = [stack.enter_context(connect(port, half)) for half in HALVES * 20]
        with connect(port, ANSWERED) as client:
            assert client.recv(15) == b"HTTP/1.1 200 OK"
        assert seconds_until_dropped(idle[0]) < 2
        busy.settimeout(0.2)
        with pytest.raises(TimeoutError):
            busy.recv(1)


@pytest.mark.parametrize(("files", "most"), [(65_536, 62_464), (4096, 1024), (1024, 256)])
def test_connections_leave_files_for_vllm(monkeypatch, files, most):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert connections.most_connections() == most
