"""What the module kepler_host_facts asks programs of the host, and when."""

import functools
import os
import re

import module_run
import pytest


@pytest.fixture
def module():
    """The module as a Python module."""
    return module_run.load("kepler_host_facts")


class Host:
    """Answers programs from a mapping, and remembers what was asked."""

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def get_bin_path(self, name):
        return f"/usr/bin/{name}" if name.replace("-", "_") in self.answers else None

    def run_command(self, command, **_):
        self.asked.append(command)
        name = command[2] if command[0] == "timeout" else command[0]
        return 0, self.answers[name.replace("-", "_")], ""


def test_a_driver_that_is_not_loaded_is_not_asked(module, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "NVIDIA_VERSION", str(tmp_path / "version"))
    box = Host(nvidia_smi="would load the driver")
    assert module.ecc(box) == []
    assert box.asked == []


@pytest.fixture
def loaded(module, tmp_path, monkeypatch):
    """Function that asks an nvidia-smi, a script, on a host with a loaded driver, by a function of the module."""
    (tmp_path / "version").write_text("470\n")
    monkeypatch.setattr(module, "NVIDIA_VERSION", str(tmp_path / "version"))
    monkeypatch.setattr(module, "SMI_TIMEOUT", 1)
    program = tmp_path / "nvidia-smi"

    def run(ask, script):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        box = Host(nvidia_smi="")
        monkeypatch.setattr(box, "get_bin_path", lambda name: str(program))
        return getattr(module, ask)(box)

    return run


@pytest.fixture
def ecc(loaded):
    """Function that asks a script for ECC counts."""
    return functools.partial(loaded, "ecc")


def test_processes_on_gpus_are_named(loaded):
    (found,) = loaded("gpu_processes", f"echo 00000000:05:00.0, {os.getpid()}")
    assert (found["address"], found["pid"]) == ("00000000:05:00.0", os.getpid())
    assert found["command"]
    assert loaded("gpu_processes", "echo 00000000:05:00.0, 1; exit 9") == []


def test_a_loaded_driver_is_asked(ecc):
    assert ecc('case "$1" in --query-gpu=pci.bus_id,*) echo 00000000:05:00.0, Enabled, 0, 3;; esac') == [
        {"address": "00000000:05:00.0", "mode": "Enabled", "volatile": 0, "aggregate": 3}
    ]


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("exec sleep 60", "did not answer within 1 s"),
        ("exit 15", "ended with status 15"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "version mismatch"),
        ("echo 00000000:05:00.0, Enabled, 0, 0; exit 14", "failed after its answer"),
        ("echo 00000000:05:00.0, Enabled, 0, 0; echo 'infoROM is corrupted at gpu 0000:05:00.0' >&2", "infoROM"),
    ],
)
def test_an_answer_that_is_not_well_is_a_fault(ecc, script, fault):
    (found,) = [die for die in ecc(script) if "fault" in die]
    assert fault in found["fault"]


def test_the_journal_is_asked_for_xids_and_lost_gpus(module):
    box = Host(journalctl="lines")
    assert module.driver_journal(box) == "lines"
    (command,) = box.asked
    (pattern,) = [word.partition("=")[2] for word in command if word.startswith("--grep=")]
    for line in ("NVRM: Xid (PCI:0000:06:00): 79", "NVRM: GPU 0000:05:00.0: RmInitAdapter failed! (0x26)",
                 "NVRM: GPU at PCI:0000:06:00 has fallen off the bus."):
        assert re.search(pattern, line)
    assert module.driver_journal(Host()) == ""


def test_a_certificate_that_is_not_there_is_not_asked_about(module, tmp_path):
    box = Host(mokutil="is not enrolled")
    assert module.enrollment(box, str(tmp_path / "mok.pub")) == "missing"
    assert box.asked == []
    (tmp_path / "mok.pub").write_text("")
    assert module.enrollment(box, str(tmp_path / "mok.pub")) == "absent"
    assert module.enrollment(Host(), str(tmp_path / "mok.pub")) is None


def test_the_mode_of_a_key(module, tmp_path):
    assert module.key_mode(str(tmp_path / "key")) is None
    (tmp_path / "key").write_text("")
    (tmp_path / "key").chmod(0o640)
    assert module.key_mode(str(tmp_path / "key"))["mode"] == "0640"


@pytest.mark.parametrize(("content", "on"), [(b"\x06\0\0\0\x01", True), (b"\x06\0\0\0\0", False), (None, False)])
def test_secure_boot(module, tmp_path, monkeypatch, content, on):
    if content is not None:
        (tmp_path / "SecureBoot").write_bytes(content)
    monkeypatch.setattr(module, "EFI_SECURE_BOOT", str(tmp_path / "SecureBoot"))
    assert module.secure_boot() is on
