"""nvidia-smi: run it, which may fail or never end, and parse what it prints."""

import re
import subprocess

from .pci import bus_of
from .xid import ADDRESS

TIMEOUT = 20.0  # seconds within which nvidia-smi answers even under load

# Fields of a GPU's identity.
IDENTITY = ("index", "name", "pci.bus_id", "serial", "driver_version")
# Fields of a reading, and the name of each in a sample.
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
# A reading without these says nothing.
NEEDED = ("index", "pci.bus_id", "temperature.gpu")
UNKNOWN_FIELD = re.compile(r'Field "([^"]+)" is not a valid field')
ECC_FIELDS = ("pci.bus_id", "ecc.mode.current", "ecc.errors.uncorrected.volatile.total",
              "ecc.errors.uncorrected.aggregate.total")
# Values of ECC_FIELDS of a GPU that is well, with and without ECC.
MODES = ("Enabled", "Disabled", "N/A", "[N/A]", "[Not Supported]")
COUNT = re.compile(r"(?:[0-9]+|\[?N/A\]?|\[Not Supported\])$")


def smi(command, arguments, timeout=TIMEOUT):
    """Run nvidia-smi: (whether it succeeded, its text). If it hangs in the driver, the text says so."""
    try:
        process = subprocess.Popen(
            [command] + arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            encoding="utf-8", errors="replace",  # of a damaged infoROM any byte comes out
        )
    except OSError as error:
        return False, "%s: %s" % (command, error.strerror)
    try:
        text = process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        # Do not wait for the process: one that hangs in the driver cannot be killed.
        process.kill()
        return False, "%s did not answer within %d s" % (command, timeout)
    if process.returncode and not text.strip():
        text = "%s ended with status %d and printed nothing" % (command, process.returncode)
    return process.returncode == 0, text.strip()


def query(command, fields, timeout=TIMEOUT, what="gpu"):
    """Query fields of each GPU, or of each process with `what` compute-apps: as smi()."""
    return smi(command, ["--query-%s=%s" % (what, ",".join(fields)), "--format=csv,noheader,nounits"], timeout)


def rows(text, count):
    """Values of those lines of an answer to query() that have `count` of them: [[value, ...], ...]."""
    lines = [[value.strip() for value in line.split(",")] for line in (text or "").splitlines()]
    return [values for values in lines if len(values) == count]


def number_in(text):
    """Number of a value with or without its unit; None for `[N/A]` and the like."""
    words = text.split()
    try:
        value = float(int(words[0], 16)) if words[0].startswith("0x") else float(words[0])
    except (IndexError, ValueError):
        return None
    if not abs(value) < float("inf"):
        return None
    return int(value) if value == int(value) else value


def gpus_of(text, products=None):
    """GPUs in the answer to IDENTITY, in the order of the bus: [{index, name, bus, serial, driver}].

    products: parts of the names of those that count; all do without it.
    """
    found = [
        {"index": int(index), "name": name, "bus": bus, "serial": serial, "driver": driver}
        for index, name, bus, serial, driver in rows(text, len(IDENTITY))
        if index.isdigit() and bus_of(bus) and (products is None or any(product in name for product in products))
    ]
    return sorted(found, key=lambda gpu: bus_of(gpu["bus"]))


def known_fields(command):
    """(fields that this nvidia-smi knows, those that it does not, its error if one of NEEDED is missing)."""
    fields, absent = [field for field, _ in FIELDS], []
    while True:
        fine, text = query(command, fields)
        if fine:
            return fields, absent, None
        unknown = UNKNOWN_FIELD.search(text)
        if not unknown or unknown.group(1) not in fields or unknown.group(1) in NEEDED:
            return fields, absent, text
        absent.append(unknown.group(1))
        fields.remove(unknown.group(1))


def readings(text, fields, indices):
    """Readings in an answer to `fields`: {index of the GPU, as text: {name: number or None}}.

    indices: {address as bus_of gives it: index}. A GPU keeps the index that it had at the start: nvidia-smi counts
    anew if one has gone. One without a temperature has fallen off the bus, and is left out.
    """
    names, found = dict(FIELDS), {}
    for values in rows(text, len(fields)):
        reading = {names[field]: values[place] for place, field in enumerate(fields)}
        index = indices.get(bus_of(reading.pop("bus")))
        reading.pop("index")
        reading = {name: number_in(value) for name, value in reading.items()}
        if index is not None and reading["temperature"] is not None:
            found[str(index)] = reading
    return found


def replay_counters(text):
    """PCIe replays since the driver was loaded, in the answer to -q: {address as bus_of gives it: count}."""
    found, bus = {}, None
    for line in text.splitlines():
        if line.startswith("GPU "):
            bus = bus_of("".join(line.split()[1:2]))
        elif line.strip().startswith("Replays Since Reset") and bus:
            value = number_in(line.partition(":")[2])
            if value is not None:
                found[bus] = value
    return found


def ecc(text):
    """GPUs in the answer to ECC_FIELDS: [{address, mode, volatile, aggregate}]; a count may be None.

    Any other line, and a GPU that is not well, is kept as {address or None, fault: the line}.
    """
    found = []
    for line in (text or "").splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) == len(ECC_FIELDS) and values[1] in MODES and all(map(COUNT.match, values[2:])):
            counts = [int(value) if value.isdigit() else None for value in values[2:]]
            found.append({"address": values[0], "mode": values[1], "volatile": counts[0], "aggregate": counts[1]})
        elif line.strip():
            address = ADDRESS.search(line)
            found.append({"address": address.group() if address else None, "fault": line.strip()[:300]})
    return found


def processes(gpus, apps):
    """Processes on GPUs: [(index of the GPU, pid, MiB)].

    gpus: answer to `index`, `pci.bus_id`; apps: answer to `pid`, `gpu_bus_id`, `used_memory` of compute-apps.
    """
    indices = {bus_of(bus): int(index) for index, bus in rows(gpus, 2) if index.isdigit()}
    # In a container nvidia-smi knows no numbers of processes.
    return [(indices.get(bus_of(bus)), int(pid), memory) for pid, bus, memory in rows(apps, 3) if pid.isdigit()]
