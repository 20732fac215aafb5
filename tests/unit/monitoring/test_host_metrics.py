"""The program that writes what no exporter says, with stand-ins for the programs that it asks."""

import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

FILES = Path(__file__).resolve().parents[3] / "roles" / "monitoring" / "files"
PROGRAM = FILES / "host_metrics.py"
sys.path.insert(0, str(FILES))
import host_metrics  # noqa: E402

JOURNAL = """\
1763700000.123456 k80 kernel: NVRM: loading NVIDIA UNIX x86_64 Kernel Module  470.256.02
1763700100.000001 k80 kernel: NVRM: Xid (PCI:0000:05:00): 13, pid=4242, Graphics SM Warp Exception
1763700200.000001 k80 kernel: NVRM: Xid (PCI:0000:05:00): 13, pid=4242, Graphics SM Warp Exception
1763700150.500000 k80 kernel: NVRM: Xid (PCI:0000:86:00): 79, GPU has fallen off the bus.
1763700300.500000 k80 kernel: NVRM: Xid (0000:86:00): 45, pid=7, Ch 00000010
1763700400.500000 k80 kernel: usb 1-1: Xid of another kind
"""
UNITS = """\
NRestarts=3
Id=vllm@main.service
LoadState=loaded
ActiveState=active

NRestarts=5
Id=vllm@other.service
LoadState=loaded
ActiveState=failed

NRestarts=0
Id=kepler-balancer.service
LoadState=not-found
ActiveState=inactive
"""
STAMP = {"schema": 1, "result": "failed", "size": 2, "dies": [0, 1]}


@pytest.fixture
def host(tmp_path):
    """A host on which everything can be read; run() returns the samples written, by metric and labels."""
    for name, text in (("journalctl", JOURNAL), ("systemctl", UNITS)):
        program = tmp_path / name
        (tmp_path / (name + ".text")).write_text(text)
        program.write_text(f"#!/bin/sh\necho \"$@\" > '{program}.args'\ncat '{program}.text'\n")
        program.chmod(0o755)
    generation = tmp_path / "store" / "generations" / "7"
    generation.mkdir(parents=True)
    (tmp_path / "store" / "current").symlink_to(generation)
    (tmp_path / "stamp.json").write_text(json.dumps(STAMP))
    return tmp_path


def run(host):
    output = host / "kepler.prom"
    subprocess.run(
        [sys.executable, str(PROGRAM), str(output), str(host / "store"), str(host / "stamp.json")],
        env=dict(os.environ, PATH=f"{host}:/usr/bin:/bin"), check=True,
    )
    lines = output.read_text().splitlines()
    return {line.rsplit(" ", 1)[0]: int(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def test_what_is_written(host):
    found = run(host)
    assert found['kepler_xid_total{pci="0000:05:00",xid="13"}'] == 2
    assert found['kepler_xid_last_timestamp_seconds{pci="0000:05:00",xid="13"}'] == 1763700200
    assert found['kepler_xid_total{pci="0000:86:00",xid="79"}'] == 1
    assert found['kepler_xid_total{pci="0000:86:00",xid="45"}'] == 1
    assert found['kepler_unit_restarts_total{unit="vllm@main.service"}'] == 3
    assert found['kepler_unit_state{state="failed",unit="vllm@other.service"}'] == 1
    assert not [name for name in found if "kepler-balancer" in name]
    assert found["kepler_generation"] == 7
    assert found["kepler_qualification_passed"] == 0
    assert found["kepler_qualification_dies"] == 2
    assert found['kepler_qualification_info{result="failed"}'] == 1
    assert found["kepler_host_metrics_unreadable"] == 0
    assert abs(found["kepler_host_metrics_timestamp_seconds"] - time.time()) < 60


def test_what_programs_are_asked(host):
    run(host)
    assert "--boot" in (host / "journalctl.args").read_text()
    assert "vllm@*.service" in (host / "systemctl.args").read_text()


def test_prometheus_reads_the_file_whole_or_not_at_all(host):
    run(host)
    path = host / "kepler.prom"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    before = path.stat().st_ino
    run(host)
    assert path.stat().st_ino != before
    assert [item.name for item in host.iterdir() if item.name.startswith("kepler.prom")] == ["kepler.prom"]


@pytest.mark.parametrize(
    ("name", "script", "lost"),
    [
        ("journalctl", "exit 1", "kepler_xid_total"),
        ("systemctl", "exit 1", "kepler_unit_restarts_total"),
        ("systemctl", "echo LoadState=loaded", "kepler_unit_restarts_total"),
    ],
)
def test_what_cannot_be_read_is_counted_and_the_rest_written(host, name, script, lost):
    (host / name).write_text(f"#!/bin/sh\n{script}\n")
    found = run(host)
    assert found["kepler_host_metrics_unreadable"] == 1
    assert not [item for item in found if item.startswith(lost)]
    assert found["kepler_generation"] == 7


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"result": "passed", "size": "many"}'])
def test_a_broken_stamp_is_counted(host, text):
    (host / "stamp.json").write_text(text)
    found = run(host)
    assert found["kepler_host_metrics_unreadable"] == 1
    assert not [item for item in found if item.startswith("kepler_qualification")]


def test_a_host_without_store_and_stamp_is_no_fault(host):
    (host / "stamp.json").unlink()
    (host / "store" / "current").unlink()
    found = run(host)
    assert found["kepler_host_metrics_unreadable"] == 0
    assert not [item for item in found if re.match("kepler_(generation|qualification)", item)]


@pytest.mark.parametrize(
    ("loaded", "library", "expected"),
    [
        ("470.256.02", "libcuda.so.470.256.02", (1, 0)), ("470.256.02", "libcuda.so.470.141.10", (1, 1)),
        (None, "libcuda.so.470.256.02", (0, 0)), ("470.256.02", None, (1, 0)), (None, None, (0, 0)),
    ],
)  # fmt: skip
def test_drivers(loaded, library, expected):
    found = {name: value for name, _, value in host_metrics.driver(loaded, library)}
    assert (found["kepler_driver_loaded"], found["kepler_driver_mismatch"]) == expected


def test_labels_are_quoted():
    text = host_metrics.rendered([("kepler_unit_state", {"unit": 'a"b\\c\nd'}, 1)])
    assert text.splitlines()[-1] == 'kepler_unit_state{unit="a\\"b\\\\c\\nd"} 1'


def test_nothing_is_written_that_has_no_head(host):
    run(host)
    text = (host / "kepler.prom").read_text()
    heads = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    assert dict(heads) == {name: host_metrics.METRICS[name][0] for name, _ in heads}
    named = {re.split("[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}
    assert named == {name for name, _ in heads} == set(host_metrics.METRICS)
