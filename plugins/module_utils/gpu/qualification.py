"""Qualification of a host: its stages, findings about readings, the summary of a trace, the validity of its record.

Nothing here acts on a host. Traces and records call GPUs `dies`, by their index.
"""

import json

from ..findings import finding
from .boards import by_serial
from .pci import bus_of
from .xid import describe

SCHEMA = 1

# Bits of clocks_throttle_reasons.active that hardware sets. The power cap (0x4) is no fault: a passive board lives
# there under load.
HARDWARE_THROTTLE = (
    (0x08, "hardware slowdown (heat, or the power brake)"),
    (0x40, "hardware thermal slowdown"),
    (0x80, "power brake: the supply asks for less"),
)

CABLES = (
    "Look at the board's seat, its own 8-pin EPS cable and the air flow, reboot, then run again with "
    "qualification_retry: true."
)


def stages(gpus, device, profile):
    """Stages of a host: [{size, dies}], `dies` being indices; larger stages hold the GPUs of smaller ones.

    gpus: as smi.gpus_of returns them.

    Whole boards come first, and from two GPUs on there are whole boards alone: a board's GPUs share its switch. With
    `verify` each GPU is a board of its own, and any two do.
    """
    per_board = 1 if device == "verify" else profile["gpu"]["per_board"]
    known = by_serial(gpus, per_board)
    whole = sorted(known, key=lambda board: -len(board))
    order = [gpu["index"] for board in whole for gpu in board]
    usable = sum(len(board) for board in whole if len(board) == per_board)
    sizes = profile["serve"]["sizes"]
    return [{"size": size, "dies": order[:size]} for size in sizes if size <= max(usable, min(len(order), 1))]


def pairs(stage, done):
    """Pairs of a stage that no stage before has tried: [(index, index)]."""
    gpus = stage["dies"]
    found = [(first, second) for place, first in enumerate(gpus) for second in gpus[place + 1:]]
    return [pair for pair in found if pair not in done]


def xid_findings(samples, indices, harmless):
    """Findings about Xids, each number of a GPU once; those of `harmless` are warnings."""
    found, seen = [], set()
    for sample in samples:
        for line in sample.get("xids", []):
            index = indices.get(bus_of(line["address"]))
            where = "GPU %d" % index if index is not None else "board at %s" % line["address"]
            if (where, line["xid"]) in seen:
                continue
            seen.add((where, line["xid"]))
            found.append(finding(
                "warning" if line["xid"] in harmless else "error", where,
                describe(line["xid"]) + (": " + line["text"] if line["text"] else ""),
                "no Xid in the kernel log", CABLES,
            ))
    return found


def first_sustained(readings, begins, ends, patience):
    """Return the first (time, value) after the condition has lasted `patience` seconds, or None.

    readings: [(time, value)]. The state begins where `begins(value)` holds and ends where `ends(value)` does.
    """
    since = None
    for time, value in readings:
        if since is None and begins(value):
            since = time
        elif since is not None and ends(value):
            since = None
        if since is not None and time - since >= patience:
            return time, value
    return None


def heat_findings(name, readings, limits, gpu):
    """Findings about temperatures [(time, degrees)]."""
    passive = "A %s has no fan: give it" % gpu["name"] if gpu["cooling"] == "passive" else "Give it"
    limit, margin, patience = limits["temperature"], limits["hysteresis"], limits["patience"]
    at_once = [(time, value) for time, value in readings if value >= limit + margin]
    hot = first_sustained(readings, lambda value: value >= limit, lambda value: value < limit - margin, patience)
    if not (hot or at_once):
        return []
    return [finding(
        "error", name,
        "%s degrees at %d s" % (max(value for _, value in readings), (hot or at_once[0])[0]),
        "less than %d degrees, or back below %d within %d s" % (limit, limit - margin, patience),
        "%s air (the chassis' fans at full speed, no gap beside the boards), then run again with qualification_retry: "
        "true." % passive,
    )]


def throttle_findings(name, readings, limits):
    """Findings about throttling by hardware, of masks [(time, mask)]."""
    found = []
    for bit, meaning in HARDWARE_THROTTLE:
        long = first_sustained(
            readings, lambda mask, bit=bit: mask & bit, lambda mask, bit=bit: not mask & bit,
            limits["throttle_patience"],
        )
        if long:
            found.append(finding(
                "error", name, "%s for %d s, at %d s" % (meaning, limits["throttle_patience"], long[0]),
                "no throttling by hardware", "Look at the air flow, the power supply and the board's EPS cable, then "
                "run again with qualification_retry: true.",
            ))
    return found


