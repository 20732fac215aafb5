"""What Prometheus is told of a fleet: the units on the hosts, and a real Prometheus behind the balancer."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest
from conftest import play
from generations import active
from standin.settings import BUILDER
from waiting import until

SERVERS = ("k80-first", "k80-second")
TEXTFILE = "/var/lib/node_exporter/textfile_collector/kepler.prom"
# As tests/programs.sh unpacks them.
WHERE = f"{os.environ['KEPLER_CACHE']}/programs/usr/bin:{os.environ['PATH']}"
PROMETHEUS, PROMTOOL = (shutil.which(name, path=WHERE) for name in ("prometheus", "promtool"))
# In the place of nvidia_gpu_exporter, which is not in the lock: what its unit allows a program, and who reaches it.
EXPORTER = b"""#!/usr/libexec/platform-python
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"uid %d\\n" % os.getuid())
host, port = sys.argv[1].split("=", 1)[1].rsplit(":", 1)
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def monitoring(fleet, tmp_path_factory):
    """Function that runs playbooks/monitoring.yml with further variables: (exit status, output, directory of files)."""
    directory = tmp_path_factory.mktemp("monitoring")
    balancer = fleet["k80-builder"]
    (directory / "key").write_text(balancer.check_output("cut -d' ' -f2 /etc/kepler-standin/clients"))
    (directory / "ca.pem").write_text(balancer.check_output("cat /etc/kepler-standin/certificate.pem"))
    (directory / "exporter").write_bytes(EXPORTER)
    said = {
        "monitoring_directory": str(directory),
        # The fleet's are made of facts, which this playbook does without.
        "load_balancer_address": "{{ inventory_hostname }}",
        "monitoring_balancer": f"127.0.0.1:{BUILDER.port}",
        "monitoring_ca_file": str(directory / "ca.pem"),
        "monitoring_credentials_file": str(directory / "key"),
        "monitoring_interval": 5,
        "monitoring_gpu_exporter": str(directory / "exporter"),
        "monitoring_gpu_exporter_sha256": hashlib.sha256(EXPORTER).hexdigest(),
    }

    def run(**variables) -> tuple[int, str, Path]:
        arguments = ("playbooks/monitoring.yml", "-e", json.dumps({**said, **variables}))
        return *play(*arguments), directory

    return run


@pytest.fixture(scope="module")
def files(monitoring) -> Path:
    """Directory with what was written for Prometheus; a second run finds nothing to do."""
    for run in ("first", "second"):
        status, printed, directory = monitoring()
        assert status == 0, printed[-3000:]
        changes = set(re.findall(r"changed=(\d+)", printed))
        assert (changes == {"0"}) == (run == "second"), printed[-3000:]
    return directory


@pytest.fixture(scope="module")
def prometheus(files, tmp_path_factory):
    """Function that asks the API of a Prometheus that runs with the written configuration."""
    if not PROMETHEUS:
        pytest.skip("no prometheus: tests/programs.sh gets it")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        PROMETHEUS, f"--config.file={files / 'kepler.yml'}", f"--web.listen-address={address}",
        f"--storage.tsdb.path={tmp_path_factory.mktemp('prometheus')}", "--log.level=error",
    ]

    def is_ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://{address}/-/ready", timeout=60):
                return True
        except OSError:
            return False

    def ask(path: str) -> dict:
        with urllib.request.urlopen(f"http://{address}/api/v1/{path}", timeout=60) as answer:
            return json.load(answer)["data"]

    with subprocess.Popen(command) as process:
        try:
            until(is_ready, "Prometheus does not start")
            yield ask
        finally:
            process.terminate()


@pytest.mark.parametrize("server", SERVERS)
def test_the_collector_writes_what_the_host_is(fleet, files, server):
    host = fleet[server]
    assert host.check_output("systemctl is-active kepler-host-metrics.timer") == "active"
    host.check_output("systemctl start kepler-host-metrics.service")
    restarts = host.check_output("systemctl show vllm@main --property NRestarts --value")
    lines = host.check_output(f"cat {TEXTFILE}").splitlines()
    for line in (
        f"kepler_generation {active(host)}",
        f'kepler_unit_restarts_total{{unit="vllm@main.service"}} {restarts}',
        'kepler_unit_state{state="active",unit="vllm@main.service"} 1',
        "kepler_driver_mismatch 0",
        "kepler_host_metrics_unreadable 0",
    ):
        assert line in lines
    if PROMTOOL:
        done = subprocess.run(
            [PROMTOOL, "check", "metrics"], input="\n".join([*lines, ""]), text=True, capture_output=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_exporter_runs_as_nobody_in_particular_on_loopback(fleet, files):
    host = fleet["k80-first"]
    answer = until(lambda: host.run("curl --silent --fail http://127.0.0.1:9835/metrics").stdout, "no answer")
    assert int(answer.split()[1]) > 60000
    address = host.check_output("hostname --ip-address").split()[0]
    assert fleet["k80-second"].run(f"curl --silent --max-time 10 http://{address}:9835/metrics").rc != 0


def test_another_exporter_is_refused(monitoring, files):
    status, printed, _ = monitoring(monitoring_gpu_exporter_sha256="0" * 64)
    assert status != 0
    assert "monitoring_gpu_exporter: found" in printed
    assert f"expected the sha256 {'0' * 64}" in printed


def test_prometheus_reaches_each_server_through_the_balancer(prometheus):
    def states():
        targets = prometheus("targets?state=active")["activeTargets"]
        return {item["labels"]["instance"]: item["health"] for item in targets if item["scrapePool"] == "kepler-vllm"}

    wanted = {f"{server}/main": "up" for server in SERVERS}
    until(states, "not all are up", wanted.__eq__)

    def reporting() -> set[str]:
        found = prometheus("query?query=count(vllm:num_requests_running)by(instance)")["result"]
        return {item["metric"]["instance"] for item in found}

    # What was scraped is there to be asked for a moment later.
    until(reporting, "not all report", set(wanted).__eq__)


def test_prometheus_evaluates_every_rule(prometheus):
    def rules():
        return [rule for group in prometheus("rules")["groups"] for rule in group["rules"]]

    found = until(
        rules, "rules without a value", lambda rules: rules and all(rule["health"] != "unknown" for rule in rules)
    )
    assert [rule for rule in found if rule["health"] != "ok"] == []
