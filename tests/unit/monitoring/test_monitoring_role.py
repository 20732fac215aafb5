"""What the role writes for Prometheus, and what it refuses."""

import json
import os
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from ansible_collections.kepler.vllm.plugins.filter import kepler_monitoring as judge
from ansible_run import ansible_playbook
from module_server import module_python
from test_alert_rules import PROMTOOL, needs_promtool

ROOT = Path(__file__).resolve().parents[3]

def pair(*gpus):
    return {"gpus": list(gpus), "tensor_parallel_size": 2}


HOSTS = {
    "k80-1": {"vllm_service_instances": [
        {"name": "main", "model": "/m/x", "host": "0.0.0.0", "api_key_file": "/k", "port": 8000, **pair(0, 1)},
        {"name": "local", "model": "/m/y", "port": 8001, **pair(2, 3)},
    ]},
    "k80-2": {"load_balancer_address": "10.0.0.2", "vllm_service_instances": [
        {"name": "main", "model": "/m/x", "host": "0.0.0.0", "api_key_file": "/k", "port": 8000},
    ]},
}  # fmt: skip


def play(directory, hosts, tasks, *options, where="localhost", variables=None, path=None):
    """Run tasks on the host `where`; exit status and output.

    path: directory of programs that stand first on the host's PATH.
    """
    playbook, inventory = directory / "play.yml", directory / "hosts.yml"
    environment = {"PATH": f"{path}:{os.environ['PATH']}"} if path else {}
    asked = {"hosts": where, "gather_facts": False, "environment": environment, "tasks": tasks}
    playbook.write_text(json.dumps([{"name": "Play", **asked}]))
    local = {"ansible_connection": "local", "ansible_python_interpreter": module_python()}
    inventory.write_text(json.dumps({
        "k80-hosts": {"hosts": {name: {**local, **values} for name, values in hosts.items()}},
        "all": {"hosts": {"localhost": local}, "vars": {"monitoring_directory": str(directory / "out"),
                                                       **(variables or {})}},
    }))  # fmt: skip
    done = ansible_playbook(directory, "-i", inventory, playbook, *options)
    return done.returncode, done.stdout


def include(tasks_from, **variables):
    role = {"name": "kepler.vllm.monitoring", "tasks_from": tasks_from}
    return [{"name": "Role", "ansible.builtin.include_role": role, "vars": variables}]


def targets(directory, job):
    return {
        item["labels"]["instance"]: (item["targets"][0], item["labels"].get("__metrics_path__"))
        for item in json.loads((directory / "out" / f"targets-{job}.json").read_text())
    }


def check(directory):
    command = [PROMTOOL, "check", "config", str(directory / "out" / "kepler.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "17 rules found" in done.stdout


@needs_promtool
def test_each_server_by_itself(tmp_path):
    hosts = {"k80-1": HOSTS["k80-1"], "k80-2": HOSTS["k80-2"]}
    for changed in (1, 0):
        status, printed = play(tmp_path, hosts, include("files"), where="k80-1")
        assert status == 0, printed
        assert ("changed=0 " in printed) == (not changed)
    assert targets(tmp_path, "vllm") == {
        "k80-1/main": ("127.0.0.1:8000", None), "k80-1/local": ("127.0.0.1:8001", None),
        "k80-2/main": ("10.0.0.2:8000", None),
    }  # fmt: skip
    assert targets(tmp_path, "gpu") == {"k80-1": ("127.0.0.1:9835", None), "k80-2": ("10.0.0.2:9835", None)}
    assert targets(tmp_path, "node") == {"k80-1": ("127.0.0.1:9100", None), "k80-2": ("10.0.0.2:9100", None)}
    check(tmp_path)


@needs_promtool
def test_through_the_balancer(tmp_path):
    """The key stands in a file of Prometheus' host, and in none of these."""
    key, authority = tmp_path / "key", tmp_path / "ca.pem"
    key.write_text("PrometheusKey-0123456789\n")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=ca", "-keyout", "/dev/null",
         "-out", str(authority)], check=True, capture_output=True,
    )  # fmt: skip
    asked = {
        "monitoring_balancer": "balancer.example.org:8443", "monitoring_credentials_file": str(key),
        "monitoring_ca_file": str(authority), "monitoring_interval": 5,
    }  # fmt: skip
    status, printed = play(tmp_path, HOSTS, include("files"), variables=asked)
    assert status == 0, printed
    assert targets(tmp_path, "vllm") == {
        name: ("balancer.example.org:8443", f"/metrics/{name}") for name in ("k80-1/main", "k80-1/local", "k80-2/main")
    }
    check(tmp_path)
    (job, *_) = yaml.safe_load((tmp_path / "out" / "kepler.yml").read_text())["scrape_configs"]
    assert (job["scheme"], job["authorization"]) == ("https", {"credentials_file": str(key)})
    assert not any("PrometheusKey" in path.read_text() for path in (tmp_path / "out").iterdir())


