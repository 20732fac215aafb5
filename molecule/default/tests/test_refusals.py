"""What operators get wrong: one message that says what to do, and a host that is as it was."""

from __future__ import annotations

import shutil

import yaml
from conftest import PROJECT, standins

SNAPSHOT = (PROJECT / "molecule" / "default" / "snapshot.sh").read_text()


def instance(**differs: object) -> str:
    """The variable vllm_service_instances with one instance that differs from the stand-in's."""
    import json

    base = {"name": "demo", "model": standins.model_name(), "host": "0.0.0.0",
            "api_key_file": "/etc/kepler-standin/api-key.env"}
    return json.dumps({"vllm_service_instances": [{**base, **differs}]})


def assert_refused(host, play, name: str, variables: list[str], *parts: str) -> None:
    """The run fails, says each of `parts`, and leaves the host as it was."""
    before = host.check_output(SNAPSHOT)
    status, printed = play(name, *variables)
    assert status != 0, printed
    for part in parts:
        assert part in printed, f"{part!r} is missing in: {printed[-3000:]}"
    assert "Traceback" not in printed
    assert host.check_output(SNAPSHOT) == before


def test_faults_of_an_instance_come_in_one_report(k80, play):
    """All that the inventory alone shows; the host is not even asked."""
    wrong = instance(tensor_parallel_size=4, gpus=[0, 1], port="8000", api_key_file=None, tensor_paralel_size=4)
    where = "vllm_service_instances[0]"
    assert_refused(
        k80, play, "k80-standin", [wrong], "nothing was changed", f"{where}.tensor_paralel_size", "unknown key",
        f"{where}.tensor_parallel_size", "found 4", f"{where}.port", "Take the quotes away", "api_key_file",
    )


def test_a_missing_model_and_a_port_in_use_are_refused(k80, play):
    """Our own server may hold its port; another process may not."""
    listen = "import socket, time; s = socket.create_server(('0.0.0.0', 8765)); time.sleep(120)"
    k80.run(f"systemd-run --unit kepler-test-listener --collect /usr/bin/python3 -c \"{listen}\"")
    try:
        assert_refused(
            k80, play, "k80-standin", [instance(port=8765, model="/srv/models/nothing")], "nothing was changed",
            "vllm_service_instances[0].model", "/srv/models/nothing", "vllm_service_instances[0].port", "8765",
        )
    finally:
        k80.run("systemctl stop kepler-test-listener")


def test_a_wrong_hash_in_the_lock(k80, play, tmp_path, monkeypatch):
    """The file is there and is another one: nothing is built from it."""
    profiles = shutil.copytree(PROJECT / "profiles", tmp_path / "profiles")
    path = profiles / "k80/lock/sources.yml"
    text = path.read_text()
    right = yaml.safe_load(text)["sources"]["vllm"]["sha256"]
    wrong = "f" * 64
    path.write_text(text.replace(right, wrong))
    # Other hash, other path: the store is asked to build, and refuses.
    current = k80.check_output("readlink /opt/kepler/current")
    outputs = k80.check_output("ls /opt/kepler/store")
    monkeypatch.setenv("KEPLER_PROFILES_DIR", str(profiles))
    status, printed = play("k80-standin", playbook="playbooks/build.yml")
    assert status != 0
    for part in ("source vllm", f"has the sha256 {right}", f"expected {wrong}", "correct it in the lock"):
        assert part in printed, printed[-3000:]
    assert k80.check_output("readlink /opt/kepler/current") == current
    assert k80.check_output("ls /opt/kepler/store") == outputs
    assert k80.service("vllm@demo").is_running
    assert k80.check_output("ls /opt/kepler/build") == ""


def test_findings_of_a_host_come_in_one_report(other, play):
    """No board, and for this one run another release's identity."""
    other.run("cp -L /etc/os-release /var/tmp/os-release && rm /etc/os-release && "
              "sed 's/8[.]10/9.4/g' /var/tmp/os-release > /etc/os-release")
    try:
        assert_refused(
            other, play, "other-standin", [], "nothing was changed", "no Tesla K80 on the PCI bus", "Rocky Linux 9.4",
            "Enterprise Linux 8",
        )
    finally:
        other.run("ln -sf ../usr/lib/os-release /etc/os-release")
