"""Fetching: nothing is taken whose digest does not match, from wherever it comes."""

import contextlib
import http.server
import json
import os
import socketserver
import subprocess
import sys
import threading
import time

import pytest
from module_utils.store import fetch
from module_utils.store.errors import StoreError
from recipes import PLUGINS, source


@pytest.fixture
def original(tmp_path):
    path = tmp_path / "upstream" / "demo-1.0.tar"
    path.parent.mkdir()
    path.write_bytes(os.urandom(3 * fetch.BLOCK + 17))
    return path


def sources_of(tmp_path):
    return tmp_path / "sources"


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_file_comes_from_its_address(tmp_path, original):
    wanted = source(original)
    fetch.fetch_sources([wanted], str(sources_of(tmp_path)), [], [])
    stored = sources_of(tmp_path) / wanted["sha256"]
    assert stored.read_bytes() == original.read_bytes()
    assert stored.stat().st_mode & 0o777 == 0o444


def test_artifacts_come_before_the_network(tmp_path, original):
    wanted = source(original, urls=["http://127.0.0.1:1/never"])
    fetch.fetch_sources([wanted], str(sources_of(tmp_path)), [str(original.parent)], [])
    assert names(sources_of(tmp_path)) == [wanted["sha256"]]


def test_a_cache_keeps_files_under_their_own_names(tmp_path, original):
    fetch.fetch_sources([source(original)], str(sources_of(tmp_path)), [], [], name="file")
    assert names(sources_of(tmp_path)) == [original.name]


@pytest.mark.parametrize("where", ["address", "artifacts"])
def test_another_digest_is_refused_and_moved_aside(tmp_path, original, where):
    wanted = source(original, sha256="0" * 64)
    found = source(original)["sha256"]
    artifacts = [str(original.parent)] if where == "artifacts" else []
    with pytest.raises(StoreError) as caught:
        fetch.fetch_sources([wanted], str(sources_of(tmp_path)), artifacts, [])
    message = str(caught.value)
    for part in (original.name, found, "expected " + "0" * 64, "correct it in the lock"):
        assert part in message
    assert names(sources_of(tmp_path)) == ["0" * 64 + ".rejected-" + found[:16]]


def test_a_stored_file_that_was_changed_is_fetched_again(tmp_path, original):
    wanted = source(original)
    fetch.fetch_sources([wanted], str(sources_of(tmp_path)), [], [])
    stored = sources_of(tmp_path) / wanted["sha256"]
    stored.chmod(0o644)
    stored.write_bytes(b"changed")
    fetch.fetch_sources([wanted], str(sources_of(tmp_path)), [], [])
    assert stored.read_bytes() == original.read_bytes()


def test_a_download_goes_on_where_it_stopped(tmp_path, original, server):
    served = server(original.parent)
    wanted = source(original, urls=[served.url + "/" + original.name])
    part = sources_of(tmp_path) / (".%s.part" % wanted["sha256"])
    part.parent.mkdir()
    part.write_bytes(original.read_bytes()[:1000])
    fetch.fetch_sources([wanted], str(sources_of(tmp_path)), [], [])
    assert served.requests == [("/" + original.name, "bytes=1000-")]
    assert (sources_of(tmp_path) / wanted["sha256"]).read_bytes() == original.read_bytes()


def test_a_connection_that_breaks_off_is_taken_up_again(tmp_path, original, server):
    served = server(original.parent)
    broken = original.parent / "breaks-off.tar"
    broken.write_bytes(original.read_bytes())
    wanted = source(broken, urls=[served.url + "/" + broken.name])
    fetch.fetch_sources([wanted], str(sources_of(tmp_path)), [], [])
    half = len(original.read_bytes()) // 2
    assert served.requests == [("/" + broken.name, None), ("/" + broken.name, "bytes=%d-" % half)]
    assert names(sources_of(tmp_path)) == [wanted["sha256"]]


class SlowServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Serves one content to many at once; after the first half it waits until it may go on."""

    daemon_threads = True

    def __init__(self, content):
        self.content, self.go, self.seen = content, threading.Event(), []
        super().__init__(("127.0.0.1", 0), SlowHandler)


class SlowHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.seen.append(wanted)
        rest = self.server.content[int(wanted[len("bytes="):-1]) if wanted else 0:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: len(rest) // 2])
        self.wfile.flush()
        self.server.go.wait(60)
        with contextlib.suppress(OSError):
            self.wfile.write(rest[len(rest) // 2:])

    def log_message(self, *arguments):
        """Say nothing."""


WORKER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from module_utils.store import fetch
fetch.fetch_sources([json.loads(sys.argv[2])], sys.argv[3], [], [], lambda text: print(text, flush=True))
"""


@pytest.mark.parametrize("killed", [False, True])
def test_two_runs_that_share_a_source(tmp_path, original, killed):
    """One fetches, the other waits and says so; where the first dies, the second goes on with what is there."""
    served = SlowServer(original.read_bytes())
    threading.Thread(target=served.serve_forever, daemon=True).start()
    wanted = source(original, urls=["http://127.0.0.1:%d/a" % served.server_port])
    command = [sys.executable, "-c", WORKER, str(PLUGINS), json.dumps(wanted)]
    command.append(str(sources_of(tmp_path)))
    part = sources_of(tmp_path) / (".%s.part" % wanted["sha256"])
    try:
        first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while not part.exists() or part.stat().st_size < fetch.BLOCK:
            time.sleep(0.02)
        second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert second.stdout.readline().decode() == "waiting for demo-1.0.tar, which another run fetches\n"
        if killed:
            first.kill()
            first.wait()
        served.go.set()
        said = [process.communicate()[1] for process in (first, second)]
    finally:
        served.shutdown()
        served.server_close()
    assert [first.returncode, second.returncode] == [-9 if killed else 0, 0], said
    assert [wanted is None for wanted in served.seen] == ([True, False] if killed else [True])
    assert names(sources_of(tmp_path)) == [wanted["sha256"]]
    assert (sources_of(tmp_path) / wanted["sha256"]).read_bytes() == original.read_bytes()


def test_two_sources_of_one_content(tmp_path, original, server):
    """Their names differ, the unfinished file is the same."""
    served = server(original.parent)
    both = [source(original, file=name, urls=[served.url + "/" + original.name]) for name in ("a", "b")]
    fetch.fetch_sources(both, str(sources_of(tmp_path)), [], [], name="file")
    assert names(sources_of(tmp_path)) == ["a", "b"]
    fetch.fetch_sources(both, str(tmp_path / "store"), [], [])
    assert names(tmp_path / "store") == [both[0]["sha256"]]


class Rude(http.server.BaseHTTPRequestHandler):
    """Answers as no server may."""

    def do_GET(self):
        if "status" in self.path:
            self.wfile.write(b"nonsense\r\n\r\n")
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"ff\r\nabc")

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def rude():
    """Address of a server that nobody can talk to."""
    httpd = http.server.HTTPServer(("127.0.0.1", 0), Rude)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield "http://127.0.0.1:%d" % httpd.server_port
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.parametrize("what", ["/status", "/breaks", "port"])
def test_an_answer_that_is_none(tmp_path, original, server, rude, monkeypatch, what):
    """The next address is asked, and the message names the one before where there is no other."""
    monkeypatch.setattr(fetch, "TRIES", 1)
    bad = "http://127.0.0.1:port/x" if what == "port" else rude + what
    with pytest.raises(StoreError) as caught:
        fetch.fetch_sources([source(original, urls=[bad])], str(sources_of(tmp_path)), [], [])
    assert "could not be had: %s: " % bad in str(caught.value)
    served = server(original.parent)
    wanted = source(original, urls=[bad, served.url + "/" + original.name])
    fetch.fetch_sources([wanted], str(tmp_path / "other"), [], [])
    assert names(tmp_path / "other") == [wanted["sha256"]]


@pytest.mark.parametrize("what", ["/status", "/breaks", "port"])
def test_an_index_that_answers_so(tmp_path, original, rude, what):
    wanted = source(original, index={"project": "demo", "version": "1.0"})
    del wanted["urls"]
    bad = "http://127.0.0.1:port" if what == "port" else rude + what
    with pytest.raises(StoreError, match="could not be had: %s/demo/: " % bad):
        fetch.fetch_sources([wanted], str(sources_of(tmp_path)), [], [bad])


