"""The module model_fetch on a host whose systemd does what a test says."""

import json
import os
import pwd
from pathlib import Path

import pytest
from ansible.module_utils import basic
from ansible_collections.kepler.vllm.plugins.filter.kepler_models import hub_models, model_record, model_record_file
from ansible_collections.kepler.vllm.plugins.modules import model_fetch as fetch_module

ROOT = Path(__file__).resolve().parents[3]

SHA = "0123456789abcdef0123456789abcdef01234567"
PORT = {"engine": "port", "options": {}}
# Keeps what systemd would read.
RUN = (
    "#!/bin/sh\nprintf '%s\\n' \"$@\" > {directory}/started\n"
    "cp -p {directory}/run/*.env {directory}/environment\ntest ! -e {directory}/refuses\n"
)
ACTIVE = "#!/bin/sh\ntest -e {directory}/active\n"


class Box:
    """A host: its home, and programs that note what they are told."""

    def __init__(self, directory, monkeypatch, capsys):
        self.directory, self.monkeypatch, self.capsys = directory, monkeypatch, capsys
        self.kept = directory / "home" / "models" / "owner--tiny"
        self.snapshot = directory / "home" / "huggingface" / "snapshot"
        self.kept.mkdir(parents=True)
        self.snapshot.mkdir(parents=True)
        for name, text in (("systemd-run", RUN), ("systemctl", ACTIVE)):
            (directory / name).write_text(text.format(directory=directory))
            (directory / name).chmod(0o755)
        (directory / "run").mkdir()
        monkeypatch.setattr(fetch_module, "RUN", str(directory / "run"))
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def is_there(self, **differs):
        (self.snapshot / "model.safetensors").write_bytes(b"12345")
        record = {
            "name": "owner/tiny", "asked": SHA, "revision": SHA, "path": str(self.snapshot),
            "files": {"model.safetensors": {"size": 5, "sha256": "a" * 64}}, **differs,
        }
        (self.kept / "record.json").write_text(json.dumps(record))

    def started(self):
        path = self.directory / "started"
        return path.read_text().splitlines() if path.exists() else None

    def run(self, **options):
        arguments = {
            "name": "owner/tiny", "revision": SHA, "fetch": "/usr/local/libexec/fetch.py",
            "user": pwd.getpwuid(os.getuid()).pw_name, "home": str(self.directory / "home"), **options,
        }
        self.monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
        with pytest.raises(SystemExit):
            fetch_module.main()
        return json.loads(self.capsys.readouterr().out)


@pytest.fixture
def box(tmp_path, monkeypatch, capsys):
    return Box(tmp_path, monkeypatch, capsys)


def test_missing_model_is_fetched_in_unit_of_the_user(box):
    answer = box.run(token_file="/etc/token.env", expected={"a$b": "c"})
    assert (answer["running"], answer["changed"]) == (True, True)
    started = box.started()
    assert "--unit=kepler-model-owner--tiny.service" in started
    assert "EnvironmentFile=/etc/token.env" in started
    asked = json.loads(started[-1].replace("$$", "$"))
    assert asked == {"name": "owner/tiny", "revision": SHA, "directory": str(box.kept), "expected": {"a$b": "c"},
                     "uses": [{"engine": "port", "options": {}}], "capability": None}


@pytest.mark.parametrize("refuses", [False, True])
def test_a_password_of_a_proxy_is_on_no_command_line(box, refuses):
    """Everybody reads those. systemd reads a file of root's, which is gone again afterwards."""
    if refuses:
        (box.directory / "refuses").touch()
    (box.directory / "run" / "kepler-model-owner--tiny.service.env").write_text("left by a run that was killed\n" * 99)
    proxy = 'http://user:p"a\\ss$word@proxy'
    answer = box.run(environment={"https_proxy": proxy, "HF_ENDPOINT": "http://hub"}, token_file="/etc/token.env")
    assert answer.get("failed", False) is refuses
    started = box.started()
    assert "word@proxy" not in "".join(started)
    files = [line for line in started if line.startswith("EnvironmentFile=")]
    assert files == [
        f"EnvironmentFile={box.directory}/run/kepler-model-owner--tiny.service.env", "EnvironmentFile=/etc/token.env",
    ]
    kept = box.directory / "environment"
    assert kept.stat().st_mode & 0o777 == 0o600
    lines = kept.read_text().splitlines()
    assert 'https_proxy="http://user:p\\"a\\\\ss$word@proxy"' in lines
    assert 'HF_ENDPOINT="http://hub"' in lines
    assert f'HOME="{box.directory}/home"' in lines
    assert list((box.directory / "run").iterdir()) == []


