"""What readings, traces and records say. Runs under Python 3.6 too."""

import copy
import json

import pytest
from ansible_collections.kepler.vllm.plugins.module_utils.gpu import pci, qualification, smi, xid
from simulated import LISTING, PROFILE

DIES = smi.gpus_of(LISTING, PROFILE["gpu"]["products"])
NUMBERS = {pci.bus_of(die["bus"]): die["index"] for die in DIES}
FINE = {
    "temperature": 60, "power": 120.5, "clock": 614, "throttle": 4, "uncorrected": 0, "corrected": 0, "gen": 3,
    "width": 16, "replays": 0,
}


def samples(count=20, **of_die_1):
    """A second each; the values of die 1 are lists that stand from their beginning on, the last one to the end."""
    made = []
    for second in range(count):
        dies = {str(die["index"]): dict(FINE) for die in DIES}
        for name, values in of_die_1.items():
            dies["1"][name] = values[min(second, len(values) - 1)]
        made.append({"event": "sample", "t": float(second), "dies": dies, "xids": []})
    return made


def judged(readings):
    return qualification.sample_findings(readings, DIES, PROFILE)


def only(findings, severity, where):
    """The one finding; what it found."""
    assert [(item["severity"], item["variable"]) for item in findings] == [(severity, where)]
    assert all(item["expected"] and item["next_step"] for item in findings)
    return findings[0]["found"]


def test_a_good_run():
    assert judged(samples()) == []


HOT = {
    "short": ([60, 85, 86, 79, 60], False),
    "long": ([60, 85], True),
    # Below the limit, but not below it by the hysteresis: still hot.
    "flickering": ([60, 85, 84, 83, 85, 84, 83], True),
    "cools down in between": ([60, 85, 86, 79, 85, 86, 79, 85, 79], False),
    "at once": ([60, 60, 90, 60], True),
    "just below": ([84], False),
}


@pytest.mark.parametrize("what", sorted(HOT))
def test_heat(what):
    temperatures, is_bad = HOT[what]
    findings = judged(samples(temperature=temperatures))
    assert bool(findings) == is_bad
    if is_bad:
        assert f"{max(temperatures)} degrees" in only(findings, "error", "GPU 1")


@pytest.mark.parametrize(
    ("mask", "found"),
    [(0x04, None), (0x0C, "hardware slowdown"), (0x40, "thermal slowdown"), (0x80, "power brake"), (0x20, None)],
)
def test_throttling(mask, found):
    findings = judged(samples(throttle=[0, mask]))
    if found:
        assert found in only(findings, "error", "GPU 1")
    else:
        assert findings == []
    assert judged(samples(throttle=[0, mask, mask, 0])) == [], "two seconds are none"


def test_counters():
    assert only(judged(samples(uncorrected=[0, 0, 2])), "error", "GPU 1").startswith("2 uncorrectable")
    assert "2 of them before" in only(judged(samples(uncorrected=[2])), "error", "GPU 1")
    assert only(judged(samples(corrected=[7, 7, 10])), "warning", "GPU 1").startswith("3 ECC errors corrected")
    assert judged(samples(corrected=[7])) == []
    assert only(judged(samples(replays=[1, 9])), "warning", "GPU 1").startswith("8 PCIe replays")
    assert "from 16 lanes to 8" in only(judged(samples(width=[16, 8, 16])), "warning", "GPU 1")
    assert judged(samples(gen=[1, 3, 1])) == [], "an idle link slows down"


def test_values_that_a_die_does_not_tell():
    nothing = {name: [None] for name in FINE if name != "temperature"}
    assert judged(samples(**nothing)) == []


def xids(*lines):
    return [found for found in map(xid.xid_of, lines) if found]


XID_79 = "4,2,2,-;NVRM: Xid (PCI:0000:06:00): 79, pid=1234, GPU has fallen off the bus."


