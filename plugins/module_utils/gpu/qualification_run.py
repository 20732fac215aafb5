"""Running a qualification: ranks under a time limit, a reading each second, each on the disk before the next step."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time

from ..findings import errors, finding
from . import qualification, smi
from .pci import bus_of
from .xid import xid_of

BOOT = "/proc/sys/kernel/random/boot_id"
INTERVAL = 1.0  # seconds between two readings
KILL_TIMEOUT = 10.0  # seconds within which a process ends that is killed, unless the driver holds it
START_TIMEOUT = 180.0  # seconds from starting a rank to its first result: a cold disk, and the context of a GPU
GRAPHS_TIMEOUT = 900.0  # seconds for two engines of a tiny model, one after the other
STALL = 60.0  # seconds without a result under load
TRACE = re.compile(r"^trace-(\d+)\.jsonl$")

DRIVER_HANGS = "Look at `journalctl -k -g NVRM` on the host, reboot it, then run again with qualification_retry: true."
PAIR = (
    "Look at ACS and IOMMU (lspci -vvv, intel_iommu=off on the kernel's command line) and at the board's seat, then "
    "run again with qualification_retry: true."
)


def now():
    """The time, as records and traces have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class KernelLog(object):
    """Lines that the kernel logs from now on."""

    def __init__(self, path):
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self.descriptor, 0, os.SEEK_END)
        except OSError:  # not readable in a container, or without the rights
            self.descriptor = None

    def lines(self):
        """New lines; none if there is no log."""
        found = []
        while self.descriptor is not None:
            try:
                text = os.read(self.descriptor, 64 * 1024)
            except OSError as error:
                if error.errno == errno.EPIPE:  # lines were overwritten before we read them: go on with the oldest
                    continue
                break
            if not text:
                break
            found += text.decode("utf-8", "replace").splitlines()
        return found


def trace_names(directory):
    """Names of the traces of a host, oldest first. They are numbered: a halt may cost a host its clock as well."""
    found = [TRACE.match(name) for name in os.listdir(directory)]
    return [match.group(0) for match in sorted((match for match in found if match), key=lambda m: int(m.group(1)))]


def read_text(path):
    """Text of a file; empty if there is none, and what is no text replaced."""
    try:
        with open(path, "rb") as stream:
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""


class Trace(object):
    """One JSON line for each step and reading. A line is on the disk before anything else happens."""

    def __init__(self, directory):
        names = trace_names(directory)
        self.name = "trace-%04d.jsonl" % (int(TRACE.match(names[-1]).group(1)) + 1 if names else 1)
        self.started = time.monotonic()
        self.stream = open(os.path.join(directory, self.name), "w")
        listing = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(listing)
        finally:
            os.close(listing)

    def seconds(self):
        return round(time.monotonic() - self.started, 2)

    def write(self, event, **content):
        record = dict(content, event=event, t=self.seconds())
        self.stream.write(json.dumps(record, sort_keys=True) + "\n")
        self.stream.flush()
        os.fsync(self.stream.fileno())
        return record


class Ranks(object):
    """The processes of one step, one for each GPU."""

    def __init__(self, options, mode, gpus, p2p):
        self.directory = tempfile.mkdtemp(prefix="ranks-", dir=options["directory"])
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": self.directory,
            "LC_ALL": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
            # All ranks are of this host: no firewall and no name of the host is in their way.
            "NCCL_SOCKET_IFNAME": "lo",
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_DEBUG": "WARN",
        }
        if not p2p:
            environment["NCCL_P2P_DISABLE"] = "1"
        # An engine knows which GPUs it is for, and starts its own ranks.
        engine = mode == "graphs"
        device = options["device"] if engine else "cpu" if options["device"] == "cpu" else "cuda"
        command = options["python"] + [
            options["graphs" if engine else "load"], "--mode", mode, "--device", device,
            "--world", str(len(gpus)), "--seconds", str(options["seconds"]),
            "--rendezvous", os.path.join(self.directory, "rendezvous"),
        ]
        self.processes, self.read = [], []
        for rank in range(1 if engine else len(gpus)):
            with open(self.output(rank), "wb") as output:
                self.processes.append(subprocess.Popen(
                    command + ["--rank", str(rank)], env=environment, cwd=self.directory, stdin=subprocess.DEVNULL,
                    stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                ))
            self.read.append(0)

    def output(self, rank):
        return os.path.join(self.directory, "rank-%d.log" % rank)

    def events(self):
        """New results of all ranks: whole JSON lines of their output."""
        found = []
        for rank in range(len(self.processes)):
            text = read_text(self.output(rank))
            text = text[:text.rfind("\n") + 1]
            for record in qualification.read_trace(text[self.read[rank]:]):
                found.append(dict(record, rank=rank))
            self.read[rank] = len(text)
        return found

    def statuses(self):
        """Exit status of each rank, None if it runs."""
        return [process.poll() for process in self.processes]

    def last_words(self, rank):
        """The last line that a rank printed."""
        lines = [line.strip() for line in read_text(self.output(rank)).splitlines() if line.strip()]
        return lines[-1][-300:] if lines else "no word"

    def end(self):
        """End what still runs and remove the files. Returns the ids of processes that the driver does not let go."""
        for process in self.processes:
            if process.poll() is None:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        latest = time.monotonic() + KILL_TIMEOUT
        while None in self.statuses() and time.monotonic() < latest:
            time.sleep(0.05)
        shutil.rmtree(self.directory, ignore_errors=True)
        return [process.pid for process in self.processes if process.poll() is None]


