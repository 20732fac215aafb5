"""Compose projects and units of podman, as an inventory's instances make them, against the schema of compose files."""

import json
import os
import re
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import jsonschema
import pytest
import yaml
from ansible_collections.kepler.vllm.plugins.filter.kepler_compose import (
    compose_findings,
    compose_project,
    quadlet,
    quoted,
)
from ansible_collections.kepler.vllm.plugins.filter.kepler_instances import instances_with_defaults
from ansible_run import ROOT, ansible_playbook
from rendered import PROFILE

SCHEMA = Path(os.environ.get("KEPLER_CACHE", "/nonexistent")) / "programs" / "compose_spec.json"
GIVEN = {"image": "vllm:1", "device": "kepler", "settings": {}, "subnet": "172.30.80.0/24", "balancer": {}}
BALANCER = {"image": "nginx:1", "host": "127.0.0.1", "port": 8080, "directory": "/etc/kepler/compose/balancer"}
M = "/srv/models/x"
LAYOUTS = {
    "one": [{"name": "main", "model": M}],
    "two": [{"name": f"s{n}", "model": M, "gpus": [2 * n, 2 * n + 1], "tensor_parallel_size": 2, "port": 8000 + n}
            for n in range(2)],
    "four": [{"name": f"s{n}", "model": M, "gpus": [n], "tensor_parallel_size": 1, "port": 8000 + n} for n in range(4)],
}  # fmt: skip


def instances(*items):
    return instances_with_defaults(list(items), {}, PROFILE["serve"])


def project(items, **given):
    return compose_project(instances(*items), {**GIVEN, **given})


def service(**item):
    return project([{"name": "main", "model": M, **item}])["services"]["main"]