def test_xids():
    readings = samples()
    readings[5]["xids"] = readings[6]["xids"] = xids(XID_79, "NVRM: loading", "usb 1-1: reset")
    found = only(judged(readings), "error", "GPU 1")
    meaning = "the GPU has fallen off the bus, mostly power or heat"
    assert found == f"Xid 79 ({meaning}): pid=1234, GPU has fallen off the bus."
    readings = samples()
    readings[5]["xids"] = xids("NVRM: Xid (PCI:0000:06:00): 45, Ch 00000010")
    assert "Xid 45" in only(judged(readings), "warning", "GPU 1")
    readings[5]["xids"] = xids("NVRM: Xid (0000:42:00): 999")
    assert "Xid 999 (see NVIDIA's list" in only(judged(readings), "error", "board at 0000:42:00")


@pytest.mark.parametrize("number", sorted(xid.MEANINGS))
def test_every_xid_but_that_of_an_ended_process_is_an_error(number):
    readings = samples()
    readings[5]["xids"] = xids(f"NVRM: Xid (PCI:0000:06:00): {number}, Ch 00000010")
    assert f"Xid {number}" in only(judged(readings), "warning" if number == 45 else "error", "GPU 1")


def test_dies_that_are_gone():
    readings = samples()
    readings[7]["dies"].pop("4")
    readings[7]["error"] = "Unable to determine the device handle for GPU 0000:86:00.0: GPU is lost."
    assert "GPU is lost" in only(judged(readings), "error", "GPU 4")
    readings[7].update(dies={}, error="nvidia-smi did not answer within 20 s")
    assert only(judged(readings), "error", "nvidia-smi") == "nvidia-smi did not answer within 20 s, at 7 s"


def test_reading_nvidia_smi():
    fields = [field for field, _ in smi.FIELDS]
    line = "{}, 00000000:{}:00.0, 71, 139.20, 562, 0x0000000000000044, 0, [N/A], 3, 16"
    text = "\n".join([
        # Die 1 has fallen off: nvidia-smi counts anew.
        line.format(0, "05"), line.format(1, "42"), line.format(2, "85"),
        line.format(3, "86").replace("71", "[GPU is lost]"), "Unable to determine the device handle",
    ])
    read = smi.readings(text, fields, NUMBERS)
    assert sorted(read) == ["0", "3"]
    assert read["3"] == {
        "temperature": 71, "power": 139.2, "clock": 562, "throttle": 0x44, "uncorrected": 0, "corrected": None,
        "gen": 3, "width": 16,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [("26.51 W", 26.51), ("38", 38), ("0x00000041", 0x41), ("[N/A]", None), ("", None), ("ERR!", None)],
)
def test_numbers(text, value):
    assert smi.number_in(text) == value


@pytest.mark.parametrize("text", ["00000000:05:00.0", "0000:05:00", "05:00.0"])
def test_addresses(text):
    assert pci.bus_of(text) == (0, 5, 0)
    assert pci.bus_of("no address") is None


def plan(listing, device="kepler"):
    dies = smi.gpus_of(listing, None if device == "verify" else PROFILE["gpu"]["products"])
    return [stage["dies"] for stage in qualification.stages(dies, device, PROFILE)]


def lines(*numbers):
    return "\n".join(LISTING.splitlines()[number] for number in numbers)


PLANS = {
    "two boards, a K40 between them": (LISTING, [[0], [0, 1], [0, 1, 3, 4]]),
    "one board": (lines(0, 1), [[0], [0, 1]]),
    "one die": (lines(0), [[0]]),
    "the first die of the first board is missing": (lines(1, 3, 4), [[3], [3, 4]]),
    "one die of each board": (lines(0, 3), [[0]]),
    "no K80": (lines(2), []),
    "nothing": ("No devices were found", []),
}


@pytest.mark.parametrize("what", sorted(PLANS))
def test_stages(what):
    listing, expected = PLANS[what]
    assert plan(listing) == expected


@pytest.mark.parametrize("serial", ["[N/A]", "0"])
def test_boards_without_serial_numbers_are_neighbors_on_the_bus(serial):
    listing = LISTING.replace("0320000000001", serial).replace("0320000000002", serial)
    assert plan(listing) == [[0], [0, 1], [0, 1, 3, 4]]
    assert plan("\n".join(listing.splitlines()[number] for number in (1, 3, 4))) == [[3], [3, 4]]


def test_other_gpus_count_for_verification_alone():
    listing = "\n".join(f"{n}, NVIDIA H200, 00000000:{n + 1:02x}:00.0, 16530000000{n:02}, 580.1" for n in range(8))
    assert plan(listing) == []
    assert plan(listing, "verify") == [[0], [0, 1], [0, 1, 2, 3]]


