#!/usr/libexec/platform-python
"""Writes what Prometheus should know of a host and no exporter says, for node_exporter's textfile collector.

Usage: host_metrics.py OUTPUT STORE RECORD: the file to write, the root of the store, the record of the qualification.
What cannot be read is left out and counted in kepler_host_metrics_unreadable; the rest is written all the same.
"""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

import json
import os
import re
import subprocess
import sys
import time

import xid  # the role installs it beside this program

# Everything that is ever written: name -> (type, help).
METRICS = {
    "kepler_xid_total": ("counter", "Xid events in the kernel log since the machine started."),
    "kepler_xid_last_timestamp_seconds": ("gauge", "When the last Xid event of this kind was."),
    "kepler_unit_restarts_total": ("counter", "Restarts that systemd made of a unit since somebody started it."),
    "kepler_unit_state": ("gauge", "1 for the state that systemd says a unit is in."),
    "kepler_driver_loaded": ("gauge", "Whether the NVIDIA kernel module is loaded."),
    "kepler_driver_mismatch": ("gauge", "Whether the loaded kernel module and libcuda differ in version."),
    "kepler_driver_info": ("gauge", "Versions of the loaded kernel module and of libcuda."),
    "kepler_generation": ("gauge", "Number of the active generation."),
    "kepler_qualification_passed": ("gauge", "Whether the host passed its qualification."),
    "kepler_qualification_dies": ("gauge", "How many GPUs one server may use."),
    "kepler_qualification_info": ("gauge", "Result of the qualification."),
    "kepler_host_metrics_unreadable": ("gauge", "How many sources of this file could not be read."),
    "kepler_host_metrics_timestamp_seconds": ("gauge", "When this file was written."),
}
UNITS = ["vllm@*.service", "vllm-stage@*.service", "kepler-balancer.service"]
MODULE = "/sys/module/nvidia/version"
LIBRARY = "/usr/lib64/libcuda.so.1"


def output_of(*command):
    """Output of a program. Raises OSError or subprocess.SubprocessError if it does not answer."""
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8", errors="replace", timeout=30,
        check=True,
    ).stdout


def text_of(path):
    """Text of a file, or None where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return None


def xids(journal):
    """Samples of Xids in kernel lines with the time in seconds in front."""
    for event in xid.xids(journal):
        labels = {"pci": event["address"], "xid": str(event["xid"])}
        yield "kepler_xid_total", labels, event["count"]
        yield "kepler_xid_last_timestamp_seconds", labels, int(float(event["last"]))


def units(shown):
    """Samples of units as `systemctl show` prints them: one block of lines each."""
    for block in shown.strip().split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        # A unit that is not there is shown as well, as not loaded.
        if values.get("LoadState") != "loaded":
            continue
        yield "kepler_unit_restarts_total", {"unit": values["Id"]}, int(values["NRestarts"])
        yield "kepler_unit_state", {"unit": values["Id"], "state": values["ActiveState"]}, 1


def driver(loaded, library):
    """Samples of the loaded module's version, or None, and of libcuda's whole file name, or None."""
    version = re.sub(r"^.*\.so\.", "", library) if library else ""
    yield "kepler_driver_loaded", {}, int(bool(loaded))
    yield "kepler_driver_mismatch", {}, int(bool(loaded and version and loaded != version))
    yield "kepler_driver_info", {"module": loaded or "", "library": version}, 1


def generation(link):
    """Sample of what the link `current` of the store names."""
    match = re.search(r"(\d+)/?$", link or "")
    if match:
        yield "kepler_generation", {}, int(match.group(1))


def qualification(record):
    """Samples of a record's text, None where there is none; ValueError, KeyError or TypeError where it is broken."""
    if record is not None:
        found = json.loads(record)
        yield "kepler_qualification_passed", {}, int(found["result"] == "passed")
        yield "kepler_qualification_dies", {}, int(found["size"])
        yield "kepler_qualification_info", {"result": found["result"]}, 1


def link_of(path):
    """Target of a link, or None without one."""
    return os.readlink(path) if os.path.islink(path) else None


def collect(store, record):
    """All samples: [(name, labels, value)]."""
    sources = (
        lambda: xids(output_of(
            "journalctl", "--quiet", "--no-pager", "--boot", "--output=short-unix", "_TRANSPORT=kernel"
        )),
        lambda: units(output_of(
            "systemctl", "show", "--property=Id,LoadState,ActiveState,NRestarts", *UNITS
        )),
        lambda: driver(text_of(MODULE), os.path.basename(os.path.realpath(LIBRARY))
                       if os.path.exists(LIBRARY) else None),
        lambda: generation(link_of(os.path.join(store, "current"))),
        lambda: qualification(text_of(record)),
    )
    samples, unreadable = [], 0
    for source in sources:
        try:
            samples.extend(list(source()))
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
            unreadable += 1
    samples.append(("kepler_host_metrics_unreadable", {}, unreadable))
    samples.append(("kepler_host_metrics_timestamp_seconds", {}, int(time.time())))
    return samples


def quoted(value):
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def rendered(samples):
    """Samples in Prometheus' text format, each metric under its own head."""
    lines = []
    for name, (kind, text) in METRICS.items():
        own = [(labels, value) for other, labels, value in samples if other == name]
        if own:
            lines += ["# HELP %s %s" % (name, text), "# TYPE %s %s" % (name, kind)]
        for labels, value in own:
            inner = ",".join('%s="%s"' % (key, quoted(labels[key])) for key in sorted(labels))
            lines.append("%s%s %d" % (name, "{%s}" % inner if inner else "", value))
    return "\n".join(lines) + "\n"


def main():
    output, store, record = sys.argv[1:]
    # node_exporter reads *.prom at any time: it sees the old file or the new one.
    new = output + ".new"
    with open(new, "w", encoding="utf-8") as stream:
        stream.write(rendered(collect(store, record)))
    os.chmod(new, 0o644)
    os.rename(new, output)


if __name__ == "__main__":
    main()