def gpus_of(one):
    (device,) = one["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    return device["device_ids"]


def unit(**item):
    parser = RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read_string(quadlet(instances({"name": "main", "model": M, **item})[0], GIVEN))
    return parser


def test_automatic_graphs_are_eager_in_a_container():
    """Whose host nobody has qualified."""
    (one,) = project([{**item, "cuda_graphs": "auto"} for item in LAYOUTS["one"]])["services"].values()
    assert "VLLM_KEPLER_CUDA_GRAPHS" not in one["environment"]
    assert "no host was qualified" in one["environment"]["VLLM_KEPLER_CUDA_GRAPHS_AUTO"]


@pytest.mark.skipif(not SCHEMA.is_file(), reason="needs the schema of compose files (tests/programs.sh)")
@pytest.mark.parametrize("balancer", [{}, BALANCER], ids=["published", "balanced"])
@pytest.mark.parametrize("device", ["kepler", "cpu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_projects_have_the_form_of_compose_files(layout, device, balancer):
    full = {"memory_max": "48G", "cpu_quota": "800%", "adapters": {"a": "/srv/a"}, "cuda_graphs": False}
    written = yaml.safe_dump(project([{**item, **full} for item in LAYOUTS[layout]], device=device, balancer=balancer))
    jsonschema.Draft201909Validator(json.loads(SCHEMA.read_text())).validate(yaml.safe_load(written))


@pytest.mark.parametrize(("layout", "gpus", "size"), [
    ("one", [["0", "1", "2", "3"]], "4"), ("two", [["0", "1"], ["2", "3"]], "2"),
    ("four", [["0"], ["1"], ["2"], ["3"]], "1"),
])  # fmt: skip
def test_layouts_give_each_server_its_gpus_by_number(layout, gpus, size):
    services = project(LAYOUTS[layout])["services"]
    assert [gpus_of(one) for one in services.values()] == gpus
    for one in services.values():
        assert one["command"][one["command"].index("--tensor-parallel-size") + 1] == size
    assert len({one["ports"][0] for one in services.values()}) == len(gpus)


def test_server_is_hardened_and_logs_and_restarts_as_a_unit():
    found = service(memory_max="48G", cpu_quota="800%")
    assert (found["read_only"], found["cap_drop"]) == (True, ["ALL"])
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert found["logging"] == {"driver": "journald", "options": {"tag": "vllm@main"}}
    assert found["restart"] == "unless-stopped"
    assert (found["mem_limit"], found["cpus"], found["stop_grace_period"]) == ("48g", 8.0, "360s")
    assert found["volumes"][0] == f"{M}:{M}:ro"


@pytest.mark.parametrize(("host", "port"), [
    ("127.0.0.1", "127.0.0.1:8000:8000"), ("localhost", "127.0.0.1:8000:8000"), ("::1", "[::1]:8000:8000"),
    ("0.0.0.0", "0.0.0.0:8000:8000"),
])  # fmt: skip
def test_port_is_published_where_the_instance_listens(host, port):
    found = service(host=host, api_key_file="/etc/kepler/key.env")
    assert found["ports"] == [port]
    assert found["env_file"] == ["/etc/kepler/key.env"]
    assert "VLLM_API_KEY" not in json.dumps(found)


def test_arguments_are_options_of_vllm_and_dollars_stay():
    found = service(extra_args={"swap-space": 1, "enable-prefix-caching": False, "hf-overrides": '{"a": "$b"}'},
                    max_model_len=2048, served_model_name="x")
    command = found["command"]
    assert command[: 6] == ["--model", M, "--host", "0.0.0.0", "--port", "8000"]
    for pair in (["--swap-space", "1"], ["--max-model-len", "2048"], ["--served-model-name", "x"],
                 ["--hf-overrides", '{"a": "$$b"}']):
        assert command[command.index(pair[0]) + 1] == pair[1]
    assert "--no-enable-prefix-caching" in command


def test_settings_of_the_inventory_reach_the_server():
    settings = {"vllm_service_drain": 60, "vllm_service_max_body": 4, "vllm_service_user": "vllm"}
    found = project([{"name": "main", "model": M, "parsers": False}], settings=settings)["services"]["main"]
    assert found["environment"] == {
        "VLLM_SERVING_DRAIN": "60", "VLLM_SERVING_BODY": "4", "HF_HUB_OFFLINE": "1", "VLLM_SERVING_PARSERS": "0"}
    assert found["stop_grace_period"] == "120s"


def test_cpu_server_asks_for_no_gpu():
    found = project([{"name": "main", "model": M}], device="cpu")["services"]["main"]
    assert "deploy" not in found
    assert found["environment"]["VLLM_KEPLER_DEVICE"] == "cpu"


def test_balanced_servers_are_published_nowhere():
    found = project(LAYOUTS["two"], balancer=BALANCER)["services"]
    assert [found[name].get("ports") for name in ("s0", "s1", "balancer")] == [None, None, ["127.0.0.1:8080:8080"]]
    addresses = [one["networks"]["default"]["ipv4_address"] for one in found.values()]
    assert len(set(addresses)) == 3


def test_unit_of_podman_keeps_the_promises_of_a_unit():
    text = quadlet(instances({"name": "main", "model": M, "memory_max": "48G", "gpus": [2, 3],
                              "tensor_parallel_size": 2, "api_key_file": "/etc/key.env"})[0], GIVEN)
    for line in ("AddDevice=nvidia.com/gpu=2", "AddDevice=nvidia.com/gpu=3", "PublishPort=127.0.0.1:8000:8000",
                 f"Volume={M}:{M}:ro", "EnvironmentFile=/etc/key.env", "ReadOnly=true", "NoNewPrivileges=true",
                 "RestartPreventExitStatus=2 78 69", "LogDriver=journald", "SyslogIdentifier=vllm@main"):
        assert f"\n{line}\n" in text
    assert "--memory=48g" in unit(memory_max="48G")["Container"]["PodmanArgs"]
    assert unit()["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.parametrize(("word", "written"), [
    ("--model", "--model"), ("a b", '"a b"'), ('{"a": 1}', '"{\\"a\\": 1}"'), ("50%", "50%%"), ("$HOME", "$$HOME"),
    ("", '""'),
])  # fmt: skip
def test_words_of_units_are_quoted(word, written):
    assert quoted(word) == written


@pytest.mark.parametrize(("changes", "given", "message"), [
    ({"memory_max": "75%"}, {}, "memory_max: found 75%"), ({"nice": 5}, {}, "nice: found 5"),
    ({"name": "balancer"}, {}, "name: found balancer"),
    ({"hosts": ["k80-1", "k80-2"]}, {}, "hosts: found k80-1, k80-2"),
    ({"api_key_file": "/etc/key.env"}, {"balancer": BALANCER}, "api_key_file: found /etc/key.env"),
])  # fmt: skip
def test_what_engines_lack_is_a_finding(changes, given, message):
    (found,) = compose_findings(instances({"name": "main", "model": M, **changes}), {**GIVEN, **given})
    assert message in f"{found['variable']}: found {found['found']}"


def test_two_servers_of_one_gpu_are_a_finding():
    items = instances({"name": "a", "model": M, "gpus": [0, 1]}, {"name": "b", "model": M, "gpus": [1, 2]})
    (found,) = compose_findings(items, GIVEN)
    assert found["found"] == "GPU 1, which a has"
    assert compose_findings(items, {**GIVEN, "device": "cpu"}) == []


def test_servers_of_two_engines_are_a_finding():
    items = [{"name": "a", "engine": "stock", "gpus": [0]}, {"name": "b", "engine": "port", "gpus": [1]}]
    (found,) = compose_findings(items, GIVEN)
    assert (found["variable"], found["found"]) == ("vllm_service_instances, b, engine", "port")
    assert "stock, as of a: an image has one engine" in found["expected"]


@pytest.fixture
def play(tmp_path):
    """Function that runs the playbook: (exit status, output)."""
    hosts = {"k80-hosts": {"hosts": {"box": {"vllm_service_instances": LAYOUTS["two"]}}}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(hosts))

    def run(**variables):
        given = {"compose_directory": str(tmp_path / "out"), **variables}
        done = ansible_playbook(
            tmp_path, "-i", "hosts.yml", "-e", json.dumps(given), ROOT / "playbooks" / "compose.yml")
        return done.returncode, done.stdout

    return run


def test_playbook_writes_files_once_and_nginx_takes_them(play, tmp_path):
    status, printed = play(compose_balancer=True)
    assert status == 0, printed
    place = tmp_path / "out" / "box"
    assert set(yaml.safe_load((place / "compose.yaml").read_text())["services"]) == {"s0", "s1", "balancer"}
    assert sorted(path.name for path in (place / "quadlet").iterdir()) == ["vllm-s0.container", "vllm-s1.container"]
    conf = (place / "balancer" / "nginx.conf").read_text()
    assert re.findall(r"server (172[0-9.:]+)", conf)[:2] == ["172.30.80.11:8000", "172.30.80.12:8000"]
    assert "X-Session-ID".lower().replace("-", "_") in conf
    assert (place / "balancer" / "keys.conf").stat().st_mode & 0o077 == 0
    status, printed = play(compose_balancer=True)
    assert (status, "changed=0" in printed) == (0, True), printed
    nginx = shutil.which("nginx")
    if nginx:
        user = "root" if os.geteuid() == 0 else "nobody"
        (place / "balancer" / "nginx.conf").write_text(conf.replace("user nginx;", f"user {user};").replace(
            "/dev/stdout", "/dev/null").replace("/tmp", str(tmp_path)))
        done = subprocess.run([nginx, "-t", "-e", "stderr", "-c", place / "balancer" / "nginx.conf"],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_balancer_beyond_loopback_needs_keys(play, tmp_path):
    status, printed = play(compose_balancer=True, compose_balancer_host="0.0.0.0")
    assert status != 0
    assert "compose_keys_file: found nothing, and compose_balancer_host 0.0.0.0" in printed
    assert not (tmp_path / "out").exists()
