"""playbooks/plan.yml as it is run: directories, configs and a hub."""

import http.server
import json
import threading

import pytest
from ansible_run import ROOT, ansible_playbook
from known_models import LLAMA_7B, LLAMA_13B


def plan(directory, *options, **environment):
    """(exit status, what was printed, with every run of white space as one space) of one run."""
    variables = [part for option in ("plan_profile=k80", *options) for part in ("-e", option)]
    environment = {"HF_TOKEN": "", "no_proxy": "127.0.0.1", **environment}
    done = ansible_playbook(directory, "-i", "localhost,", ROOT / "playbooks" / "plan.yml", *variables, **environment)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def hub():
    """Function that starts a hub which answers with a status and a body; gives its address and what was asked."""
    servers = []

    def start(status, body):
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append((self.path, self.headers.get("Authorization")))
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_config_is_planned_and_written_as_json(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_7B))
    status, printed = plan(tmp_path, "plan_model=config.json", "plan_json=plan.json", "plan_context=2048")
    assert status == 0, printed
    assert "Served in fp32 on 4 GPU(s), fp16 on 2 or 4 GPU(s)" in printed
    written = json.loads((tmp_path / "plan.json").read_text())
    assert (written["parameters"], written["context"]) == (6738415616, 2048)


def test_a_directory_without_weights_is_planned(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_13B, "num_hidden_layers": 60}))
    status, printed = plan(tmp_path, f"plan_model={tmp_path}", "plan_max_num_seqs=8")
    assert status == 0, printed
    assert "It fits no layout of 1, 2, 4 GPUs" in printed


def test_a_model_of_the_hub_is_planned(hub, tmp_path):
    address, asked = hub(200, json.dumps(LLAMA_7B).encode())
    status, printed = plan(
        tmp_path, "plan_model=owner/name", "plan_revision=v2", HF_ENDPOINT=address + "/", HF_TOKEN="hf_secret"
    )
    assert status == 0, printed
    assert asked == [("/owner/name/resolve/v2/config.json", "Bearer hf_secret")]
    assert "hf_secret" not in printed


@pytest.mark.parametrize(("status", "body"), [(401, b"{}"), (200, b"[]"), (200, b"<html>")])
def test_an_answer_that_is_no_config(hub, tmp_path, status, body):
    address, _ = hub(status, body)
    ended, printed = plan(tmp_path, "plan_model=owner/name", HF_ENDPOINT=address)
    assert ended != 0
    assert "plan_model: found no config.json at" in printed
    assert f"status {status}" in printed
    assert "or name a directory" in printed


def test_a_hub_that_cannot_be_reached(tmp_path):
    status, printed = plan(tmp_path, "plan_model=owner/name", HF_ENDPOINT="http://127.0.0.1:1", HF_TOKEN="hf_secret")
    assert status != 0
    assert "plan_model: found no config.json at http://127.0.0.1:1/owner/name" in printed
    assert "hf_secret" not in printed


@pytest.mark.parametrize("name", ["", "./absent", "a/b/c", "owner/na me"])
def test_what_is_no_model(tmp_path, name):
    status, printed = plan(tmp_path, json.dumps({"plan_model": name}), HF_ENDPOINT="http://127.0.0.1:1")
    assert status != 0
    assert f'plan_model: found "{name}"' in printed
    assert "Traceback" not in printed


def test_options_that_make_no_sense(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_7B))
    status, printed = plan(tmp_path, f"plan_model={tmp_path}", "plan_context=long")
    assert status != 0
    assert 'plan_context: found "long"; expected an integer' in printed
