"""Who gets in, with what, and what is told to whom."""

import json
import socket
import ssl
import stat
import subprocess
import time
import warnings

import pytest
from balancer_rig import KEYS, UPSTREAM_KEY, secret, trusting
from module_utils.server.api import Api, CheckFailed

MIB = 2**20


@pytest.mark.parametrize(
    "header",
    [
        None, "", "Bearer", "Bearer ", KEYS["alice"], f"Basic {KEYS['alice']}", f"Bearer {KEYS['alice'].upper()}",
        f"Bearer {KEYS['alice'][:-1]}", f"Bearer {KEYS['alice']}x", f"Bearer x{KEYS['alice']}",
        f"Bearer {KEYS['alice'].replace('.', 'x')}", f"Bearer {UPSTREAM_KEY}",
        f"Bearer {KEYS['alice']}, Bearer {KEYS['bob']}",
    ],
)  # fmt: skip
def test_nobody_without_a_key(balancer, well, header):
    running = balancer()
    for path in ("/v1/completions", "/main/v1/chat/completions"):
        status, headers, text = running.ask(path=path, Authorization=header)
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert json.loads(text)["error"]["code"] == 401
    assert all(server.asked == [] for server in well)


@pytest.mark.parametrize("header", [f"Bearer {KEYS['alice']}", f"Bearer {KEYS['bob']}", f"bearer {KEYS['alice']}"])
def test_who_has_a_key_gets_in_and_the_servers_see_their_own(balancer, well, header):
    running = balancer()
    assert running.ask(Authorization=header)[0] == 200
    (asked,) = [item for server in well for item in server.asked]
    assert asked["headers"]["authorization"] == f"Bearer {UPSTREAM_KEY}"
    running.stop()
    assert (" alice " if KEYS["alice"] in header else " bob ") in running.log


def test_on_loopback_keys_may_be_left_out(balancer, well):
    running = balancer(load_balancer_keys_file="", load_balancer_upstream_key_file="")
    assert running.ask(Authorization=None)[0] == 200
    assert running.ask(Authorization="Bearer whatever")[0] == 200
    assert all("authorization" not in item["headers"] for server in well for item in server.asked)


def test_a_body_beyond_the_limit_is_refused(balancer, well):
    running = balancer(load_balancer_max_body_mib=1)
    small = {"prompt": "p" * (MIB - 100)}
    assert running.ask(body={**small, "max_tokens": 0})[0] == 200
    status, _, text = running.ask(body={"prompt": "p" * MIB})
    assert status == 413 and "longer than 1 MiB" in json.loads(text)["error"]["message"]
    # One that does not say how long it is.
    connection = running.connect()
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Authorization", f"Bearer {KEYS['alice']}")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    for _ in range(17):
        connection.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    assert connection.getresponse().status == 413
    assert sum(len(server.asked) for server in well) == 1


@pytest.mark.parametrize("encoding", ["length", "chunked"])
def test_a_long_body_is_held_in_memory(balancer, well, encoding):
    """Prompts are written to no disk: without the directory for such files nothing changes."""
    running = balancer()
    (running.directory / "client_body").chmod(0)
    body = json.dumps({"prompt": "p" * (4 * MIB - 100), "max_tokens": 0}).encode()
    sent = [body[index:index + 1000] for index in range(0, len(body), 1000)]
    connection = running.connect()
    connection.request(
        "POST", "/v1/completions", body if encoding == "length" else iter(sent),
        {"Authorization": f"Bearer {KEYS['alice']}"}, encode_chunked=encoding == "chunked",
    )  # fmt: skip
    assert connection.getresponse().status == 200
    assert [item["body"] for server in well for item in server.asked] == [body]


@pytest.mark.parametrize(
    "path",
    [
        "/", "/metrics", "/docs", "/openapi.json", "/invocations", "/tokenize", "/v1", "/main", "/other/v1/models",
        "/v1/../invocations", "/v1/%2e%2e/metrics", "//metrics", "/health/", "/health/box/s9", "/main/metrics",
    ],
)  # fmt: skip
def test_what_is_not_the_api_stays_the_servers_own(balancer, well, path):
    running = balancer()
    for method in ("GET", "POST"):
        assert running.ask(method, path)[0] == 404
    assert all(server.asked == [] for server in well)


@pytest.mark.parametrize("path", ["/metrics/../v1/models", "/v1/x/../models", "//v1//models", "/main/../v1/./models"])
def test_servers_get_the_path_that_was_judged(balancer, well, path):
    running = balancer()
    assert running.ask("GET", path)[0] == 200
    assert [item["path"] for server in well for item in server.asked] == ["/v1/models"]


