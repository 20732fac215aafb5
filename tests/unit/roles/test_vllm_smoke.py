"""The smoke test against servers that answer what no working model answers."""

import http.server
import json
import os
import threading
from pathlib import Path

import pytest
from raw_server import answering

GOOD = {"text": " jumps over", "logprobs": {"token_logprobs": [-0.1, -2.5, 0.0]}}


class Server:
    """Answers /v1/completions with what is queued, the last answer for ever; wants a key where it has one."""

    def __init__(self):
        self.answers, self.key, self.asked = [], None, []
        self.models = {"data": [{"id": "m"}]}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self, status, body):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def do_GET(self):
                allowed = not outer.key or self.headers.get("Authorization") == f"Bearer {outer.key}"
                self.answer(200 if allowed else 401, json.dumps(outer.models))

            def do_POST(self):
                outer.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                choice = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                # NaN goes over the wire as Python writes it.
                self.answer(200, json.dumps({"choices": [choice]}))

            def log_message(self, *arguments):
                """Say nothing."""

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.httpd.server_port
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.httpd.shutdown()


@pytest.fixture
def ask(play, server):
    """Run the module against the server: (exit status, output in one line)."""

    def run(**options):
        task = {"name": "Ask", "kepler.vllm.vllm_smoke": {"name": "main", "port": server.port, "tokens": 3, **options}}
        status, output = play([task], gather_facts=False)
        assert "Traceback" not in output
        return status, " ".join(output.split())

    return run


def test_a_working_model(ask, server, tmp_path):
    server.answers, server.key = [GOOD], "secret-of-the-test"
    (tmp_path / "key.env").write_text("VLLM_API_KEY=secret-of-the-test\n")
    status, output = ask(api_key_file=str(tmp_path / "key.env"), expect="jumps")
    assert status == 0, output
    assert "secret-of-the-test" not in output
    assert len(server.asked) == 2
    assert server.asked[0] == server.asked[1]
    assert (server.asked[0]["temperature"], server.asked[0]["max_tokens"]) == (0, 3)


WRONG = {
    "no number": ([{**GOOD, "logprobs": {"token_logprobs": [-0.1, float("nan"), -1]}}], "no model has"),
    "a positive one": ([{**GOOD, "logprobs": {"token_logprobs": [-0.1, 0.5, -1]}}], "no model has"),
    "nothing where one should be": ([{**GOOD, "logprobs": {"token_logprobs": [-0.1, None, -1]}}], "no model has"),
    "too few tokens": ([{**GOOD, "logprobs": {"token_logprobs": [-0.1]}}], "1 tokens instead of 3"),
    "none at all": ([{"text": ""}], "0 tokens instead of 3"),
    "another answer each time": ([GOOD, {**GOOD, "text": " sleeps"}], "two answers to one greedy question"),
}


@pytest.mark.parametrize("what", WRONG)
def test_garbage(ask, server, what):
    server.answers, message = list(WRONG[what][0]), WRONG[what][1]
    status, output = ask()
    assert status != 0
    assert message in output
    assert "vllm@main: asked to go on from" in output
    assert "playbooks/rollback.yml" in output


def test_another_text_than_expected(ask, server):
    server.answers = [GOOD]
    status, output = ask(expect="never")
    assert status != 0
    assert "which does not hold" in output


def test_keys(ask, server, tmp_path):
    server.answers, server.key = [GOOD], "k"
    assert "/v1/models answered 401" in ask()[1]
    assert "found a file that cannot be read" in ask(api_key_file=str(tmp_path / "none"))[1]
    (tmp_path / "empty.env").write_text("OTHER=1\n")
    assert "found no line VLLM_API_KEY=" in ask(api_key_file=str(tmp_path / "empty.env"))[1]


def test_nobody_there(ask, server):
    server.httpd.shutdown()
    server.httpd.server_close()
    status, output = ask()
    assert status != 0
    assert "/v1/models:" in output


def test_a_server_of_something_else(ask, server):
    server.models = {"data": []}
    status, output = ask()
    assert status != 0
    assert "vllm@main: asked to go on from" in output
    assert '/v1/models answered {"data": []}; expected data.0.' in output


def test_half_an_answer_is_no_answer_of_a_ready_server(play):
    """It is waited for, until it is late."""
    with answering(b"SSH-2.0-x\r\n") as port:
        task = {"name": "Wait", "kepler.vllm.vllm_ready": {"name": "main", "port": port, "timeout": 1}}
        status, output = play(
            [task], gather_facts=False,
            programs={"systemctl": "echo ActiveState=active; echo SubState=running", "journalctl": "exit 0"},
        )
    assert status != 0
    assert "Traceback" not in output
    assert "found active (running), 0 restarts after 1 s; expected an answer" in " ".join(output.split())


@pytest.mark.parametrize("meanwhile", [
    "echo ActiveState=inactive", "echo ActiveState=active", "echo ActiveState=deactivating; echo NRestarts=3",
    "echo ActiveState=failed",
])
def test_a_restart_that_systemd_has_yet_to_do_is_waited_for(play, tmp_path, meanwhile):
    """The old server is no answer, and that it has ended is no failure."""
    asked = tmp_path / "asked"
    show = (f"if [ -e {asked} ]; then echo ActiveState=active; echo SubState=running; exit; fi\n"
            f"touch {asked}; echo Job=77; echo SubState=any; {meanwhile}")
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as port:
        task = {"name": "Wait", "kepler.vllm.vllm_ready": {"name": "main", "port": port, "timeout": 60}}
        status, output = play([task], gather_facts=False, programs={"systemctl": show, "journalctl": "exit 0"})
    assert status == 0, output
    assert output.count("vllm@main") == 1, output


def test_a_unit_at_rest_is_given_up(play):
    task = {"name": "Wait", "kepler.vllm.vllm_ready": {"name": "main", "port": 9, "timeout": 60}}
    status, output = play(
        [task], gather_facts=False,
        programs={"systemctl": "echo ActiveState=inactive; echo SubState=dead", "journalctl": "echo its last line"},
    )
    assert status != 0
    assert "found inactive (dead), 0 restarts after its last start; expected an answer" in " ".join(output.split())
    assert "its last line" in output


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the token lies in /run")
def test_server_that_answers_garbage_stays_held(play, server):
    server.answers = [GOOD]  # of fewer tokens than were asked for
    name = f"test-{os.getpid()}"
    held = Path(f"/run/vllm-{name}.held")
    held.write_text("token")
    role = {"name": "kepler.vllm.vllm_service", "tasks_from": "smoke"}
    smoke = {"name": "Look", "ansible.builtin.include_role": role}
    instance = {"name": name, "model": "m", "host": "127.0.0.1", "port": server.port}
    try:
        status, output = play(
            [smoke], gather_facts=False, variables={"vllm_service_instances": [instance]},
            programs={"systemctl": "echo ActiveState=active; echo SubState=running"},
        )
        assert status != 0
        assert "3 tokens instead of 8" in " ".join(output.split()), output
        assert held.exists()
    finally:
        held.unlink(missing_ok=True)