def test_a_password_of_an_index_is_not_shown(tmp_path, original):
    wanted = source(original, index={"project": "demo", "version": "1.0"})
    del wanted["urls"]
    with pytest.raises(StoreError) as caught:
        fetch.fetch_sources([wanted], str(sources_of(tmp_path)), [], ["http://user:geheim@127.0.0.1:1/simple"])
    assert "geheim" not in str(caught.value)


def test_the_next_address_is_asked_where_one_has_nothing(tmp_path, original, server):
    served = server(original.parent)
    wanted = source(original, urls=[served.url + "/gone", served.url + "/" + original.name])
    fetch.fetch_sources([wanted], str(sources_of(tmp_path)), [], [])
    assert [path for path, _ in served.requests] == ["/gone", "/" + original.name]


HTML = '<html><body><a href="files/demo-1.0.tar#sha256=x" data-requires-python="&gt;=3">demo-1.0.tar</a></body></html>'
JSON = json.dumps({"meta": {"api-version": "1.0"},
                   "files": [{"filename": "demo-1.0.tar", "url": "files/demo-1.0.tar", "hashes": {}}]})


@pytest.mark.parametrize("page", [HTML, JSON], ids=["html", "json"])
@pytest.mark.parametrize("scheme", ["http", "file"])
def test_an_index_is_asked_for_the_very_file(tmp_path, original, server, page, scheme):
    if page is JSON and scheme == "file":
        pytest.skip("a tree of files has HTML pages")
    project = tmp_path / "index" / "my-demo"
    (project / "files").mkdir(parents=True)
    (project / "index.html").write_text(page)
    (project / "files" / "demo-1.0.tar").write_bytes(original.read_bytes())
    base = server(tmp_path / "index").url if scheme == "http" else "file://%s" % (tmp_path / "index")
    wanted = source(original, index={"project": "My_Demo", "version": "1.0"})
    del wanted["urls"]
    fetch.fetch_sources([wanted], str(sources_of(tmp_path)), [], ["file:///nowhere", base])
    assert names(sources_of(tmp_path)) == [wanted["sha256"]]


def test_what_cannot_be_had_is_one_message(tmp_path, original):
    wanted = source(original, index={"project": "demo", "version": "1.0"})
    del wanted["urls"]
    with pytest.raises(StoreError) as caught:
        fetch.fetch_sources([wanted], str(sources_of(tmp_path)), [], ["file:///nowhere"])
    for part in ("demo-1.0.tar", "could not be had", "/nowhere/demo/", "store_artifacts"):
        assert part in str(caught.value)


class Bouncing(http.server.BaseHTTPRequestHandler):
    """Sends everybody on to `target`, until that is None; then it serves."""

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Authorization"), self.headers.get("Range")))
        target = self.server.targets.get(self.path)
        self.send_response(302 if target else 200)
        if target:
            self.send_header("Location", target)
        self.send_header("Content-Length", "0" if target else str(len(self.server.content)))
        self.end_headers()
        if not target:
            self.wfile.write(self.server.content)

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def bouncing(original):
    """Function that starts a server at an address of the loopback: its targets and what it has seen."""
    started = []

    def start(host):
        httpd = http.server.HTTPServer((host, 0), Bouncing)
        httpd.targets, httpd.seen, httpd.content = {}, [], original.read_bytes()
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        started.append(httpd)
        return httpd

    yield start
    for httpd in started:
        httpd.shutdown()
        httpd.server_close()


BASIC = "Basic dXNlcjpzZWNyZXQ="


@pytest.mark.parametrize(("host", "status"), [("127.0.0.2", None), ("127.0.0.1", None)], ids=["host", "port"])
@pytest.mark.parametrize("hops", [1, 2])
def test_password_stays_with_the_place_it_was_given_for(tmp_path, original, bouncing, host, status, hops):
    """At another host or port the file is fetched without; within the place, it is sent along."""
    first, other = bouncing("127.0.0.1"), bouncing(host)
    place = "http://127.0.0.1:%d" % first.server_port
    first.targets = {"/x": place + "/y", "/y": "http://%s:%d/z" % (host, other.server_port)}
    begin = "x" if hops == 2 else "y"
    wanted = source(original, urls=[place.replace("://", "://user:secret@") + "/" + begin])
    fetch.fetch_sources([wanted], str(sources_of(tmp_path)), [], [])
    assert [sent for _path, sent, _range in first.seen] == [BASIC] * hops
    assert other.seen == [("/z", status, None)]
    assert names(sources_of(tmp_path)) == [wanted["sha256"]]