def test_metrics_of_one_server_for_who_has_a_key(balancer, well):
    running = balancer()
    assert running.ask("GET", "/metrics/box/s1", Authorization=None)[0] == 401
    assert running.ask("GET", "/metrics/box/s1")[0] == 200
    assert [[item["path"] for item in server.asked] for server in well] == [[], ["/metrics"], [], []]


ASKING = {"Origin": "http://localhost:3000", "Access_Control_Request_Method": "POST",
          "Access_Control_Request_Headers": "authorization,content-type,x-session-id"}
ALLOW = "Access-Control-Allow-Origin"


def put(well, mode):
    """Bring all servers into a state."""
    for server in well:
        server.mode = mode
        if mode == "refusing":
            server.stop()
        else:
            server.start()


def test_browser_may_ask_without_a_key(balancer, well):
    running = balancer()
    for mode in ("well", "draining", "refusing"):
        put(well, mode)
        for path in ("/v1/chat/completions", "/main/v1/models", "/metrics/box/s1", "/health", "/v1/x?a=1"):
            status, headers, text = running.ask("OPTIONS", path, Authorization=None, **ASKING)
            assert (path, status, text, headers.get_all(ALLOW)) == (path, 204, "", ["*"])
            assert "POST" in headers["Access-Control-Allow-Methods"].split(", ")
            # The wildcard would not stand for Authorization.
            assert headers["Access-Control-Allow-Headers"] == "authorization,content-type,x-session-id"
    assert all(server.asked == [] for server in well)


def test_browser_can_read_the_balancers_own_answers(balancer, well):
    running = balancer(load_balancer_max_body_mib=1, load_balancer_read_timeout=1)
    for mode, expected, question in (
        ("well", 401, {"Authorization": None}),
        ("well", 401, {"path": "/metrics/box/s1", "method": "GET", "Authorization": None}),
        ("well", 404, {"path": "/elsewhere"}),
        ("well", 400, {"path": "/v1/completions?a=1"}),
        ("well", 413, {"body": b"x" * (MIB + 1)}),
        ("well", 414, {"path": "/v1/" + "x" * 9000}),
        ("well", 400, {"method": "GET", "path": "/v1/models", "X_Long": "x" * 9000}),
        ("dying", 502, {}),
        ("hanging", 502, {}),
        ("failing", 503, {"method": "GET", "path": "/health/box/s0"}),
        ("draining", 503, {"method": "GET", "path": "/health/box/s0"}),
        ("draining", 503, {}),
        ("refusing", 503, {}),
        ("refusing", 503, {"method": "GET", "path": "/health"}),
    ):
        put(well, mode)
        status, headers, _ = running.ask(**{"Origin": "http://localhost:3000", **question})
        assert (mode, status, headers.get_all(ALLOW)) == (mode, expected, ["*"]), question


def test_servers_answers_keep_their_own_headers_for_browsers(balancer, well):
    running = balancer()
    for mode, expected in (("well", 200), ("failing", 500), ("busy", 429)):
        for server in well:
            server.mode = mode
        status, headers, _ = running.ask("GET", "/v1/models", Origin="http://localhost:3000")
        assert (status, headers.get_all(ALLOW)) == (expected, ["http://server"])


def test_queries_are_refused(balancer, well):
    status, _, text = balancer().ask(path=f"/v1/completions?api_key={KEYS['alice']}")
    assert status == 400 and "header Authorization" in text
    assert all(server.asked == [] for server in well)


def test_a_header_that_does_not_end_is_not_waited_for(balancer):
    running = balancer()
    with socket.create_connection(("127.0.0.1", running.port), 20) as held:
        held.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")
        began = time.monotonic()
        held.recv(1000)
        assert 8 < time.monotonic() - began < 15


def test_health_is_that_of_the_servers(balancer, well):
    running = balancer()
    assert running.ask("GET", "/health", Authorization=None)[0] == 200
    for server, mode in zip(well, ("failing", "draining", "dying", "well"), strict=True):
        server.mode = mode
    for _ in range(8):
        assert running.ask("GET", "/health")[0] == 200
    assert [running.ask("GET", f"/health/box/s{index}")[0] for index in range(4)] == [503, 503, 503, 200]
    well[3].stop()
    status, headers, text = running.ask("GET", "/health")
    assert (status, headers["Retry-After"]) == (503, "10")
    assert json.loads(text)["error"]["code"] == 503
    assert running.ask("GET", "/health/box/s3")[0] == 503


def test_a_server_that_hangs_is_not_well(balancer, well):
    running = balancer()
    well[0].mode = "hanging"
    assert running.ask("GET", "/health/box/s0")[0] == 503
    assert running.ask("GET", "/health/box/s1")[0] == 200
    assert [running.ask("GET", "/health")[0] for _ in range(4)] == [200] * 4