def test_pairs():
    assert qualification.pairs({"dies": [0]}, []) == []
    assert qualification.pairs({"dies": [0, 1, 3, 4]}, [(0, 1)]) == [(0, 3), (0, 4), (1, 3), (1, 4), (3, 4)]


HOST = {"kernel": "4.18", "driver": "470.1", "device": "kepler", "generation": "3", "dies": DIES}
BEGIN = dict(
    HOST, event="begin", t=0.0, time="2026-01-01T00:00:00Z", boot="b", seconds=60,
    stages=qualification.stages(DIES, "kepler", PROFILE), limits=PROFILE["limits"],
)


def stamped(result="passed", passed=4):
    return qualification.make_record(BEGIN, result, passed, [], True, "trace-0001.jsonl")


def test_a_stamp_holds_for_its_host():
    assert qualification.stale_reasons(stamped(), HOST) == []
    assert qualification.stale_reasons(stamped("failed", 2), HOST) == []
    assert qualification.stale_reasons(stamped(), dict(HOST, generation="4")) == []
    assert json.loads(json.dumps(stamped())) == stamped()


def test_a_stamp_says_what_may_be_served():
    assert (stamped()["size"], stamped()["dies"]) == (4, [0, 1, 3, 4])
    assert (stamped("failed", 2)["size"], stamped("failed", 2)["dies"]) == (2, [0, 1])
    assert (stamped("failed", 0)["size"], stamped("failed", 0)["dies"]) == (0, [])
    skipped = stamped("skipped", 0)
    assert (skipped["passed_size"], skipped["size"], skipped["dies"]) == (0, 4, [0, 1, 3, 4])


def changed(**others):
    return dict(copy.deepcopy(HOST), **others)


REASONS = {
    "kernel": (changed(kernel="4.19"), ["kernel: now 4.19, qualified with 4.18"]),
    "driver": (changed(driver="470.2"), ["driver: now 470.2, qualified with 470.1"]),
    "device": (changed(device="cpu"), ["device: now cpu, qualified with kepler"]),
    "a board has gone": (changed(dies=DIES[:2]), [
        "boards: GPU 3 at 00000000:85:00.0 (board 0320000000002) has gone",
        "boards: GPU 4 at 00000000:86:00.0 (board 0320000000002) has gone",
    ]),
    "another board in the same place": (changed(dies=[dict(DIES[0], serial="1"), *DIES[1:]]), [
        "boards: GPU 0 at 00000000:05:00.0 (board 0320000000001) has gone",
        "boards: GPU 0 at 00000000:05:00.0 (board 1) is new",
    ]),
    "all at once": (changed(kernel="4.19", driver="470.2", dies=DIES[1:]), [
        "kernel: now 4.19, qualified with 4.18", "driver: now 470.2, qualified with 470.1",
        "boards: GPU 0 at 00000000:05:00.0 (board 0320000000001) has gone",
    ]),
}


@pytest.mark.parametrize("what", sorted(REASONS))
def test_a_stamp_of_another_host_does_not_hold(what):
    host, reasons = REASONS[what]
    assert qualification.stale_reasons(stamped(), host) == reasons


@pytest.mark.parametrize("record", [None, [], {}, {"schema": 0}], ids=repr)
def test_what_is_no_stamp(record):
    assert qualification.stale_reasons(record, HOST) == ["this host was never qualified"]


def test_skipping():
    skipped = stamped("skipped", 0)
    assert qualification.stale_reasons(skipped, HOST, skip=True) == []
    assert qualification.stale_reasons(skipped, HOST) == ["qualification: it was skipped before"]
    assert qualification.stale_reasons(stamped(), HOST, skip=True) == ["qualification: to be skipped"]


def test_half_a_line_and_zeros_are_no_records():
    text = json.dumps(BEGIN) + "\n[1]\n3\n" + "\0" * 100 + '\n{"event": "step", "st'
    assert qualification.read_trace(text) == [BEGIN]
    assert qualification.summarize(qualification.read_trace('{"event"'))["ended"], "nothing was begun"