def count_findings(name, readings, key):
    """Findings about an error counter or a link width: what it was first and last."""
    values = [reading[key] for reading in readings if reading.get(key) is not None]
    if not values:
        return []
    first, last = values[0], values[-1]
    if key == "uncorrected" and max(values):
        return [finding(
            "error", name, "%d uncorrectable ECC errors, %d of them before" % (max(values), first), "none",
            "Reboot, so that the driver retires the page; if it comes back, replace the board. Then run again with "
            "qualification_retry: true.",
        )]
    if key == "corrected" and last > first:
        return [finding(
            "warning", name, "%d ECC errors corrected under load" % (last - first), "none",
            "Nothing now; a count that goes on rising announces a bad board.",
        )]
    if key == "replays" and last > first:
        return [finding(
            "warning", name, "%d PCIe replays under load" % (last - first), "none",
            "Seat the board anew, or use another slot: packets are lost on the link and sent again.",
        )]
    if key == "width" and min(values) < first:
        return [finding(
            "warning", name, "the PCIe link fell from %d lanes to %d" % (first, min(values)), "%d lanes" % first,
            "Seat the board anew, or use another slot.",
        )]
    return []


def presence_findings(samples, indices):
    """Findings about GPUs that nvidia-smi no longer reads."""
    for sample in samples:
        gone = [index for index in indices if str(index) not in sample["dies"]]
        error = sample.get("error") or "no line for it"
        if gone and len(gone) == len(indices):
            found = "%s, at %d s" % (error, sample["t"])
            return [finding("error", "nvidia-smi", found, "a reading of each GPU", CABLES)]
        if gone:
            return [
                finding("error", "GPU %d" % index, "gone at %d s: %s" % (sample["t"], error), "a reading", CABLES)
                for index in gone
            ]
    return []


def sample_findings(samples, gpus, profile):
    """All findings about `samples`, oldest first: [{t, dies: {index: reading}, xids: [...], error}].

    gpus: those of the host, as smi.gpus_of returns them. profile: the host's, with its `gpu` and `limits`.
    """
    limits = profile["limits"]
    indices = {bus_of(gpu["bus"]): gpu["index"] for gpu in gpus}
    found = xid_findings(samples, indices, limits["xid_harmless"]) + presence_findings(samples, indices.values())
    for index in indices.values():
        name = "GPU %d" % index
        read = [(sample["t"], sample["dies"][str(index)]) for sample in samples if str(index) in sample["dies"]]
        heat = [(time, reading["temperature"]) for time, reading in read]
        found += heat_findings(name, heat, limits, profile["gpu"])
        masks = [(time, reading["throttle"]) for time, reading in read if reading.get("throttle") is not None]
        found += throttle_findings(name, masks, limits)
        for key in ("uncorrected", "corrected", "replays", "width"):
            found += count_findings(name, [reading for _, reading in read], key)
    return found


def read_trace(text):
    """Records of a trace. A machine that halts may leave half a line, or zeros: what is no record is passed over."""
    found = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "event" in record:
            found.append(record)
    return found


def summarize(records):
    """Summarize a trace: {begin, step, sample, passed, ended}.

    begin: its first record, or None. step: the step that was begun last. sample: the last reading. passed: numbers of
    the stages that passed. ended: whether it has its end, or no beginning.
    """
    summary = {"begin": None, "step": None, "sample": None, "passed": [], "ended": False}
    for record in records:
        if record["event"] in ("begin", "step", "sample"):
            summary[record["event"]] = record
        elif record["event"] == "stage end" and record["ok"]:
            summary["passed"].append(record["stage"])
        elif record["event"] == "end":
            summary["ended"] = True
    return summary if summary["begin"] else dict(summary, ended=True)


def reading_text(sample):
    """A sample for people: `GPU 0 71 degrees 139 W, GPU 1 ...`."""
    if not sample:
        return "none"
    parts = []
    for index, reading in sorted(sample["dies"].items(), key=lambda item: int(item[0])):
        power = "" if reading.get("power") is None else " %s W" % reading["power"]
        parts.append("GPU %s %s degrees%s" % (index, reading["temperature"], power))
    return "%s, at %d s" % (", ".join(parts) or sample.get("error") or "no GPU", sample["t"])


