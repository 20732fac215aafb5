"""GPUs in the kernel log: the Xids that NVIDIA's driver reports, and GPUs that it has lost.

Self-contained: the role monitoring installs this file beside its program.
"""

import re

# Newer drivers name a part of the GPU behind its address.
XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)[^)]*\): (\d+),? *(.*)$")
# Texts of a driver that has lost a GPU.
LOSSES = "RmInitAdapter failed|fallen off the bus|GPU is lost|GPU is probably locked"
LOST = re.compile("NVRM: (.*(?:%s).*)$" % LOSSES)
# Expression of journalctl for lines that hold either.
GREP = "NVRM: .*(Xid|%s)" % LOSSES
ADDRESS = re.compile(r"\b[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?\b")
# Meaning of an Xid, by NVIDIA's number, and the usual cause.
MEANINGS = {
    13: "graphics engine exception, mostly a program's fault",
    31: "memory page fault, mostly a program's fault",
    32: "invalid or corrupted push buffer, often the PCIe link",
    38: "driver firmware error",
    43: "the GPU stopped processing, mostly a program's fault",
    45: "cleaning up after a process that was ended",
    48: "double-bit ECC error",
    61: "internal microcontroller breakpoint",
    62: "internal microcontroller halt",
    63: "a page with ECC errors is retired",
    64: "a page with ECC errors could not be retired",
    69: "graphics engine class error",
    74: "NVLink error",
    79: "the GPU has fallen off the bus, mostly power or heat",
    92: "high rate of single-bit ECC errors",
}


def describe(number):
    """The number of an Xid with its meaning."""
    return "Xid %d (%s)" % (number, MEANINGS.get(number, "see NVIDIA's list of Xid errors"))


def xid_of(line):
    """Return {address, xid, text} of an Xid in a line of the kernel log, or None."""
    match = XID.search(line)
    return match and {"address": match.group(1), "xid": int(match.group(2)), "text": match.group(3).strip()}


def loss_of(line):
    """Return {address, text} of a line that says that the driver lost a GPU, or None. The address may be None."""
    match = None if XID.search(line) else LOST.search(line)
    address = match and ADDRESS.search(match.group(1))
    return match and {"address": address and address.group(), "text": match.group(1)}


def count(journal, parse, *key):
    """Return what `parse` finds in lines with a time in front, each `key` once, with `count` and the time `last`."""
    found = {}
    for line in (journal or "").splitlines():
        event = parse(line)
        if event:
            place = tuple(event[name] or "" for name in key)
            before = found[place]["count"] if place in found else 0
            found[place] = dict(event, count=before + 1, last=line.partition(" ")[0])
    return [found[place] for place in sorted(found)]


def xids(journal):
    """Xids in kernel lines with a time in front: [{address, xid, text, count, last}], by address and number."""
    return count(journal, xid_of, "address", "xid")


def losses(journal):
    """GPUs that the driver lost, in kernel lines with a time in front: [{address, text, count, last}]."""
    return count(journal, loss_of, "address", "text")
