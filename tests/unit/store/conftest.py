"""Fixtures of the store's tests."""

import functools
import http.server
import sys
import threading
import types
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from module_utils.store import build
from recipes import RangeHandler


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty store, with its logs beside it."""
    monkeypatch.setattr(build, "LOGS", str(tmp_path / "log"))
    yield str(tmp_path / "kepler")
    # Outputs have lost their right to be written: give it back, so that the directory can go.
    build.remove_tree(str(tmp_path / "kepler"))


@pytest.fixture
def server(tmp_path):
    """Function that serves a directory over HTTP with ranges: its address and the list of requests."""
    started = []

    def serve(directory):
        requests = []
        handler = functools.partial(RangeHandler, str(directory), requests)
        httpd = http.server.HTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        started.append(httpd)
        return types.SimpleNamespace(url="http://127.0.0.1:%d" % httpd.server_port, requests=requests)

    yield serve
    for httpd in started:
        httpd.shutdown()