def test_password_does_not_come_back(tmp_path, original, bouncing):
    """What has left the place and comes back to it is somebody else's wish."""
    first, other = bouncing("127.0.0.1"), bouncing("127.0.0.2")
    place = "http://127.0.0.1:%d" % first.server_port
    first.targets = {"/x": "http://127.0.0.2:%d/y" % other.server_port}
    other.targets = {"/y": place + "/z"}
    wanted = source(original, urls=[place.replace("://", "://user:secret@") + "/x"])
    fetch.fetch_sources([wanted], str(sources_of(tmp_path)), [], [])
    assert [sent for _path, sent, _range in first.seen] == [BASIC, None]
    assert [sent for _path, sent, _range in other.seen] == [None]


def test_password_of_an_index_stays_with_it(tmp_path, original, bouncing):
    first, other = bouncing("127.0.0.1"), bouncing("127.0.0.2")
    first.targets = {"/simple/demo/": "http://127.0.0.2:%d/demo/" % other.server_port}
    other.content = HTML.encode()
    fetch.index_entries("http://user:secret@127.0.0.1:%d/simple/demo/" % first.server_port)
    assert [first.seen[0][1], other.seen[0][1]] == [BASIC, None]


@pytest.mark.parametrize(("one", "other", "same"), [
    ("https://a/x", "https://a/y", True), ("https://a/x", "https://A:443/y", True), ("http://a:80", "http://a/y", True),
    ("https://u:p@a/x", "https://a/x", True), ("https://a/x", "http://a/x", False),
    ("http://a/x", "https://a/x", False),
    ("https://a/x", "http://a:443/x", False), ("https://a/x", "https://b/x", False),
    ("https://a/x", "https://a.b/x", False),
    ("https://a/x", "https://a:8443/x", False),
])
def test_places_that_are_one(one, other, same):
    assert (fetch.origin_of(one) == fetch.origin_of(other)) is same


def test_index_without_end(tmp_path, original, bouncing, monkeypatch):
    served = bouncing("127.0.0.1")
    served.content = b"<a>" * 1000
    monkeypatch.setattr(fetch, "INDEX_LIMIT", 1000)
    wanted = source(original, index={"project": "demo", "version": "1.0"})
    del wanted["urls"]
    with pytest.raises(StoreError, match="demo/: found more than 0 MB; expected the page of one project"):
        fetch.fetch_sources([wanted], str(sources_of(tmp_path)), [], ["http://127.0.0.1:%d" % served.server_port])


@pytest.mark.parametrize("content", [
    '{"files": 1}', "{}", '{"files": [1]}', '{"files": [{"filename": "demo-1.0.tar"}]}',
    '{"files": [{"filename": "demo-1.0.tar", "url": null}]}', '{"files": ',
])
def test_index_of_wrong_kinds(tmp_path, original, server, content):
    project = tmp_path / "index" / "demo"
    project.mkdir(parents=True)
    (project / "index.html").write_text(content)
    wanted = source(original, index={"project": "demo", "version": "1.0"})
    del wanted["urls"]
    with pytest.raises(StoreError, match=r"could not be had: http://127\.0\.0\.1:\d+/demo/: "):
        fetch.fetch_sources([wanted], str(sources_of(tmp_path)), [], [server(tmp_path / "index").url])


def test_progress_is_told_though_the_clock_goes_back(monkeypatch):
    told, now = [], [1e9]
    monkeypatch.setattr(time, "time", lambda: now[0])
    progress = fetch.Progress(1, told.append)
    progress.add(1)
    now[0] = 0.0
    monkeypatch.setattr(fetch.time, "monotonic", lambda: 1e9)
    progress.add(1)
    assert len(told) == 2
