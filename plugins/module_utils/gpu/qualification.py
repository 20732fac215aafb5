"""Qualification of a host: which stages there are, what a reading says, what a trace tells, what a stamp is worth.

A finding is a mapping of five strings, as those of the preflight: severity (`error` or `warning`), variable (what to
look at), found, expected, next_step. Nothing here acts on a host.
"""

import json
import re

SCHEMA = 1

# What is asked of nvidia-smi for each GPU, and its name in a sample.
FIELDS = (
    ("index", "index"),
    ("pci.bus_id", "bus"),
    ("temperature.gpu", "temperature"),
    ("power.draw", "power"),
    ("clocks.sm", "clock"),
    ("clocks_throttle_reasons.active", "throttle"),
    ("ecc.errors.uncorrected.volatile.total", "uncorrected"),
    ("ecc.errors.corrected.volatile.total", "corrected"),
    ("pcie.link.gen.current", "gen"),
    ("pcie.link.width.current", "width"),
)
# Without these there is nothing to judge.
NEEDED = ("index", "pci.bus_id", "temperature.gpu")
UNKNOWN_FIELD = re.compile(r'Field "([^"]+)" is not a valid field')

# Bits of clocks_throttle_reasons.active that hardware sets. The power cap (0x4) is no fault: a passive board lives
# there under load.
HARDWARE_THROTTLE = (
    (0x08, "hardware slowdown (heat, or the power brake)"),
    (0x40, "hardware thermal slowdown"),
    (0x80, "power brake: the supply asks for less"),
)

XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)\): (\d+)(?:, *(.*))?")
# NVIDIA's numbers for what went wrong on a GPU.
XIDS = {
    13: "graphics engine exception",
    31: "memory page fault",
    32: "invalid or corrupted push buffer: often the PCIe link",
    38: "driver firmware error",
    43: "the GPU stopped processing",
    45: "cleaning up after a process that was ended",
    48: "double-bit ECC error",
    61: "internal microcontroller breakpoint",
    62: "internal microcontroller halt",
    63: "a page with ECC errors is retired",
    64: "a page with ECC errors could not be retired",
    69: "graphics engine class error",
    79: "the GPU has fallen off the bus",
    92: "high rate of single-bit ECC errors",
}
CABLES = (
    "Look at the board's seat, its own 8-pin EPS cable and the air flow, reboot, then run again with "
    "qualification_retry: true."
)


def finding(severity, variable, found, expected, next_step):
    """One finding."""
    return {"severity": severity, "variable": variable, "found": found, "expected": expected, "next_step": next_step}


def errors(findings):
    """Those that end a qualification."""
    return [item for item in findings if item["severity"] == "error"]


def bus_of(text):
    """(domain, bus, device) of a PCI address as nvidia-smi, sysfs and the kernel log write it; None of no address."""
    parts = text.split(".")[0].split(":")
    if len(parts) not in (2, 3):
        return None
    try:
        numbers = [int(part, 16) for part in parts]
    except ValueError:
        return None
    return tuple([0] * (3 - len(numbers)) + numbers)


def number_in(text):
    """The number that a value of nvidia-smi is, with or without its unit; None of `[N/A]` and the like."""
    words = text.split()
    try:
        value = float(int(words[0], 16)) if words[0].startswith("0x") else float(words[0])
    except (IndexError, ValueError):
        return None
    return int(value) if value == int(value) else value


def dies_of(text, device, products):
    """Dies that are qualified: [{index, name, bus, serial, driver}] of the answer to DESCRIBE.

    device: with `verify` every GPU counts, else those of `products` alone.
    """
    found = []
    for line in text.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) != 5 or bus_of(values[2]) is None or not values[0].isdigit():
            continue
        if device == "verify" or any(product in values[1] for product in products):
            found.append({
                "index": int(values[0]), "name": values[1], "bus": values[2], "serial": values[3], "driver": values[4],
            })
    return sorted(found, key=lambda die: bus_of(die["bus"]))


# What dies_of reads.
DESCRIBE = "index,name,pci.bus_id,serial,driver_version"


def boards(dies, per_board):
    """The dies of each board, in the order of the bus: [[die, ...], ...].

    The dies of a board have its serial number. Where nvidia-smi tells none, dies on buses that follow one another
    behind the board's switch are one board.
    """
    found = []
    for die in dies:
        mates = found[-1] if found else []
        if 0 < len(mates) < per_board:
            mate = mates[-1]
            serials = {mate["serial"], die["serial"]}
            if all(serial.isdigit() and int(serial) for serial in serials):
                same = len(serials) == 1
            else:
                first, second = bus_of(mate["bus"]), bus_of(die["bus"])
                same = first[0] == second[0] and second[1] - first[1] == 1
            if same:
                mates.append(die)
                continue
        found.append([die])
    return found


