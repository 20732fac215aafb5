"""The qualification of hosts, on this machine's GPUs: real load, real NCCL, real readings."""

import os
import re
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from ansible_collections.kepler.vllm.plugins.module_utils import findings
from ansible_collections.kepler.vllm.plugins.module_utils.gpu import qualification, qualification_run, smi

ROOT = Path(__file__).resolve().parents[2]
PROFILE = yaml.safe_load((ROOT / "profiles" / "k80" / "profile.yml").read_text())
GPUS = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(GPUS == 0, reason="needs an NVIDIA GPU")
two = pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")
LOAD = str(ROOT / "roles" / "qualification" / "files" / "load.py")
FAULTY = str(Path(__file__).with_name("faulty_rank.py"))
SECONDS, PAIR_TIMEOUT = 8, 45
# From a limit to the end of all ranks: the watcher's second, nvidia-smi's, and what the driver takes to let go.
SPARE = 10
# Ranks get an environment of their own. Where the driver's libraries are, and whether NCCL may use multicast, is this
# machine's matter.
OWNER = [f"{name}={os.environ[name]}" for name in ("LD_LIBRARY_PATH", "NCCL_NVLS_ENABLE") if name in os.environ]
WAY = re.compile(r"Channel .* via (\S+)")


def run_qualification(directory, fault=None, **others):
    """(record of the host, trace) of this machine; fault: signal, mode and WITHOUT_P2P of faulty_rank.py."""
    faulty = [FAULTY, *fault, str(directory / "stops")] if fault else []
    fine, text = smi.query("nvidia-smi", smi.IDENTITY)
    assert fine, text
    dies = smi.gpus_of(text)
    host = {
        "kernel": os.uname().release, "driver": dies[0]["driver"], "generation": None, "device": "verify", "dies": dies,
    }
    options = {
        "directory": str(directory), "python": ["env", *OWNER, sys.executable, *faulty], "load": LOAD,
        "device": "verify", "seconds": SECONDS, "pair_timeout": 120, "nvidia_smi": "nvidia-smi", "kmsg": "/dev/kmsg",
        "profile": PROFILE, "stall": 60, "interval": 1.0, **others,
    }
    host_record = qualification_run.Qualification(host, options).run()
    return host_record, qualification.read_trace((directory / host_record["trace"]).read_text())


def stops(directory):
    """When ranks sent themselves a signal, oldest first."""
    return [float(line) for line in (directory / "stops").read_text().splitlines()]


def steps(records):
    """Seconds of each step, in the order in which they ended."""
    begun = {record["step"]: record["t"] for record in records if record["event"] == "step"}
    return {
        record["step"]: record["t"] - begun[record["step"]] for record in records if record["event"] == "step end"
    }


