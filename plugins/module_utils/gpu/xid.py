"""Parse what a host's programs print about its boards and its keys."""

import re

XID = re.compile(r"^(\S+) .*NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+),?\s*(.*)$")
LOST = re.compile(r"^(\S+) .*NVRM: (.*(?:RmInitAdapter failed|fallen off the bus).*)$")
ADDRESS = re.compile(r"\b[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?\b")
# Values of a die that is well, with and without ECC.
MODES = ("Enabled", "Disabled", "N/A", "[N/A]", "[Not Supported]")
COUNT = re.compile(r"(?:[0-9]+|\[?N/A\]?|\[Not Supported\])$")
ECC_FIELDS = ("pci.bus_id", "ecc.mode.current", "ecc.errors.uncorrected.volatile.total",
              "ecc.errors.uncorrected.aggregate.total")


def xids(journal):
    """Xid events in kernel lines with an ISO time in front: [{address, xid, count, last, text}], by address and xid."""
    found = {}
    for line in (journal or "").splitlines():
        match = XID.match(line)
        if match:
            time, address, xid, text = match.groups()
            event = found.setdefault((address, int(xid)), {"address": address, "xid": int(xid), "count": 0})
            event.update(count=event["count"] + 1, last=time, text=text)
    return [found[key] for key in sorted(found)]


def driver_faults(journal):
    """Kernel lines that say that the driver has lost a GPU: [{address, count, last, text}], by address and text.

    `address` is None if the line names none. Xids are left to xids().
    """
    found = {}
    for line in (journal or "").splitlines():
        match = LOST.match(line)
        if match and not XID.match(line):
            time, text = match.groups()
            address = ADDRESS.search(text)
            address = address.group() if address else None
            event = found.setdefault((address or "", text), {"address": address, "count": 0, "text": text})
            event.update(count=event["count"] + 1, last=time)
    return [found[key] for key in sorted(found)]


def ecc(table):
    """Dies of nvidia-smi's CSV with the columns ECC_FIELDS: [{address, mode, volatile, aggregate}].

    The counts are None where the driver gives none. What is no such line, and a die whose values are none, is kept as
    {address, fault}: the line, with the address that it names or None.
    """
    found = []
    for line in (table or "").splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == len(ECC_FIELDS) and fields[1] in MODES and all(map(COUNT.match, fields[2:])):
            counts = [int(field) if field.isdigit() else None for field in fields[2:]]
            found.append({"address": fields[0], "mode": fields[1], "volatile": counts[0], "aggregate": counts[1]})
        elif line.strip():
            address = ADDRESS.search(line)
            found.append({"address": address.group() if address else None, "fault": line.strip()[:300]})
    return found


def enrollment(answer):
    """`enrolled`, `pending` (until a reboot) or `absent`: what `mokutil --test-key` answered; None without an answer.

    Its exit status differs between versions; its words do not.
    """
    text = (answer or "").lower()
    if "already enrolled" in text:
        return "enrolled"
    if "already in the enrollment request" in text:
        return "pending"
    return "absent" if "is not enrolled" in text else None
