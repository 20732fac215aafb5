"""The qualification of hosts, on this machine's GPUs: real load, real NCCL, real readings."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "plugins" / "module_utils"))

from host import qualify, qualify_run  # noqa: E402

GPUS = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(GPUS == 0, reason="needs an NVIDIA GPU")
SECONDS = 8


def qualification(directory, **others):
    """(stamp, records of the trace) of this machine."""
    fine, text = qualify_run.query("nvidia-smi", qualify.DESCRIBE.split(","))
    assert fine, text
    dies = qualify.dies_of(text, "verify")
    host = {
        "kernel": os.uname().release, "driver": dies[0]["driver"], "generation": None, "device": "verify", "dies": dies,
    }
    options = {
        "directory": str(directory), "python": [sys.executable],
        "load": str(ROOT / "roles" / "qualification" / "files" / "load.py"), "device": "verify", "seconds": SECONDS,
        "pair_timeout": 120, "nvidia_smi": "nvidia-smi", "kmsg": "/dev/kmsg", "limits": qualify.LIMITS, "stall": 60,
        "interval": 1.0, **others,
    }
    stamp = qualify_run.Qualification(host, options).run()
    return stamp, qualify.read_trace((directory / stamp["trace"]).read_text())


def test_a_sound_machine_passes(tmp_path):
    stamp, records = qualification(tmp_path)
    assert (stamp["result"], stamp["size"]) == ("passed", max(size for size in qualify.SIZES if size <= GPUS)), stamp
    assert stamp["p2p"] is (True if GPUS > 1 else None)
    for record in records:
        if record["event"] == "step end":
            assert record["ok"], record
            print(record["step"], "in", stamp["dies"], record["results"])
    # Each loaded die drew more than the idle one of the first reading.
    samples = [record for record in records if record["event"] == "sample"]
    for die in stamp["dies"]:
        watts = [sample["dies"][str(die)]["power"] for sample in samples]
        print(f"die {die}: {watts[0]} W idle, at most {max(watts)} W, {samples[-1]['dies'][str(die)]}")
        assert max(watts) > 1.5 * watts[0]


@pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")
def test_a_rank_that_stops_is_found(tmp_path):
    """The others wait in a sum for ever; the watcher does not."""
    stopped = []

    def stop_a_rank():
        while not stopped:
            found = subprocess.run(
                ["pgrep", "--full", "--", f"--mode load.*--world 2.*{tmp_path}.*--rank 1"], capture_output=True,
                text=True, check=False,
            ).stdout.split()
            if found:
                time.sleep(20)  # until it computes
                os.kill(int(found[0]), signal.SIGSTOP)
                stopped.append(found[0])
            time.sleep(0.2)

    thread = threading.Thread(target=stop_a_rank, daemon=True)
    thread.start()
    stamp, _ = qualification(tmp_path, seconds=40, stall=8)
    thread.join()
    assert (stamp["result"], stamp["size"]) == ("failed", 1)
    assert [item["found"] for item in qualify.errors(stamp["findings"])] == ["under load: no result for 8 s"]