def test_a_model_that_is_there_is_left_alone(box):
    box.is_there()
    answer = box.run()
    assert (answer["running"], answer["changed"]) == (False, False)
    assert answer["record"]["revision"] == SHA
    assert box.run(expected={"model.safetensors": "a" * 64})["changed"] is False
    assert box.started() is None


@pytest.mark.parametrize("what", ["another revision", "a file less", "a shorter file", "another recorded hash"])
def test_what_is_not_whole_is_fetched(box, what):
    box.is_there()
    options = {}
    if what == "another revision":
        options = {"revision": "f" * 40}
    elif what == "a file less":
        (box.snapshot / "model.safetensors").unlink()
    elif what == "a shorter file":
        (box.snapshot / "model.safetensors").write_bytes(b"123")
    else:
        options = {"expected": {"model.safetensors": "b" * 64}}
    assert box.run(**options)["running"] is True
    assert box.started()


def test_a_dry_run_starts_nothing(box):
    answer = box.run(_ansible_check_mode=True)
    assert (answer["changed"], answer["running"]) == (True, False)
    assert box.started() is None


def test_a_fetch_that_runs_is_followed(box):
    (box.directory / "active").touch()
    (box.kept / "progress.json").write_text(json.dumps({"doing": "fetching", "done": 25, "total": 100}))
    answer = box.run(fresh=False)
    assert (answer["running"], answer["progress"]) == (True, "fetching, 25 % of 0.0 GB")
    assert box.started() is None


def test_what_went_wrong_is_told_once(box):
    (box.kept / "fault.json").write_text(json.dumps({"msg": "the hub is on fire"}))
    answer = box.run(fresh=False)
    assert answer["failed"]
    assert answer["msg"] == "the hub is on fire"
    # The next run tries anew.
    assert box.run()["running"] is True
    assert not (box.kept / "fault.json").exists()


def test_a_unit_that_was_killed(box):
    answer = box.run(fresh=False)
    assert "ended without a result" in answer["msg"]
    assert "journalctl -u kepler-model-owner--tiny.service" in answer["msg"]


def test_a_user_who_is_missing(box):
    assert "found no user nobody-has-this" in box.run(user="nobody-has-this")["msg"]


def test_models_of_instances():
    instances = [
        {"model": "/srv/models/a"}, {"model": "owner/b"}, {"model": "owner/b", "revision": SHA},
        {"model": "owner/b", "revision": SHA, "engine": "stock"},
    ]
    assert hub_models(instances) == [
        {"name": "owner/b", "revision": "main", "uses": [PORT]},
        {"name": "owner/b", "revision": SHA, "uses": [PORT, {"engine": "stock", "options": {}}]},
    ]
    config = {"hf-overrides": '{"rope_theta": 5}', "max-num-seqs": 4, "tokenizer": "/t"}
    assert hub_models([{"model": "owner/b", "extra_args": config}])[0]["uses"] == [
        {"engine": "port", "options": {"hf-overrides": config["hf-overrides"], "tokenizer": "/t"}}]
    assert model_record_file({"name": "owner/b", "revision": SHA}, "d") == f"d/owner--b@{SHA}.json"
    record = {"name": "n", "revision": SHA, "path": "/p", "files": {"b": {"size": 1, "sha256": "x"}}}
    assert model_record(record) == {"name": "n", "revision": SHA, "files": {"b": "x"}}