def stages(dies, device, profile):
    """Stages of a host: [{size, dies}], `dies` being numbers; larger stages hold the GPUs of smaller ones.

    Whole boards come first, and from two GPUs on there are whole boards alone: a board's GPUs share its switch. With
    `verify` each GPU is a board of its own, and any two do.
    """
    per_board = 1 if device == "verify" else profile["gpu"]["per_board"]
    known = boards(dies, per_board)
    whole = sorted(known, key=lambda board: -len(board))
    order = [die["index"] for board in whole for die in board]
    usable = sum(len(board) for board in whole if len(board) == per_board)
    sizes = profile["serve"]["sizes"]
    return [{"size": size, "dies": order[:size]} for size in sizes if size <= max(usable, min(len(order), 1))]


def pairs(stage, done):
    """Pairs of a stage that no stage before has tried: [(die, die)]."""
    dies = stage["dies"]
    found = [(first, second) for place, first in enumerate(dies) for second in dies[place + 1:]]
    return [pair for pair in found if pair not in done]


def read_smi(text, fields, numbers):
    """Readings of an answer of nvidia-smi, by die: {number: {name: value}}.

    fields: what was asked for, in order. numbers: {address as bus_of gives it: number of the GPU}. A GPU keeps the
    number that it had at the start: nvidia-smi counts anew where one has gone. One without a temperature is left out:
    a GPU that has fallen off the bus is listed so.
    """
    names, found = dict(FIELDS), {}
    for line in text.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) != len(fields):
            continue
        reading = {names[field]: values[place] for place, field in enumerate(fields)}
        number = numbers.get(bus_of(reading.pop("bus")))
        reading.pop("index")
        reading = {name: number_in(value) for name, value in reading.items()}
        if number is not None and reading["temperature"] is not None:
            found[str(number)] = reading
    return found


def read_xids(lines):
    """Xid lines of the kernel log: [{bus, xid, text}]."""
    found = []
    for line in lines:
        match = XID.search(line)
        if match:
            found.append({"bus": match.group(1), "xid": int(match.group(2)), "text": (match.group(3) or "").strip()})
    return found


def xid_findings(samples, numbers, harmless):
    """Findings about Xid lines, each number of a GPU once; those of `harmless` are warnings."""
    found, seen = [], set()
    for sample in samples:
        for line in sample.get("xids", []):
            number = numbers.get(bus_of(line["bus"]))
            where = "GPU %d" % number if number is not None else "board at %s" % line["bus"]
            if (where, line["xid"]) in seen:
                continue
            seen.add((where, line["xid"]))
            found.append(finding(
                "warning" if line["xid"] in harmless else "error", where,
                "Xid %d (%s)%s" % (
                    line["xid"], XIDS.get(line["xid"], "see NVIDIA's list of Xid errors"),
                    ": " + line["text"] if line["text"] else "",
                ),
                "no Xid in the kernel log", CABLES,
            ))
    return found


def held(readings, begins, ends, patience):
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
    passive = "A %s has no fan: give it" % gpu["products"][0] if gpu["cooling"] == "passive" else "Give it"
    limit, margin, patience = limits["temperature"], limits["hysteresis"], limits["patience"]
    at_once = [(time, value) for time, value in readings if value >= limit + margin]
    hot = held(readings, lambda value: value >= limit, lambda value: value < limit - margin, patience)
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
        long = held(readings, lambda mask, bit=bit: mask & bit, lambda mask, bit=bit: not mask & bit,
                    limits["throttle_patience"])
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


def presence_findings(samples, dies):
    """Findings about dies that nvidia-smi no longer reads."""
    for sample in samples:
        gone = [number for number in dies if str(number) not in sample["dies"]]
        said = sample.get("error") or "no line for it"
        if gone and len(gone) == len(dies):
            found = "%s, at %d s" % (said, sample["t"])
            return [finding("error", "nvidia-smi", found, "a reading of each GPU", CABLES)]
        if gone:
            return [
                finding("error", "GPU %d" % number, "gone at %d s: %s" % (sample["t"], said), "a reading", CABLES)
                for number in gone
            ]
    return []