def test_playbook_checks_the_files_before_it_touches_a_host():
    first, exporters, files = yaml.safe_load((ROOT / "playbooks" / "monitoring.yml").read_text())
    assert first["hosts"] == files["hosts"] != exporters["hosts"]
    assert first["any_errors_fatal"]
    assert [task["ansible.builtin.include_role"]["tasks_from"] for task in first["tasks"]] == ["servers", "check"]


def test_a_dry_run_writes_nothing(tmp_path):
    status, printed = play(tmp_path, {"k80-2": HOSTS["k80-2"]}, include("files"), "--check", "--diff")
    assert status == 0, printed
    assert not (tmp_path / "out").exists()


def test_a_server_out_of_reach_is_said(tmp_path):
    status, printed = play(tmp_path, HOSTS, include("files"))
    assert status != 0
    text = " ".join(printed.split())
    assert "monitoring_balancer: found nothing, and k80-1/local on 127.0.0.1:8001; expected a way from" in text
    assert "nothing was changed" in text and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({"servers": []}, "vllm_service_instances"),
        ({"balancer": "balancer.example.org"}, "monitoring_balancer"),
        ({"balancer": "https://b:8443"}, "monitoring_balancer"),
        ({"credentials_file": "key"}, "monitoring_credentials_file"),
        ({"ca_file": "/a b"}, "monitoring_ca_file"),
        ({"gpu_exporter_port": "9835"}, "monitoring_gpu_exporter_port"),
        ({"node_exporter_port": 0}, "monitoring_node_exporter_port"),
        ({"interval": 0}, "monitoring_interval"),
        ({"interval": "15s"}, "monitoring_interval"),
    ],
)
def test_what_is_wrong_is_said(changes, variable):
    asked = {
        "servers": judge.server_targets(HOSTS, ["k80-2"], "p", ""), "balancer": "", "credentials_file": "",
        "ca_file": "", "gpu_exporter_port": 9835, "node_exporter_port": 9100,
    }  # fmt: skip
    assert judge.monitoring_findings(asked, "p") == []
    assert [item["variable"] for item in judge.monitoring_findings({**asked, **changes}, "p")] == [variable]


@pytest.mark.parametrize("fault", ["another", "none", "missing"])
def test_the_exporter_must_be_the_one_that_is_meant(tmp_path, fault):
    program = tmp_path / "nvidia_gpu_exporter"
    if fault != "missing":
        program.write_text("program")
    asked = {
        "monitoring_gpu_exporter": str(program),
        "monitoring_gpu_exporter_sha256": "" if fault == "none" else sha256(b"other").hexdigest(),
        "__monitoring_programs": str(tmp_path / "programs"),
    }
    status, printed = play(tmp_path, {}, include("exporter", **asked))
    assert status != 0
    text = " ".join(printed.split())
    assert f"monitoring_gpu_exporter: found {program}" in text
    assert {"another": "expected the sha256 ", "none": "sha256 as well", "missing": " missing;"}[fault] in text
    assert not (tmp_path / "programs").exists()


def test_exporter_restarts_after_interrupted_run(tmp_path):
    log, programs = tmp_path / "systemctl.log", tmp_path / "programs"
    (tmp_path / "bin").mkdir()
    programs.mkdir()
    shown = 'if [ "$1" = show ]; then echo LoadState=loaded; echo ActiveState=active; fi'
    (tmp_path / "bin" / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {log}\n{shown}\n')
    (tmp_path / "bin" / "systemctl").chmod(0o755)

    def start():
        log.write_text("")
        tasks = include("exporter_start", __monitoring_programs=str(programs))
        status, printed = play(tmp_path, {}, tasks, path=tmp_path / "bin")
        assert status == 0, printed
        return "restart nvidia_gpu_exporter.service" in log.read_text().splitlines()

    for text in ("one", "another"):
        (programs / "nvidia_gpu_exporter").write_text(text)
        assert start()
        assert not start()