def test_nothing_secret_in_any_log(balancer, well):
    running = balancer(load_balancer_max_body_mib=1, load_balancer_read_timeout=1)
    hidden = ["tell-nobody", "hush-session"]
    for mode in ("well", "dying", "draining", "failing", "hanging", "refusing"):
        for server in well:
            server.mode = mode
            if mode == "refusing":
                server.stop()
        for key in (*KEYS.values(), "wrong-key-0123456789"):
            for path in ("/v1/completions", f"/v1/completions?key={key}", f"/elsewhere?{hidden[0]}"):
                headers = {"Authorization": f"Bearer {key}", "X_Session_ID": hidden[1]}
                running.ask(path=path, body={"prompt": hidden[0]}, **headers)
    for path in (f"/v1/completions?key={KEYS['alice']}", "/v1/completions"):
        assert running.ask(path=path, body={"prompt": hidden[0] * (MIB // 10)})[0] in (400, 413)
    with socket.create_connection(("127.0.0.1", running.port), 5) as broken:
        broken.sendall(f"POST /v1/x?{hidden[0]} HTTP/1.1\r\nAuthorization: Bearer {KEYS['bob']}\r\n\r\n".encode())
        broken.recv(1000)
    running.stop()
    assert running.log.count("\n") > 50 and "while connecting to upstream" in running.errors
    for text in (*KEYS.values(), UPSTREAM_KEY, "wrong-key", *hidden):
        assert text not in running.log + running.errors


def test_keys_stand_in_files_of_root_alone(balancer):
    running = balancer()
    files = [path for path in (running.directory / "etc").rglob("*") if path.is_file()]
    holding = [
        path for path in files
        if any(key in path.read_text().replace("\\", "") for key in (*KEYS.values(), UPSTREAM_KEY))
    ]  # fmt: skip
    assert [path.name for path in holding] == ["keys.conf", "keys.conf"]
    for path in holding:
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (0o600, 0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A certificate of 127.0.0.1 and its key."""
    directory = tmp_path_factory.mktemp("certificate")
    certificate, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=balancer",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    secret(key, key.read_text())
    return certificate, key


def speaking_tls(balancer, pair):
    return balancer(
        trusting(pair[0]), load_balancer_tls=True, load_balancer_certificate=str(pair[0]),
        load_balancer_certificate_key=str(pair[1]),
    )  # fmt: skip


def test_tls(balancer, well, pair):
    running = speaking_tls(balancer, pair)
    assert running.ask()[0] == 200
    assert running.ask("GET", "/health")[0] == 200
    running.context = None
    assert running.ask()[0] == 400
    assert sum(len(server.completions) for server in well) == 1


def test_a_benchmark_gets_in_with_key_and_certificate(balancer, pair, tmp_path):
    """As the module vllm_bench asks: the API of a pool, and each server's metrics."""
    port = speaking_tls(balancer, pair).port
    key = secret(tmp_path / "key.env", f"VLLM_API_KEY={KEYS['alice']}\n")

    def api(path, key=key, ca_file=str(pair[0])):
        return Api("", 0, key, 10, base=f"https://127.0.0.1:{port}{path}", ca_file=ca_file)

    assert api("/main").ask("/v1/models") == {"path": "/v1/models"}
    assert json.loads(api("/metrics/box/s1").read("")) == {"path": "/metrics"}
    with pytest.raises(CheckFailed, match="answered 401"):
        api("/main", secret(tmp_path / "other.env", "VLLM_API_KEY=another-key-of-nobody\n")).ask("/v1/models")
    with pytest.raises(CheckFailed, match=r"(?i)certificate.verify.failed"):
        api("/main", ca_file=None).ask("/v1/models")


# A host whose OpenSSL still speaks the old versions, as EL8's does with the policy LEGACY.
PERMISSIVE = """openssl_conf = start
[start]
ssl_conf = ssl
[ssl]
system_default = all
[all]
MinProtocol = TLSv1
CipherString = DEFAULT:@SECLEVEL=0
"""


def handshake(port, version):
    """Whether a client that offers this version of TLS alone gets through."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    with socket.create_connection(("127.0.0.1", port), 20) as plain:
        try:
            with context.wrap_socket(plain) as secure:
                return secure.version() is not None
        except ssl.SSLError:
            return False


def test_old_tls_is_refused_though_the_host_allows_it(balancer, pair, tmp_path, monkeypatch):
    (tmp_path / "openssl.cnf").write_text(PERMISSIVE)
    monkeypatch.setenv("OPENSSL_CONF", str(tmp_path / "openssl.cnf"))
    port = speaking_tls(balancer, pair).port
    versions = ssl.TLSVersion
    assert [handshake(port, version) for version in (versions.TLSv1_3, versions.TLSv1_2)] == [True, True]
    assert [handshake(port, version) for version in (versions.TLSv1_1, versions.TLSv1)] == [False, False]
