"""How exposed each unit of this project is, as systemd itself judges it."""

import json
import shutil
import subprocess

import module_run
import pytest
from ansible_collections.kepler.vllm.plugins.filter.kepler_instances import instances_with_defaults
from rendered import PROFILE, evaluate, render, variables_of

pytestmark = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")

BASE = ["NoNewPrivileges", "PrivateTmp", "ProtectSystem", "User"]
KERNEL = ["ProtectControlGroups", "ProtectKernelModules", "ProtectKernelTunables", "RestrictNamespaces"]
ADDRESSES = ["RestrictAddressFamilies=~AF_PACKET", "RestrictAddressFamilies=~…"]
# Unit -> settings that leave nothing open.
CLOSED = {
    "vllm@main": [
        *BASE, *KERNEL, *ADDRESSES, "AmbientCapabilities", "CapabilityBoundingSet", "LockPersonality", "NotifyAccess",
        "RestrictRealtime", "RestrictSUIDSGID", "SystemCallArchitectures", "SystemCallFilter", "UMask",
    ],
    "kepler-balancer": [
        *KERNEL, *ADDRESSES, "RestrictAddressFamilies=~AF_NETLINK", "CapabilityBoundingSet", "LockPersonality",
        "PrivateDevices", "PrivateTmp", "ProtectHome", "UMask",
    ],
    "kepler-host-metrics": [
        "NoNewPrivileges", "PrivateTmp", "ProtectSystem", "ProtectHome", "PrivateNetwork", "CapabilityBoundingSet",
        "LockPersonality", *ADDRESSES, "RestrictAddressFamilies=~AF_(INET",
    ],
    "nvidia_gpu_exporter": [
        *BASE, *KERNEL, *ADDRESSES, "RestrictAddressFamilies=~AF_NETLINK", "CapabilityBoundingSet", "LockPersonality",
        "ProtectHome",
    ],
    "kepler-share": [*BASE, "ProtectHome"],
    "kepler-model": BASE,
    "bench": BASE,
}
# Unit -> checks that may stay open so far, with what systemd counts for them.
PARTLY = {
    "vllm@main": {"ProtectHome=": 0.1, "DeviceAllow=": 0.1, "SystemCallFilter=~@resources": 0.2},
    "kepler-balancer": {
        "ProtectSystem=": 0.1, "CapabilityBoundingSet=~CAP_SET(UID|GID|PCAP)": 0.3,
        "CapabilityBoundingSet=~CAP_(CHOWN|FSETID|SETFCAP)": 0.2, "CapabilityBoundingSet=~CAP_KILL": 0.1,
        "CapabilityBoundingSet=~CAP_(DAC_*|FOWNER|IPC_OWNER)": 0.2,
        "CapabilityBoundingSet=~CAP_NET_(BIND_SERVICE|BROADCAST|RAW)": 0.1,
    },
}  # fmt: skip


def transient(command):
    """Text of a unit that is like the one that a systemd-run command starts."""
    lines, rest = ["[Service]", "ExecStart=/bin/true"], iter(command)
    for word in rest:
        if word.startswith("--property"):
            lines.append(word.partition("=")[2] or next(rest))
        elif word.startswith("--uid="):
            lines.append("User=" + word.partition("=")[2])
    return "\n".join(lines) + "\n"


def text_of(unit):
    """A unit as it would stand on a host."""
    if unit == "vllm@main":
        return render("vllm_service", "vllm@.service.j2", store_root="/opt/kepler")
    if unit == "kepler-balancer":
        return render("load_balancer", "kepler-balancer.service.j2")
    if unit in ("kepler-host-metrics", "nvidia_gpu_exporter"):
        return render("monitoring", f"{unit}.service.j2")
    if unit == "kepler-share":
        return transient(evaluate("store", variables_of("store")["__store_share_properties"]))
    asked = {
        "name": "main", "model": "/m", "revision": "main", "expected": {}, "user": "vllm", "home": "/var/lib/vllm",
        "uses": [{"engine": "port", "options": {}}], "capability": None,
        "root": "/opt/kepler", "token_file": None, "fetch": "/fetch.py", "api_key_file": "", "host": "127.0.0.1",
        "port": 8000, "input_tokens": 1, "output_tokens": 1, "requests": 1, "concurrency": 1, "program": "print()",
        "url": None, "ca_file": None, "turns": 1,
    }  # fmt: skip
    if unit == "kepler-model":
        return transient(module_run.load("model_fetch").command_of(asked, unit, "/run/environment"))
    return transient(module_run.load("vllm_bench").command_of(asked, "m"))


@pytest.mark.parametrize("unit", CLOSED)
def test_unit_stays_closed(unit, tmp_path):
    path = tmp_path / f"{unit}.service"
    path.write_text(text_of(unit))
    command = ["systemd-analyze", "security", "--offline=true", "--json=short", str(path)]
    measured = subprocess.run(command, capture_output=True, text=True, check=False)
    if not measured.stdout.startswith("["):
        pytest.skip("this systemd measures only units that it has loaded")
    found = {row["name"]: float(row["exposure"] or 0) for row in json.loads(measured.stdout)}
    partly = PARTLY.get(unit, {})
    for setting in CLOSED[unit]:
        assert any(name.startswith(setting) for name in found), f"systemd knows no check {setting}"
    judged = {name: exposure for name, exposure in found.items() if name.startswith((*CLOSED[unit], *partly))}
    assert {name: value for name, value in judged.items() if value > partly.get(name, 0)} == {}


def test_server_leaves_no_core_and_no_open_directory():
    """systemd-analyze does not judge these."""
    lines = render("vllm_service", "vllm@.service.j2", store_root="/opt/kepler").splitlines()
    assert "LimitCORE=0" in lines
    assert "RuntimeDirectoryMode=0700" in lines
    assert "TemporaryFileSystem=/dev/shm:rw,mode=1777,size=50%" in lines
    assert [line for line in lines if line.startswith("ReadWritePaths=")] == ["ReadWritePaths=/var/lib/vllm"]


@pytest.mark.parametrize("key", ["gpus", "dies"])
def test_gpus_are_numbered_by_their_place_on_the_bus(key):
    """CUDA would count the fastest first, and preflight and qualification count in PCI order."""
    (instance,) = instances_with_defaults([{"name": "main", "model": "/m", key: [2, 3]}], {}, PROFILE["serve"])
    lines = render("vllm_service", "instance.env.j2", item=instance).splitlines()
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in lines
    assert "CUDA_VISIBLE_DEVICES=2,3" in lines
    lines = render("vllm_service", "instance.env.j2", item=instance, vllm_service_device="cpu").splitlines()
    assert [line for line in lines if line.startswith("CUDA_")] == ["CUDA_VISIBLE_DEVICES="]


def test_server_tells_nobody_how_it_is_used():
    (instance,) = instances_with_defaults([{"name": "main", "model": "/m"}], {}, PROFILE["serve"])
    lines = render("vllm_service", "instance.env.j2", item=instance).splitlines()
    assert {"VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1"} <= set(lines)


def test_file_server_of_the_builder_ends_by_itself():
    """A run that broke off leaves nobody who would end it."""
    properties = evaluate("store", variables_of("store")["__store_share_properties"], store_share_seconds=77)
    assert "--property=RuntimeMaxSec=77" in properties