def left_over(directory):
    """Command lines of ranks of this directory that still run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text()
        except OSError:  # it has ended meanwhile
            continue
        if str(directory) in command and LOAD in command:
            found.append(command)
    return found


def test_a_sound_machine_passes(tmp_path):
    host_record, records = run_qualification(tmp_path)
    largest = max(size for size in PROFILE["serve"]["sizes"] if size <= GPUS)
    assert (host_record["result"], host_record["size"]) == ("passed", largest), host_record
    assert host_record["p2p"] is (True if GPUS > 1 else None)
    for record in records:
        if record["event"] == "step end":
            assert record["ok"], record
            print(record["step"], "in", host_record["dies"], record["results"])
    # Each loaded die drew more than the idle one of the first reading.
    samples = [record for record in records if record["event"] == "sample"]
    for die in host_record["dies"]:
        watts = [sample["dies"][str(die)]["power"] for sample in samples]
        print(f"die {die}: {watts[0]} W idle, at most {max(watts)} W, {samples[-1]['dies'][str(die)]}")
        assert max(watts) > 1.5 * watts[0]


@pytest.mark.parametrize(("name", "found", "seconds"), [
    ("SIGSTOP", "under load: no result for 8 s", 8),
    ("SIGKILL", "under load: rank 1 ended with status -9: ", 0),
])
@two
def test_a_rank_that_stops_is_found(tmp_path, name, found, seconds):
    """The other waits in a sum for ever; the watcher does not. All ranks are gone afterwards."""
    host_record, _ = run_qualification(tmp_path, fault=(name, "load", "fails"), stall=8)
    ended = time.monotonic()
    assert (host_record["result"], host_record["size"]) == ("failed", 1)
    (said,) = [item["found"] for item in findings.errors(host_record["findings"])]
    assert said.startswith(found)
    took = ended - stops(tmp_path)[0]
    print(f"{name}: {said!r}, {took:.1f} s after it")
    # The last result may be a second older than the stop.
    assert seconds - 2 < took < seconds + SPARE
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("without", ["works", "fails"])
@two
def test_a_pair_that_hangs(tmp_path, without):
    """In a sum by NCCL, with peer-to-peer alone or either way; both tries end within their limit."""
    host_record, records = run_qualification(tmp_path, fault=("SIGSTOP", "pair", without), pair_timeout=PAIR_TIMEOUT)
    tried = steps(records)
    for name in ("pair 0-1", "pair 0-1 without P2P")[: 1 if without == "works" else 2]:
        print(f"{name}: {tried[name]:.1f} s")
        assert PAIR_TIMEOUT <= tried[name] < PAIR_TIMEOUT + SPARE
    assert len(stops(tmp_path)) == (1 if without == "works" else 2)
    assert left_over(tmp_path) == []
    limit = f"no end within {PAIR_TIMEOUT} s"
    if without == "works":
        assert (host_record["result"], host_record["size"], host_record["p2p"]) == ("passed", 2, False)
        assert [item["found"] for item in host_record["findings"] if item["variable"] == "pair 0-1"] == [
            f"{limit} with peer-to-peer; it works without"
        ]
        last = [record for record in records if record["event"] == "step"][-1]
        assert (last["step"], last["p2p"]) == ("load", False)
    else:
        assert (host_record["result"], host_record["size"]) == ("failed", 1)
        assert [item["found"] for item in findings.errors(host_record["findings"])] == [
            f"{limit}; without peer-to-peer: {limit}"
        ]


@pytest.mark.parametrize(("p2p", "environment", "expected"), [
    # NCCL decides by the way between the two.
    (True, [], {"P2P", "SHM"}),
    (False, [], {"SHM"}),
    (False, ["NCCL_SHM_DISABLE=1"], {"NET"}),
], ids=["direct", "memory", "sockets"])
@two
def test_how_a_pair_reaches_one_another(tmp_path, p2p, environment, expected):
    """The switch of the qualification changes NCCL's way, and sums are right on each."""
    logged = ["NCCL_DEBUG=INFO", f"NCCL_DEBUG_FILE={tmp_path}/nccl-%p"]
    options = {
        "directory": str(tmp_path), "python": ["env", *OWNER, *logged, *environment, sys.executable], "load": LOAD,
        "device": "verify", "seconds": SECONDS,
    }
    ranks = qualification_run.Ranks(options, "pair", [0, 1], p2p)
    try:
        latest = time.monotonic() + 120
        while None in ranks.statuses() and time.monotonic() < latest:
            time.sleep(0.1)
        said = [Path(ranks.output(rank)).read_text() for rank in range(2)]
        assert ranks.statuses() == [0, 0], said
        assert [event["event"] for event in ranks.events()] == ["done", "done"]
    finally:
        ranks.end()
    ways = {way for path in tmp_path.glob("nccl-*") for way in WAY.findall(path.read_text())}
    print(f"p2p {p2p}, {environment}: {sorted(ways)}")
    assert len({way.split("/")[0] for way in ways}) == 1
    assert {way.split("/")[0] for way in ways} <= expected
