"""Filters that judge the boards of a host, the bus that they sit on, and what happened to them before."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugin_utils"))
from kepler_controller.findings import finding

K80 = "0x102d"
# Other Kepler boards that driver 470 sees and that people put into servers, with their compute capability.
OTHER_KEPLER = {
    "0x0ff2": ("GRID K1", "sm_30"),
    "0x118f": ("Tesla K10", "sm_30"),
    "0x1194": ("Tesla K8", "sm_30"),
    "0x11bf": ("GRID K2", "sm_30"),
    "0x1005": ("GeForce GTX TITAN", "sm_35"),
    "0x100c": ("GeForce GTX TITAN Black", "sm_35"),
    "0x1020": ("Tesla K20X", "sm_35"),
    "0x1021": ("Tesla K20Xm", "sm_35"),
    "0x1022": ("Tesla K20c", "sm_35"),
    "0x1023": ("Tesla K40m", "sm_35"),
    "0x1024": ("Tesla K40c", "sm_35"),
    "0x1026": ("Tesla K20s", "sm_35"),
    "0x1028": ("Tesla K20m", "sm_35"),
    "0x1029": ("Tesla K40s", "sm_35"),
    "0x102a": ("Tesla K40t", "sm_35"),
    "0x103a": ("Quadro K6000", "sm_35"),
    "0x103c": ("Quadro K5200", "sm_35"),
}
# Memory of one die, all of it behind the second BAR.
BAR1_BYTES = 16 * 2**30


def k80s(host: dict) -> list[dict]:
    """The K80 dies on the PCI bus."""
    return [device for device in host["pci"] if device["device"] == K80]


def k80_dies(host: dict) -> int:
    """Number of K80 dies on the PCI bus; a board has two."""
    return len(k80s(host))


def k80_numbers(host: dict) -> list[int]:
    """Numbers of the K80 dies, as CUDA counts in PCI order: every board counts, its audio function does not."""
    boards = [device for device in host["pci"] if device["address"].endswith(".0")]
    return [number for number, device in enumerate(boards) if device["device"] == K80]


def boards(host: dict) -> dict[str, list[dict]]:
    """K80 dies by the upstream port of their board's PLX switch; dies with no switch above them are left out.

    A die hangs on a downstream port of the switch, so the upstream port is the second bridge above it.
    """
    found: dict[str, list[dict]] = {}
    for die in k80s(host):
        if len(die["bridges"]) > 1:
            found.setdefault(die["bridges"][-2]["address"], []).append(die)
    return found


def place(die: dict) -> str:
    """A die as people find it: its address, and the slot where the firmware names one."""
    return die["address"] + (f" (slot {die['slot']})" if die["slot"] else "")


def missing_dies(host: dict) -> list[dict[str, str]]:
    """Findings about boards that show one die of two."""
    next_step = "Look for the other die in the firmware and in the kernel's log; a reseated board often has it again."
    by_board = boards(host)
    halves = [dies for dies in by_board.values() if len(dies) == 1]
    if sum(len(dies) for dies in by_board.values()) < k80_dies(host):  # the tree does not show every switch
        if k80_dies(host) % 2 == 0:
            return []
        count = k80_dies(host)
        return [finding("warning", "host", f"{count} K80 dies on the PCI bus", "two for each board", next_step)]
    return [
        finding(
            "warning", "host", f"a K80 board with one die alone, {place(dies[0])}",
            f"two dies behind the switch {dies[0]['bridges'][-2]['address']}", next_step,
        )
        for dies in halves
    ]


def board_findings(host: dict) -> list[dict[str, str]]:
    """Findings about which boards are on the PCI bus."""
    found = []
    if not k80s(host):
        others = ", ".join(f"{device['address']} {device['device']}" for device in host["pci"]) or "none at all"
        found.append(finding(
            "error", "host", f"no Tesla K80 on the PCI bus (NVIDIA functions there: {others})",
            f"two functions 0x10de:{K80} for each board",
            "Check the board's seat, its EPS power plug and «above 4G decoding» in the firmware, or take the host out "
            "of k80-hosts.",
        ))
    found += missing_dies(host)
    for device in host["pci"]:
        if device["device"] in OTHER_KEPLER:
            name, capability = OTHER_KEPLER[device["device"]]
            found.append(finding(
                "warning", "host", f"a {name} at {place(device)}",
                f"K80 boards alone: a {name} is {capability}, which nothing here is built for",
                "Nothing, where no instance lists it: dies are numbered in PCI order over all NVIDIA boards.",
            ))
    return found


def bar_findings(host: dict) -> list[dict[str, str]]:
    """Findings about dies whose memory the firmware did not place."""
    return [
        finding(
            "error", "host",
            f"the memory of the die {place(die)} is not mapped (BAR 1: start {die['bar1']['start']:#x}, "
            f"size {die['bar1']['size']:#x})",
            f"{BAR1_BYTES // 2**30} GiB at an address above 4 GiB",
            "Turn «above 4G decoding» (also: memory mapped I/O above 4 GB) on in the firmware, then boot again.",
        )
        for die in k80s(host)
        if die["bar1"] is not None and (die["bar1"]["start"] == 0 or die["bar1"]["size"] < BAR1_BYTES)
    ]


def link_findings(host: dict) -> list[dict[str, str]]:
    """Findings about links with fewer lanes than both of their ends could have."""
    places = {}
    for die in k80s(host):
        places[die["address"]] = (f"the die {place(die)}", die)
        if len(die["bridges"]) > 1:
            switch = die["bridges"][-2]
            slot = f" in slot {die['slot']}" if die["slot"] else ""
            places[switch["address"]] = (f"the board behind {switch['address']}{slot}", switch)
    return [
        finding(
            "warning", "host", f"{name}: a link of {end['width']} lanes", f"{end['max_width']} lanes",
            "Clean the contacts and seat the board again, or move it to a slot that is wired for them all.",
        )
        for name, end in places.values()
        if end["width"] and end["max_width"] and end["width"] < end["max_width"]
    ]


def isolation_findings(host: dict, container: bool) -> list[dict[str, str]]:
    """Findings about what sends the traffic between two dies on a detour, where NCCL hangs."""
    found = []
    fallback = "Where neither helps, NCCL_P2P_DISABLE=1 goes through shared memory instead."
    redirecting = sorted({
        bridge["address"] for die in k80s(host) for bridge in die["bridges"] if bridge["acs"]
    })
    if redirecting:
        found.append(finding(
            "warning", "host", f"ACS sends traffic between dies up to the root at {', '.join(redirecting)}",
            "no redirection on the bridges above K80 dies: NCCL's peer-to-peer transfers hang there",
            f"Turn ACS off in the firmware (often under PCIe or virtualisation), then boot again. {fallback}",
        ))
    kinds = {die["iommu"] for die in k80s(host)} - {None}
    translated = bool(kinds - {"identity"}) if kinds else host["iommu"]["groups"] and not host["iommu"]["passthrough"]
    if translated and not container:
        found.append(finding(
            "warning", "host", f"the IOMMU translates what dies send ({host['iommu']['groups']} groups)",
            "no IOMMU, or passthrough: NCCL's peer-to-peer transfers hang behind it",
            "grubby --update-kernel=ALL --args=iommu=pt, then boot again; or turn VT-d off in the firmware. "
            + fallback,
        ))
    return found


# What Xids say that people most often meet, as NVIDIA's list has them.
XIDS = {
    13: "an exception of the graphics engine, mostly a program's fault",
    31: "a memory page fault, mostly a program's fault",
    43: "a stopped channel, mostly a program's fault",
    45: "a channel that was taken down",
    48: "an ECC error of two bits",
    61: "a fault of the internal micro-controller",
    62: "a halted internal micro-controller",
    63: "a retired memory page",
    64: "a memory page that could not be retired",
    74: "a link fault",
    79: "a die that fell off the bus: mostly power or heat",
}


def history_findings(host: dict) -> list[dict[str, str]]:
    """Findings about what the kernel's journal and the driver remember."""
    found = []
    for event in host["xids"]:
        meaning = XIDS.get(event["xid"])
        found.append(finding(
            "warning", "host",
            f"Xid {event['xid']}" + (f" ({meaning})" if meaning else "")
            + f" of {event['address']}, {event['count']} times, the last at {event['last']}: {event['text']}",
            "no Xid in the kernel's journal",
            "Check power plugs and cooling, and qualify the host again before it serves.",
        ))
    for die in host["ecc"]:
        if die["mode"] == "Disabled":
            found.append(finding(
                "warning", "host", f"ECC is off on {die['address']}", "ECC on: without it a wrong bit goes unseen",
                f"nvidia-smi -i {die['address']} --ecc-config=1, then boot again.",
            ))
        if die["volatile"] or die["aggregate"]:
            found.append(finding(
                "warning", "host",
                f"{die['address']}: uncorrected ECC errors, {die['volatile']} since the last boot, {die['aggregate']} "
                "in all",
                "none", "Watch the number; replace a board whose number grows.",
            ))
    return found


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {"k80_dies": k80_dies}
