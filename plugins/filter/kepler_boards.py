"""Filters that judge the boards of a host, the bus that they sit on, and what happened to them before."""

from __future__ import annotations

import re
from collections.abc import Callable

from ansible_collections.kepler.vllm.plugins.plugin_utils.findings import finding

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
# Ranges of PCI device ids that driver 470 does not drive, by the chips that the PCI ID database names there; Kepler to
# Ampere lie between them. First and last id.
NOT_470 = (
    (0x0000, 0x0FBF),  # Fermi (GF100, GF104, GF106, GF108) and all before it
    (0x1040, 0x117F),  # Fermi (GF110, GF117, GF119) and GT218
    (0x1200, 0x127F),  # Fermi (GF114, GF116)
    (0x2300, 0x23FF),  # Hopper
    (0x2600, 0xFFFF),  # Ada, Blackwell and newer
)
# Drivers that reserve a GPU for a virtual machine; NVIDIA's driver cannot take it from them.
GIVEN_AWAY = ("vfio-pci", "pci-stub", "xen-pciback")
# How the class of a GPU begins in sysfs; NVIDIA's chipsets and switches have another.
DISPLAY = "0x03"
# nvidia-smi's answers for a die that it cannot reach.
LOST = re.compile("is lost|device handle|fallen off")
# Memory of one die, all of it behind the second BAR.
BAR1_BYTES = 16 * 2**30


def k80s(host: dict) -> list[dict]:
    """The K80 dies on the PCI bus."""
    return [device for device in host["pci"] if device["device"] == K80]


def k80_dies(host: dict) -> int:
    """Number of K80 dies on the PCI bus; a board has two."""
    return len(k80s(host))


def same(address: str) -> str:
    """A PCI address as all who write it agree on: some pad its domain, some leave out its function."""
    return address.lower().lstrip("0").removesuffix(".0")


def unlisted(host: dict) -> Callable[[dict], bool]:
    """A test of a function that the driver holds: whether nvidia-smi, and so CUDA, passes over it."""
    rows = host.get("ecc", [])
    listed = {same(row["address"]) for row in rows if row["address"]}
    lost = {same(row["address"]) for row in rows if row["address"] and LOST.search(row.get("fault", ""))}
    answered = any("mode" in row for row in rows)
    return lambda device: same(device["address"]) in lost or (answered and same(device["address"]) not in listed)


def seen_by_cuda(host: dict) -> list[dict]:
    """The functions that CUDA counts, in PCI order.

    Once the driver holds K80 dies, what it holds and nvidia-smi lists is counted. Before that, what driver 470 will
    hold: nouveau gives way to it.
    """
    gpus = [
        device for device in host["pci"]
        if device["address"].endswith(".0") and (device.get("class") or DISPLAY).startswith(DISPLAY)
    ]
    held = {same(address) for address in host.get("nvidia_gpus") or []} or {
        same(device["address"]) for device in gpus if device["driver"] == "nvidia"
    }
    if any(same(die["address"]) in held for die in k80s(host)):
        passed_over = unlisted(host)
        return [device for device in gpus if same(device["address"]) in held and not passed_over(device)]
    return [
        device for device in gpus
        if device["driver"] not in GIVEN_AWAY
        and not any(first <= int(device["device"], 16) <= last for first, last in NOT_470)
    ]


def k80_numbers(host: dict) -> list[int]:
    """Numbers of the K80 dies, as CUDA counts in PCI order over all boards that it sees."""
    return [number for number, device in enumerate(seen_by_cuda(host)) if device["device"] == K80]


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
            "Check the board's seat, its EPS power plug and \"above 4G decoding\" in the firmware, or take the host "
            "out of k80-hosts.",
        ))
    found += missing_dies(host)
    for device in host["pci"]:
        if device["device"] in OTHER_KEPLER:
            name, capability = OTHER_KEPLER[device["device"]]
            found.append(finding(
                "warning", "host", f"a {name} at {place(device)}",
                f"K80 boards alone: a {name} is {capability}, which nothing here is built for",
                "Nothing, where no instance lists it: GPUs are numbered in PCI order over all boards that CUDA sees.",
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
            "Turn \"above 4G decoding\" (also: memory mapped I/O above 4 GB) on in the firmware, then boot again.",
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
            f"Turn ACS off in the firmware (often under PCIe or virtualization), then boot again. {fallback}",
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


# Meaning of the most frequent Xids, after NVIDIA's list.
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


LOST_DIE = (
    "Look at `journalctl -k -g NVRM` on the host, power it off and on, check the board's seat and its power plug; "
    "replace a board that is lost again."
)
DRIVER_MISMATCH = "Boot the host again, so that the loaded module is that of the installed driver."


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
    for event in host.get("driver_faults", []):
        found.append(finding(
            "warning", "host",
            f"{event['text']} ({event['count']} times, the last at {event['last']})",
            "a driver that reaches every die", LOST_DIE,
        ))
    for die in host["ecc"]:
        if "fault" in die:
            found.append(finding(
                "warning", "host", f"nvidia-smi says of {die['address'] or 'the host'}: {die['fault']}",
                "a mode and two counts of ECC errors for each die",
                DRIVER_MISMATCH if "mismatch" in die["fault"] else LOST_DIE,
            ))
            continue
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


def unlisted_findings(host: dict) -> list[dict[str, str]]:
    """Findings about dies that the driver holds and nvidia-smi passes over without a word."""
    named = {same(row["address"]) for row in host["ecc"] if row["address"]}
    passed_over = unlisted(host)
    return [
        finding(
            "warning", "host", f"the die {place(die)}, which nvidia-smi does not list",
            "every die that the driver holds", LOST_DIE,
        )
        for die in k80s(host) if die["driver"] == "nvidia" and passed_over(die) and same(die["address"]) not in named
    ]


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {"k80_dies": k80_dies}
