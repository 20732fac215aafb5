"""What the role repos asks a network for goes through the proxy that the inventory names."""

import http.server
import threading
from pathlib import Path

import pytest
import yaml

PLAYBOOKS = Path(__file__).resolve().parents[3] / "playbooks"


@pytest.fixture
def proxy():
    """Address of a proxy that answers 502 to everything, and what it was asked for."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_error(502)

        def log_message(self, *arguments):
            """Say nothing."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def test_a_key_is_fetched_through_the_proxy(play, proxy, monkeypatch):
    address, seen = proxy
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    key = {"key": "http://keys.example.org/key.asc", "fingerprint": "A" * 40, "variable": "repos_epel_gpgkey"}
    status, printed = play(
        [{"name": "Import", "rpm_signing_keys": {"keys": [key]}}], "--check", gather_facts=False,
        environment={"http_proxy": address},
    )
    assert status != 0
    assert "repos_epel_gpgkey: found" in printed
    assert seen == ["http://keys.example.org/key.asc"]


@pytest.mark.parametrize("name", ["host", "build", "builder", "bundle"])
def test_every_play_that_installs_passes_the_proxy_on(name):
    plays = [play for play in yaml.safe_load((PLAYBOOKS / f"{name}.yml").read_text()) if "roles" in play]
    assert plays
    for play in plays:
        assert play["environment"] == "{{ proxy_env | default({}) }}", play["name"]
