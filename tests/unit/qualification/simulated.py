"""A host with K80 boards in miniature: an nvidia-smi, ranks and a kernel log that do what a test tells them."""

import json
import sys
from pathlib import Path

from ansible_collections.kepler.vllm.plugins.module_utils.gpu import qualification, qualification_run, smi
from rendered import PROFILE

ROOT = Path(__file__).resolve().parents[3]

# Two K80 boards with a K40 between them, as nvidia-smi lists them: index, name, address, serial, driver.
LISTING = """0, Tesla K80, 00000000:05:00.0, 0320000000001, 470.1
1, Tesla K80, 00000000:06:00.0, 0320000000001, 470.1
2, Tesla K40m, 00000000:42:00.0, 0320000000009, 470.1
3, Tesla K80, 00000000:85:00.0, 0320000000002, 470.1
4, Tesla K80, 00000000:86:00.0, 0320000000002, 470.1
"""

# Answers --query-gpu from state.json beside it: fields by index, `unknown` fields, a `fault` that it says instead.
SMI = """#!{python}
import json, os, sys, time
state = json.load(open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "state.json")))
if sys.argv[1:] == ["-q"]:
    for die in state["dies"]:
        print("GPU %s\\n    Replays Since Reset                 : %s" % (die["pci.bus_id"], die["replays"]))
    sys.exit(0)
time.sleep(state["sleep"])
fields = sys.argv[1].partition("=")[2].split(",")
for field in fields:
    if field in state["unknown"]:
        sys.exit('Field "%s" is not a valid field to query.' % field)
for die in state["dies"]:
    print(", ".join(str(die[field]) for field in fields))
if state["fault"]:
    sys.exit(state["fault"])
"""

# Plays one rank: behaves as behavior.json beside it says for its mode and dies.
LOAD = """#!{python}
import json, os, sys, time
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
behavior = json.load(open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "behavior.json")))
dies = os.environ["CUDA_VISIBLE_DEVICES"]
direct = "" if os.environ.get("NCCL_P2P_DISABLE") == "1" else " direct"
assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
for key in (options["--mode"] + " " + dies + direct, options["--mode"] + " " + dies, options["--mode"]):
    for act in behavior.get(key, []) if options["--rank"] == "0" else []:
        if act[0] == "say":
            print(json.dumps(act[1]), flush=True)
        elif act[0] == "append":
            open(act[1], "a").write(act[2])
        elif act[0] == "state":
            json.dump(act[2], open(act[1] + ".new", "w"))
            os.rename(act[1] + ".new", act[1])
        elif act[0] == "sleep":
            time.sleep(act[1])
        elif act[0] == "exit":
            sys.exit(act[1])
    if key in behavior:
        break
print(json.dumps({{"event": "done", "gflops": 2000.0, "peer": True}}), flush=True)
"""


def die_state(index, bus, serial, name="Tesla K80"):
    return {
        "index": index, "name": name, "pci.bus_id": bus, "serial": serial, "driver_version": "470.1",
        "temperature.gpu": 60, "power.draw": "120.50 W", "clocks.sm": 614,
        "clocks_throttle_reasons.active": "0x0000000000000004", "ecc.errors.uncorrected.volatile.total": 0,
        "ecc.errors.corrected.volatile.total": 0, "pcie.link.gen.current": 3, "pcie.link.width.current": 16,
        "replays": 0,
    }


class Box:
    """A host: its programs, what they answer, and a qualification that runs on it."""

    def __init__(self, directory):
        self.directory = directory
        self.smi, self.load = directory / "nvidia-smi", directory / "load.py"
        self.graphs = directory / "graphs.py"
        self.kmsg = directory / "kmsg"
        self.kmsg.write_text("6,1,1,-;NVRM: Xid (PCI:0000:05:00): 79, an old one\n")
        for path, text in ((self.smi, SMI), (self.load, LOAD), (self.graphs, LOAD)):
            path.write_text(text.format(python=sys.executable))
            path.chmod(0o755)
        self.state = {"dies": [], "unknown": [], "fault": "", "sleep": 0}
        for line in LISTING.splitlines():
            index, name, bus, serial, _ = line.split(", ")
            self.state["dies"].append(die_state(int(index), bus, serial, name))
        self.behave({})
        self.kept = directory / "kept"
        self.kept.mkdir()
        self.write()

    def install(self):
        """One board alone, and an active generation with a serving environment; returns the store's root."""
        self.state["dies"] = self.state["dies"][:2]
        self.write()
        root = self.directory / "kepler"
        (root / "generations" / "7" / "serving" / "bin").mkdir(parents=True)
        (root / "current").symlink_to("generations/7")
        python = root / "current" / "serving" / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        return root

    def write(self):
        (self.directory / "state.json").write_text(json.dumps(self.state))

    def behave(self, behavior):
        """What ranks do: {"load 0,1": [["sleep", 2], ...]}; ` direct` at the end: where peer-to-peer is allowed."""
        (self.directory / "behavior.json").write_text(json.dumps(behavior))

    def becomes(self, index, **values):
        """An act of a rank: nvidia-smi answers otherwise from now on. Names are those of a sample."""
        fields = {name: field for field, name in smi.FIELDS}
        state = json.loads(json.dumps(self.state))
        state["dies"][index].update({fields.get(name, name): value for name, value in values.items()})
        return ["state", str(self.directory / "state.json"), state]

    def logs(self, text):
        """An act of a rank: the kernel logs a line."""
        return ["append", str(self.kmsg), f"4,2,2,-;{text}\n"]

    def host(self, device="kepler"):
        products = None if device == "verify" else PROFILE["gpu"]["products"]
        dies = smi.gpus_of(LISTING, products)
        return {"kernel": "4.18", "driver": "470.1", "generation": "3", "device": device, "dies": dies}

    def options(self, **others):
        limits = {**PROFILE["limits"], "patience": 0.2, "throttle_patience": 0.2}
        return {
            "directory": str(self.kept), "python": [sys.executable], "load": str(self.load), "device": "kepler",
            "seconds": 0, "pair_timeout": 5, "nvidia_smi": str(self.smi), "kmsg": str(self.kmsg), "stall": 5,
            "interval": 0.05, "profile": {**PROFILE, "limits": limits}, **others,
        }

    def qualify(self, **others):
        """(record of the host, records of the trace)."""
        options = self.options(**others)
        host_record = qualification_run.Qualification(self.host(options["device"]), options).run()
        return host_record, qualification.read_trace((self.kept / host_record["trace"]).read_text())