def judge(samples, dies, profile):
    """All findings about `samples`, oldest first: [{t, dies: {number: reading}, xids: [...], error}].

    dies: those of the host, as dies_of returns them. profile: the host's, with its `gpu` and `limits`.
    """
    limits = profile["limits"]
    numbers = {bus_of(die["bus"]): die["index"] for die in dies}
    indices = [die["index"] for die in dies]
    found = xid_findings(samples, numbers, limits["xid_harmless"]) + presence_findings(samples, indices)
    for number in indices:
        name = "GPU %d" % number
        read = [(sample["t"], sample["dies"][str(number)]) for sample in samples if str(number) in sample["dies"]]
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


def account(records):
    """Summarize a trace: {begin, step, sample, passed, ended}.

    begin: its first record, or None. step: the step that was begun last. sample: the last reading. passed: numbers of
    the stages that passed. ended: whether it has its end.
    """
    told = {"begin": None, "step": None, "sample": None, "passed": [], "ended": False}
    for record in records:
        if record["event"] in ("begin", "step", "sample"):
            told[record["event"]] = record
        elif record["event"] == "stage end" and record["ok"]:
            told["passed"].append(record["stage"])
        elif record["event"] == "end":
            told["ended"] = True
    return told if told["begin"] else dict(told, ended=True)


def reading_text(sample):
    """A sample for people: `GPU 0 71 degrees 139 W, GPU 1 ...`."""
    if not sample:
        return "none"
    parts = []
    for number, reading in sorted(sample["dies"].items(), key=lambda item: int(item[0])):
        power = "" if reading.get("power") is None else " %s W" % reading["power"]
        parts.append("GPU %s %s degrees%s" % (number, reading["temperature"], power))
    return "%s, at %d s" % (", ".join(parts) or sample.get("error") or "no GPU", sample["t"])


def halted(told):
    """(size that passed, finding) of the account of a trace without its end.

    The stage that is to blame is the one after the last that passed. Where all have passed it is the last: nobody
    knows what it set off.
    """
    known = told["begin"]["stages"]
    blamed = min(len(told["passed"]), len(known) - 1)
    step = told["step"] or {}
    where = "stage %d of %d (%s)" % (blamed + 1, len(known), stage_name(known[blamed]))
    if step.get("stage") == blamed:
        where += ', in the step "%s"' % step["step"]
    return known[blamed - 1]["size"] if blamed else 0, finding(
        "error", "host", "the machine stopped in %s; the last reading: %s" % (where, reading_text(told["sample"])),
        "a machine that goes on under load",
        "Give each board an EPS cable of its own from a supply with 300 W for each, look at the air flow and at the "
        "firmware's log (ipmitool sel list), then run again with qualification_retry: true.",
    )


def stage_name(stage):
    """A stage for people."""
    dies = ", ".join(str(number) for number in stage["dies"])
    return "GPU %s" % dies if stage["size"] == 1 else "GPUs %s" % dies


def stamp(begin, result, passed, findings, p2p, trace):
    """The record that a host keeps of its qualification.

    begin: first record of the trace. result: `passed`, `failed`, `halted` or `skipped`. passed: largest size that
    passed. p2p: whether dies may reach one another directly; None where nobody knows. trace: name of its file or None.
    """
    known = begin["stages"]
    # With `skip` the operator vouches for all GPUs of the host.
    allowed = known[-1]["size"] if result == "skipped" and known else passed
    dies = [number for stage in known if stage["size"] == allowed for number in stage["dies"]]
    return {
        "schema": SCHEMA, "time": begin["time"], "result": result, "passed_size": passed, "size": allowed,
        "dies": dies, "p2p": p2p, "findings": findings, "trace": trace, "stages": known,
        "kernel": begin["kernel"], "driver": begin["driver"], "device": begin["device"],
        "generation": begin["generation"], "boards": begin["dies"], "seconds": begin["seconds"],
    }


def reasons_against(found, host, skip=False):
    """Why the stamp `found` (None where there is none) says nothing about `host`: [text], empty where it holds.

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
    before, now = [{text % die for die in dies} for dies in (found["boards"], host["dies"])]
    reasons += ["boards: %s has gone" % die for die in sorted(before - now)]
    reasons += ["boards: %s is new" % die for die in sorted(now - before)]
    if (found["result"] == "skipped") != skip:
        reasons.append("qualification: %s" % ("to be skipped" if skip else "it was skipped before"))
    return reasons


def progress(records):
    """One line about the work whose trace has `records`. It changes with each step, and every ten seconds."""
    told = account(records)
    if not told["begin"] or not told["step"]:
        return "starting"
    step, known = told["step"], told["begin"]["stages"]
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