class Stopped(Exception):
    """A bad sign: nothing more is tried."""


class Qualification(object):
    """One run. host: {kernel, driver, generation, device, dies}. options: see the module qualification_run."""

    def __init__(self, host, options):
        self.host, self.options = host, options
        self.indices = {bus_of(gpu["bus"]): gpu["index"] for gpu in host["dies"]}
        self.samples, self.findings, self.p2p, self.passed, self.tried = [], [], True, 0, []
        self.graphs = None
        self.log = KernelLog(options["kmsg"])
        self.trace = Trace(options["directory"])

    def note(self, severity, variable, found, expected, next_step):
        """Add a finding, and stop if it is an error."""
        self.findings.append(finding(severity, variable, found, expected, next_step))
        if severity == "error":
            raise Stopped()

    def all_findings(self):
        """All findings so far."""
        return qualification.sample_findings(self.samples, self.host["dies"], self.options["profile"]) + self.findings

    def replays(self):
        """PCIe replays by GPU. They are read beside the steps alone: the whole report of nvidia-smi takes a second."""
        fine, text = smi.smi(self.options["nvidia_smi"], ["-q"])
        counters = smi.replay_counters(text) if fine else {}
        return {str(self.indices[bus]): count for bus, count in counters.items() if bus in self.indices}

    def sample(self, replays=None):
        """Take a reading, keep it, and check all of them. Raises Stopped at a bad sign."""
        fine, text = smi.query(self.options["nvidia_smi"], self.fields)
        readings = smi.readings(text, self.fields, self.indices)
        for index, count in (replays or {}).items():
            if index in readings:
                readings[index]["replays"] = count
        sample = {"dies": readings, "xids": list(filter(None, map(xid_of, self.log.lines())))}
        if not fine or len(readings) < len(self.indices):
            sample["error"] = text[-300:]
        self.samples.append(self.trace.write("sample", **sample))
        if errors(qualification.sample_findings(self.samples, self.host["dies"], self.options["profile"])):
            raise Stopped()

    def watch(self, ranks, limit):
        """Follow `ranks` to their end. Returns (what was wrong with them or None, results of the last of each rank).

        limit: seconds. Raises Stopped at a bad sign of a GPU.
        """
        begun = heard = time.monotonic()
        results = {}
        while True:
            self.sample()
            statuses = ranks.statuses()
            for event in ranks.events():
                heard = time.monotonic()
                results[event["rank"]] = event
                if event["event"] == "wrong":
                    return "rank %d: wrong result: %s" % (event["rank"], event["what"]), results
            failed = [rank for rank, status in enumerate(statuses) if status]
            if failed:
                return "rank %d ended with status %d: %s" % (
                    failed[0], statuses[failed[0]], ranks.last_words(failed[0])
                ), results
            if None not in statuses:
                return None, results
            now = time.monotonic()
            if now - begun > limit:
                return "no end within %d s" % limit, results
            if results and now - heard > self.options["stall"]:
                return "no result for %d s" % self.options["stall"], results
            time.sleep(self.options["interval"] - (now - begun) % self.options["interval"])

    def step(self, stage, name, mode, gpus, limit):
        """One step, with its lines in the trace. Returns what was wrong, or None."""
        self.trace.write("step", stage=stage, step=name, dies=gpus, p2p=self.p2p)
        self.sample(self.replays())
        ranks = Ranks(self.options, mode, gpus, self.p2p)
        try:
            trouble, results = self.watch(ranks, limit)
        finally:
            stuck = ranks.end()
        self.trace.write(
            "step end", stage=stage, step=name, ok=not trouble, trouble=trouble,
            results=[results[rank] for rank in sorted(results)],
        )
        self.results = results
        if stuck:
            self.note(
                "error", name, "%s, and process %d does not even end when it is killed" % (
                    trouble or "the ranks are done", stuck[0]
                ), "processes that end", DRIVER_HANGS,
            )
        self.sample(self.replays())
        return trouble

    def pair(self, stage, pair):
        """Two GPUs: direct copies and a sum by NCCL; without direct access where that does not work."""
        name = "pair %d-%d" % pair
        self.tried.append(pair)
        trouble = self.step(stage, name, "pair", list(pair), self.options["pair_timeout"])
        if trouble and self.p2p and self.options["device"] != "cpu":
            self.p2p = False
            again = self.step(stage, name + " without P2P", "pair", list(pair), self.options["pair_timeout"])
            if not again:
                self.note(
                    "warning", name, "%s with peer-to-peer; it works without" % trouble, "a pair that works with it",
                    "The servers get NCCL_P2P_DISABLE=1 and go through the host's memory. To have it back, look at ACS "
                    "and IOMMU, then remove the qualification record and run again.",
                )
                return
            trouble += "; without peer-to-peer: " + again
        if trouble:
            self.note("error", name, trouble, "a copy and a sum that are right", PAIR)

    def stage(self, number, stage):
        """All steps of a stage."""
        self.trace.write("stage", stage=number)
        for pair in qualification.pairs(stage, self.tried):
            self.pair(number, pair)
        trouble = self.step(number, "load", "load", stage["dies"], self.options["seconds"] + START_TIMEOUT)
        if trouble:
            name = qualification.stage_name(stage)
            self.note("error", name, "under load: %s" % trouble, "right results to the end", DRIVER_HANGS)
        self.trace.write("stage end", stage=number, ok=True)
        self.passed = stage["size"]

    def prove_graphs(self, number, stage):
        """Whether an engine on the GPUs of a stage answers the same with CUDA graphs, and faster."""
        if self.options["device"] == "cpu":
            self.graphs = qualification.judge_graphs("the CPU has none", None)
            return
        trouble = self.step(number, "graphs", "graphs", stage["dies"], GRAPHS_TIMEOUT)
        self.graphs = qualification.judge_graphs(trouble, self.results.get(0))

    def begin(self):
        """The first record of the trace, and what of the host's instruments is missing."""
        self.fields, absent, error = smi.known_fields(self.options["nvidia_smi"])
        self.begun = self.trace.write(
            "begin", time=now(), boot=read_text(BOOT).strip(),
            stages=qualification.stages(self.host["dies"], self.host["device"], self.options["profile"]),
            limits=self.options["profile"]["limits"],
            seconds=self.options["seconds"], **self.host
        )
        if error:
            self.note("error", "nvidia-smi", error, "an answer to --query-gpu=%s" % ",".join(self.fields), DRIVER_HANGS)
        if absent:
            self.note(
                "warning", "nvidia-smi", "it does not know " + ", ".join(absent), "all fields",
                "Nothing now: these were not checked.",
            )
        if self.log.descriptor is None:
            self.note(
                "warning", "host", "%s cannot be read" % self.options["kmsg"], "the kernel log",
                "Nothing in a container; elsewhere Xid errors were not seen.",
            )

    def run(self):
        """All stages, up to the first bad sign. Returns the record."""
        try:
            self.begin()
            for number, stage in enumerate(self.begun["stages"]):
                self.stage(number, stage)
            if self.options.get("graphs") and self.begun["stages"]:
                self.prove_graphs(number, stage)
        except Stopped:
            pass
        findings = self.all_findings()
        result = "failed" if errors(findings) else "passed"
        p2p = self.p2p if self.tried else None
        made = qualification.make_record(
            self.begun, result, self.passed, findings, p2p, self.trace.name, self.graphs
        )
        self.trace.write("end", result=result, findings=findings)
        return made