def interrupted(summary):
    """(size that passed, finding) of the summary of a trace without its end.

    The stage to blame is the one after the last that passed. If all have passed it is the last: nobody knows what it
    set off.
    """
    known = summary["begin"]["stages"]
    blamed = min(len(summary["passed"]), len(known) - 1)
    step = summary["step"] or {}
    where = "stage %d of %d (%s)" % (blamed + 1, len(known), stage_name(known[blamed]))
    if step.get("stage") == blamed:
        where += ', in the step "%s"' % step["step"]
    return known[blamed - 1]["size"] if blamed else 0, finding(
        "error", "host", "the machine stopped in %s; the last reading: %s" % (where, reading_text(summary["sample"])),
        "a machine that goes on under load",
        "Give each board an EPS cable of its own from a supply with 300 W for each, look at the air flow and at the "
        "firmware's log (ipmitool sel list), then run again with qualification_retry: true.",
    )


def stage_name(stage):
    """A stage for people."""
    indices = ", ".join(str(index) for index in stage["dies"])
    return "GPU %s" % indices if stage["size"] == 1 else "GPUs %s" % indices


def judge_graphs(trouble, done):
    """{proved, because}: whether servers may take CUDA graphs.

    trouble: what was wrong with the engines, or None. done: the last result of their program.
    """
    if trouble or not done or "equal" not in done:
        return {"proved": False, "because": trouble or "no result"}
    times = "%.1f ms a step with them, %.1f without" % (1e3 * done["graphs"], 1e3 * done["eager"])
    if not done["equal"]:
        return {"proved": False, "because": "another answer with them"}
    return {"proved": done["graphs"] < done["eager"], "because": "the same answers, " + times}


def make_record(begin, result, passed, findings, p2p, trace, graphs=None):
    """The record that a host keeps of its qualification.

    begin: first record of the trace. result: `passed`, `failed`, `halted` or `skipped`. passed: largest size that
    passed. p2p: whether GPUs may reach one another directly; None if nobody knows. trace: name of its file or None.
    graphs: as judge_graphs returns it; None where they were not tried.
    """
    known = begin["stages"]
    # With `skip` the operator vouches for all GPUs of the host.
    allowed = known[-1]["size"] if result == "skipped" and known else passed
    indices = [index for stage in known if stage["size"] == allowed for index in stage["dies"]]
    return {
        "schema": SCHEMA, "time": begin["time"], "result": result, "passed_size": passed, "size": allowed,
        "dies": indices, "p2p": p2p, "graphs": graphs, "findings": findings, "trace": trace, "stages": known,
        "kernel": begin["kernel"], "driver": begin["driver"], "device": begin["device"],
        "generation": begin["generation"], "boards": begin["dies"], "seconds": begin["seconds"],
    }


def stale_reasons(found, host, skip=False):
    """Reasons why the record `found` (None if there is none) is not valid for `host`: [text], empty if it is.

    host: {kernel, driver, device, dies}. skip: whether the operator skips the qualification. Which generation was
    qualified is recorded and no reason: upgrades ask their servers for sense.
    """
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        return ["this host was never qualified"]
    reasons = []
    for what in ("kernel", "driver", "device"):
        if found[what] != host[what]:
            reasons.append("%s: now %s, qualified with %s" % (what, host[what], found[what]))
    text = "GPU %(index)s at %(bus)s (board %(serial)s)"
    before, now = [{text % gpu for gpu in gpus} for gpus in (found["boards"], host["dies"])]
    reasons += ["boards: %s has gone" % gpu for gpu in sorted(before - now)]
    reasons += ["boards: %s is new" % gpu for gpu in sorted(now - before)]
    if (found["result"] == "skipped") != skip:
        reasons.append("qualification: %s" % ("to be skipped" if skip else "it was skipped before"))
    return reasons


def progress(records):
    """One line about the work whose trace has `records`. It changes with each step, and every ten seconds."""
    summary = summarize(records)
    if not summary["begin"] or not summary["step"]:
        return "starting"
    step, known = summary["step"], summary["begin"]["stages"]
    text = "stage %d of %d, %s: %s" % (
        step["stage"] + 1, len(known), stage_name(known[step["stage"]]), step["step"]
    )
    samples = [
        record for record in records if record["event"] == "sample" and record["t"] >= step["t"] and record["dies"]
    ]
    if not samples:
        return text
    spent = (samples[-1]["t"] - step["t"]) // 10 * 10
    sample = next(sample for sample in samples if sample["t"] - step["t"] >= spent)
    readings = sample["dies"].values()
    watts = [reading["power"] for reading in readings if reading.get("power") is not None]
    hottest = max(reading["temperature"] for reading in readings)
    return "%s, %d s, %s degrees%s" % (text, spent, hottest, ", %d W in all" % sum(watts) if watts else "")
