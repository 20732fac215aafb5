"""What the role writes for an instance, and the unit that all instances share."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
ROLE = ROOT / "roles" / "vllm_service"
INSTANCE = {"name": "main", "model": "/srv/models/x"}
# Settings of [Service] that systemd 239 has, EL8's, as far as a server may want them; with Red Hat's own backport
# RestrictSUIDSGID (239-15).
SYSTEMD_239 = {
    "Type", "NotifyAccess", "User", "Group", "WorkingDirectory", "EnvironmentFile", "Environment",
    "RuntimeDirectory", "RuntimeDirectoryMode", "RuntimeDirectoryPreserve", "ExecStart", "ExecStartPre",
    "ExecStartPost", "ExecReload", "ExecStop", "ExecStopPost", "TimeoutStartSec", "TimeoutStopSec", "TimeoutSec",
    "WatchdogSec", "KillMode", "KillSignal", "SendSIGKILL", "Restart", "RestartSec", "RestartPreventExitStatus",
    "SuccessExitStatus", "SyslogIdentifier", "UMask", "LimitNOFILE", "LimitCORE", "LimitMEMLOCK", "NoNewPrivileges",
    "CapabilityBoundingSet", "AmbientCapabilities", "SecureBits", "ProtectSystem", "ProtectHome", "ReadWritePaths",
    "ReadOnlyPaths", "InaccessiblePaths", "PrivateTmp", "PrivateDevices", "PrivateNetwork", "PrivateUsers",
    "PrivateMounts", "TemporaryFileSystem", "BindPaths", "BindReadOnlyPaths", "DevicePolicy", "DeviceAllow",
    "ProtectKernelTunables", "ProtectKernelModules", "ProtectControlGroups", "RestrictNamespaces",
    "RestrictRealtime", "RestrictSUIDSGID", "RestrictAddressFamilies", "LockPersonality", "KeyringMode",
    "RemoveIPC", "SystemCallArchitectures", "SystemCallFilter", "SystemCallErrorNumber", "MemoryMax", "MemoryHigh",
    "CPUQuota", "CPUWeight", "Nice", "TasksMax", "IPAddressDeny", "IPAddressAllow", "OOMScoreAdjust",
}  # fmt: skip


@pytest.fixture
def write(play, tmp_path):
    """Function that writes a template of the role as it would stand on a host."""

    def run(template, instance=None, **variables):
        target = tmp_path / "written"
        files = {"src": str(ROLE / "templates" / template), "dest": str(target)}
        task = {"name": "Write", "ansible.builtin.template": files}
        defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
        item = {**defaults["vllm_service_instance_defaults"], **INSTANCE, **(instance or {})}
        known = {"store_root": "/opt/kepler", "__vllm_service_directory": "/etc/kepler/instances",
                 "__vllm_service_current": {"stat": {"lnk_target": "generations/7"}}}
        status, output = play([task], gather_facts=False, variables={**defaults, **known, "item": item, **variables})
        assert status == 0, output
        return target.read_text()

    return run


def settings(text):
    """The lines NAME=VALUE of the section [Service]."""
    joined = text.partition("[Service]")[2].partition("[Install]")[0].replace("\\\n", "")
    return [line.partition("=")[::2] for line in joined.splitlines() if line and not line.startswith("#")]


def test_the_unit_needs_no_newer_systemd(write):
    unknown = {name for name, _ in settings(write("vllm@.service.j2"))} - SYSTEMD_239
    assert unknown == set()


def test_systemd_takes_the_unit(write, tmp_path):
    unit = tmp_path / "vllm@main.service"
    unit.write_text(write("vllm@.service.j2"))
    assert "vllm" not in subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True).stderr
    measured = subprocess.run(["systemd-analyze", "security", "--offline=true", unit], capture_output=True, text=True)
    if "exposure level" not in measured.stdout:
        pytest.skip("this systemd measures only units that it has loaded")
    assert float(re.search(r"Overall exposure level for .*: ([\d.]+)", measured.stdout)[1]) <= 3.0


def test_the_times_of_the_unit_hang_together(write):
    """A stop takes the drain and vLLM's own time; a test that shortens one must not be cut off by another."""
    found = dict(settings(write("vllm@.service.j2", vllm_service_drain=10, vllm_service_watchdog=20,
                                vllm_service_start_stall=30)))
    assert (found["TimeoutStopSec"], found["WatchdogSec"], found["TimeoutStartSec"]) == ("70", "20", "30")
    environment = write("instance.env.j2", vllm_service_drain=10, vllm_service_start_stall=30)
    assert "VLLM_KEPLER_DRAIN=10\n" in environment
    assert "VLLM_KEPLER_STALL=30\n" in environment


def test_the_unit_names_its_runtime_directory(write):
    """systemd 239 does not."""
    found = dict(settings(write("vllm@.service.j2")))
    assert found["Environment"] == "RUNTIME_DIRECTORY=%t/" + found["RuntimeDirectory"]


@pytest.mark.parametrize(("limits", "lines"), [
    ({}, []),
    ({"memory_max": "48G", "cpu_quota": "800%", "nice": -5}, ["MemoryMax=48G", "CPUQuota=800%", "Nice=-5"]),
])
def test_limits_of_an_instance(write, limits, lines):
    found = [f"{name}={value}" for name, value in settings(write("instance.conf.j2", limits))]
    assert found == lines


@pytest.mark.parametrize(("said", "on"), [({}, False), ({"cuda_graphs": False}, False), ({"cuda_graphs": True}, True)])
def test_cuda_graphs_only_when_asked(write, said, on):
    assert ("VLLM_KEPLER_CUDA_GRAPHS=1\n" in write("instance.env.j2", said)) == on


def test_the_hub_is_left_alone_unless_asked(write):
    assert "HF_HUB_OFFLINE=1\n" in write("instance.env.j2")
    assert "HF_HUB_OFFLINE" not in write("instance.env.j2", vllm_service_hub_offline=False)


@pytest.mark.parametrize(("host", "asked", "opened"), [
    ("0.0.0.0", True, True), ("0.0.0.0", False, False), ("127.0.0.1", True, False),
])
def test_the_firewall_only_when_asked_and_beyond_loopback(play, tmp_path, host, asked, opened):
    """firewalld is none here: the module gets as far as saying so."""
    task = {"name": "Open", "ansible.builtin.include_tasks": str(ROLE / "tasks/firewall.yml")}
    status, output = play([task], gather_facts=False, variables={
        "vllm_service_firewalld": asked, "__vllm_service_instances": [{**INSTANCE, "host": host, "port": 8000}],
    })
    assert (status != 0) == opened, output
    assert ("firewall" in output.partition("Open the ports")[2].partition("PLAY RECAP")[0]) == opened
