"""NVIDIA functions on the PCI bus, the bridges above them and the IOMMU, read from sysfs. Nothing here writes."""

import os
import re
import struct

from ..facts import read

NVIDIA = "0x10de"
ADDRESS = re.compile(r"^[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")
HEX = re.compile(r"0x[0-9a-f]{1,16}$")
EXTENDED = 0x100  # where extended capabilities begin in a function's configuration space
ACS = 0x000D  # the capability's number: Access Control Services
REDIRECTS = 0x04 | 0x08  # request and completion redirect, two bits of its control register


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


def names(directory):
    """Sorted names in a directory; none if it cannot be read."""
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def link_name(path):
    """Last part of what the link `path` points at, or None if it is no link."""
    return os.path.basename(os.readlink(path)) if os.path.islink(path) else None


def bar1(text):
    """{start, size} of the second BAR in the text of `resource`, or None without it; start is 0 if it is unmapped.

    A GPU's memory may lie there, which a firmware without "above 4G decoding" cannot place.
    """
    lines = (text or "").splitlines()
    words = lines[1].split() if len(lines) > 1 else []
    if len(words) != 3 or not all(HEX.match(word) for word in words):
        return None
    start, end = (int(word, 16) for word in words[:2])
    return {"start": start, "size": end - start + 1 if end else 0}


def acs_redirects(config):
    """Return whether a bridge sends traffic between its functions up to the root, from the bytes of its configuration.

    None if the capability is missing or cannot be read: without privileges the kernel gives 64 bytes.
    """
    offset, seen = EXTENDED, set()
    while offset and offset not in seen and offset + 8 <= len(config):
        seen.add(offset)
        (header,) = struct.unpack_from("<I", config, offset)
        if header & 0xFFFF == ACS:
            (control,) = struct.unpack_from("<H", config, offset + 6)
            return bool(control & REDIRECTS)
        offset = header >> 20
    return None


def read_bytes(path):
    """Bytes of a file; none if it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError:
        return b""


def width(directory, name):
    """Lanes of a link, or None if sysfs does not say."""
    text = read(os.path.join(directory, name)) or ""
    return int(text) if text.isdigit() else None


def link(directory):
    """{width, max_width} of a function's link: lanes, or None if sysfs does not say."""
    return {"width": width(directory, "current_link_width"), "max_width": width(directory, "max_link_width")}


def bridges_above(directory):
    """Bridges between the root complex and a function, the root port first: [{address, width, max_width, acs}]."""
    steps = os.path.realpath(directory).split(os.sep)[:-1]
    found = []
    for count, step in enumerate(steps, 1):
        if ADDRESS.match(step):
            bridge = os.sep.join(steps[:count])
            acs = acs_redirects(read_bytes(os.path.join(bridge, "config")))
            found.append(dict(link(bridge), address=step, acs=acs))
    return found


def slots(root):
    """{address without function: name} of the physical slots that sysfs knows."""
    found = {}
    for name in names(root):
        address = read(os.path.join(root, name, "address"))
        if address:
            found[address] = name
    return found


def nvidia_devices(root):
    """NVIDIA functions below the sysfs directory `root`, by address; the slots stand beside it.

    Returns [{address, vendor, device, class, driver, bar1, width, max_width, bridges, slot, iommu}]. `driver`
    is None where none is bound, `slot` where the firmware names none, `iommu` (the kind of the group's domain) without
    an IOMMU.
    """
    physical = slots(os.path.join(os.path.dirname(root), "slots"))
    found = []
    for address in names(root):
        directory = os.path.join(root, address)
        if read(os.path.join(directory, "vendor")) != NVIDIA:
            continue
        bridges = bridges_above(directory)
        places = [step["address"] for step in bridges] + [address]
        named = [physical[place.rsplit(".", 1)[0]] for place in places if place.rsplit(".", 1)[0] in physical]
        found.append(dict(
            dict(link(directory), **{"class": read(os.path.join(directory, "class"))}),
            address=address,
            vendor=NVIDIA,
            device=read(os.path.join(directory, "device")),
            driver=link_name(os.path.join(directory, "driver")),
            bar1=bar1(read(os.path.join(directory, "resource"))),
            bridges=bridges,
            slot=named[-1] if named else None,
            iommu=read(os.path.join(directory, "iommu_group", "type")),
        ))
    return found


def driver_gpus(root):
    """Addresses of the GPUs that the loaded driver holds, by its directory in /proc; None if it is not loaded."""
    return names(root) if os.path.isdir(root) else None


def iommu(groups_root, command_line):
    """{groups, passthrough}: whether the kernel runs an IOMMU, and whether its command line lets devices past it."""
    words = (command_line or "").split()
    return {
        "groups": len(names(groups_root)),
        "passthrough": "iommu=pt" in words or "iommu.passthrough=1" in words,
    }
