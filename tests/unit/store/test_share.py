"""The file server of a builder. Runs on Python 3.6 too."""

import base64
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from ports import free_port

SHARE = Path(__file__).resolve().parents[3] / "roles" / "store" / "files" / "share.py"
PASSWORD = "open sesame"
FILES = 64
BIG = 20 << 20  # more than the buffers between two sockets hold


def start(directory, port, password=PASSWORD, notify=""):
    environment = dict(os.environ, KEPLER_SHARE_PASSWORD=password, NOTIFY_SOCKET=str(notify))
    return subprocess.Popen(
        ["/bin/sh", "-c", 'ulimit -n %d; exec "$@"' % FILES, "sh", sys.executable, str(SHARE), str(directory),
         "127.0.0.1", str(port)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
    )


@pytest.fixture
def share(tmp_path):
    """A running share with few files: function from (path, headers) to (status, content)."""
    directory = tmp_path / "published"
    (directory / "below").mkdir(parents=True)
    (directory / "big.tar").write_bytes(bytes(BIG))
    (directory / "a.tar").write_bytes(bytes(range(256)) * 1000)
    (directory / "below" / "b.tar").write_text("not meant")
    (directory / ".hidden").write_text("not meant")
    (tmp_path / "secret").write_text("not meant")
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(tmp_path / "notify"))
    notify.settimeout(30)
    port = free_port()
    process = start(directory, port, notify=tmp_path / "notify")
    assert notify.recv(100) == b"READY=1"

    def ask(path, password=PASSWORD, **headers):
        if password is not None:
            credentials = base64.b64encode(("any:" + password).encode()).decode()
            headers["Authorization"] = "Basic " + credentials
        request = urllib.request.Request("http://127.0.0.1:%d%s" % (port, path), headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, b""

    ask.port, ask.process = port, process
    yield ask
    process.terminate()
    process.communicate()
    notify.close()


CONTENT = bytes(range(256)) * 1000


def test_a_file(share):
    assert share("/a.tar") == (200, CONTENT)


def test_a_download_that_goes_on(share):
    assert share("/a.tar", Range="bytes=100000-") == (206, CONTENT[100000:])
    assert share("/a.tar", Range="bytes=256000-") == (416, b"")


@pytest.mark.parametrize("password", [None, "", "open", PASSWORD + "!"])
def test_without_the_password(share, password):
    assert share("/a.tar", password) == (401, b"")


CREDENTIALS = base64.b64encode(("any:" + PASSWORD).encode()).decode()


@pytest.mark.parametrize("header", [
    "Basic", "Basic !!!", "Bearer " + PASSWORD, "Basic b3BlbiBzZXNhbWU=", "Bearer " + CREDENTIALS, CREDENTIALS,
])
def test_a_header_that_is_none(share, header):
    assert share("/a.tar", None, Authorization=header) == (401, b"")


@pytest.mark.parametrize("path", [
    "/", "/none.tar", "/below/b.tar", "/below", "/.hidden", "/../secret", "/%2e%2e%2fsecret", "//etc/passwd", "/..",
])
def test_nothing_else(share, path):
    assert share(path) == (404, b"")


def half_sent(client):
    client.sendall(b"GET /a.tar HTTP/1.1\r\nAuthor")


def wrong_password(client):
    client.sendall(b"GET /a.tar HTTP/1.1\r\nAuthorization: Basic xxxx\r\n")


@pytest.mark.parametrize("sends", [lambda client: None, half_sent, wrong_password], ids=["nothing", "half", "wrong"])
def test_idle_clients_are_let_go_first(share, sends):
    """More of them than the server has files: whoever knows the password is served at once."""
    with contextlib.ExitStack() as stack:
        for _ in range(FILES + 40):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", share.port), 10))
            with contextlib.suppress(OSError):
                sends(client)
        began = time.monotonic()
        for _ in range(3):
            assert share("/a.tar") == (200, CONTENT)
        assert time.monotonic() - began < 10
        # Connections that trickle on do not change that.
        assert len(os.listdir("/proc/%d/fd" % share.process.pid)) < FILES
    assert share.process.poll() is None


def test_download_is_not_let_go(share):
    """It was there before, and knows the password."""
    credentials = base64.b64encode(("any:" + PASSWORD).encode()).decode()
    with socket.create_connection(("127.0.0.1", share.port), 30) as download, contextlib.ExitStack() as stack:
        download.sendall(("GET /big.tar HTTP/1.1\r\nAuthorization: Basic %s\r\n\r\n" % credentials).encode())
        found = download.recv(1000)
        for _ in range(FILES + 40):
            stack.enter_context(socket.create_connection(("127.0.0.1", share.port), 10))
        assert share("/a.tar") == (200, CONTENT)
        while True:
            data = download.recv(1 << 16)
            if not data:
                break
            found += data
    assert found.partition(b"\r\n\r\n")[2] == bytes(BIG)


def test_a_port_that_is_taken(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        process = start(tmp_path, port)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert said.startswith("store_share_address, store_share_port: found 127.0.0.1 and %d" % port)
    assert "Traceback" not in said


def test_no_password_no_share(tmp_path):
    process = start(tmp_path, free_port(), password="")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert said == "KEPLER_SHARE_PASSWORD: found nothing; expected a password.\n"
