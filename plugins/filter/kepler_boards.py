"""Findings about the boards of a host, the bus that they sit on, and what happened to them before.

`host` is what the module kepler_host_facts returned, with `gpu` of the host's profile and `group`, where its hosts are.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ansible_collections.kepler.vllm.plugins.module_utils.findings import finding
from ansible_collections.kepler.vllm.plugins.module_utils.gpu.boards import by_switch
from ansible_collections.kepler.vllm.plugins.module_utils.gpu.pci import bus_of
from ansible_collections.kepler.vllm.plugins.module_utils.gpu.xid import describe
from ansible_collections.kepler.vllm.plugins.plugin_utils import profiles

# Drivers that reserve a GPU for a virtual machine; NVIDIA's driver cannot take it from them.
GIVEN_AWAY = ("vfio-pci", "pci-stub", "xen-pciback")
# The class of a GPU in sysfs begins so; NVIDIA's chipsets and switches have another.
DISPLAY = "0x03"
# nvidia-smi's answers for a GPU that it cannot reach.
LOST = re.compile("is lost|device handle|fallen off")


def is_gpu(host: dict, device: dict) -> bool:
    """Return whether a function on the PCI bus is a GPU of the profile."""
    return device["device"] in host["gpu"]["pci_ids"]


def gpus_of(host: dict) -> list[dict]:
    """The GPUs of the profile on the PCI bus."""
    return [device for device in host["pci"] if is_gpu(host, device)]


def profile_gpus(facts: dict, gpu: dict) -> int:
    """Number of the GPUs of a profile on the PCI bus."""
    return len(gpus_of({**facts, "gpu": gpu}))


def gpu_of(facts: dict, gpu: dict) -> dict:
    """A profile's `gpu` with the memory and bandwidth of the least of a host's boards, if it has any of them."""
    boards = [gpu["boards"][device["device"]] for device in gpus_of({**facts, "gpu": gpu})]
    least = min(boards, key=lambda board: (board["memory_mib"], board["bandwidth"]), default=gpu)
    return {**gpu, "memory_mib": least["memory_mib"], "bandwidth": least["bandwidth"]}


def product(host: dict) -> str:
    """Name of the GPUs of the profile."""
    return host["gpu"]["name"]


def unlisted(host: dict) -> Callable[[dict], bool]:
    """A test of a function that the driver holds: whether nvidia-smi, and so CUDA, passes over it."""
    rows = host.get("ecc", [])
    listed = {bus_of(row["address"]) for row in rows if row["address"]}
    lost = {bus_of(row["address"]) for row in rows if row["address"] and LOST.search(row.get("fault", ""))}
    answered = any("mode" in row for row in rows)
    return lambda device: bus_of(device["address"]) in lost or (answered and bus_of(device["address"]) not in listed)


def seen_by_cuda(host: dict) -> list[dict]:
    """The functions that CUDA counts, in PCI order.

    Once the driver holds dies of the profile, what it holds and nvidia-smi lists is counted. Before that, what the
    profile's driver will hold: nouveau gives way to it.
    """
    gpus = [
        device for device in host["pci"]
        if device["address"].endswith(".0") and (device.get("class") or DISPLAY).startswith(DISPLAY)
    ]
    held = {bus_of(address) for address in host.get("nvidia_gpus") or []} or {
        bus_of(device["address"]) for device in gpus if device["driver"] == "nvidia"
    }
    if any(bus_of(die["address"]) in held for die in gpus_of(host)):
        passed_over = unlisted(host)
        return [device for device in gpus if bus_of(device["address"]) in held and not passed_over(device)]
    return [
        device for device in gpus
        if device["driver"] not in GIVEN_AWAY
        and not any(
            int(first, 16) <= int(device["device"], 16) <= int(last, 16)
            for first, last in host["gpu"]["undriven_pci_ids"]
        )
    ]


def gpu_numbers(host: dict) -> list[int]:
    """Numbers of the profile's GPUs, as CUDA counts in PCI order over all boards that it sees."""
    return [number for number, device in enumerate(seen_by_cuda(host)) if is_gpu(host, device)]


def place(die: dict) -> str:
    """A GPU as people find it: its address, and the slot where the firmware names one."""
    return die["address"] + (f" (slot {die['slot']})" if die["slot"] else "")


def missing_dies(host: dict) -> list[dict[str, str]]:
    """Findings about boards that show fewer GPUs than they have."""
    size = host["gpu"]["per_board"]
    if size == 1:
        return []
    next_step = "Look for the other GPU in the firmware and in the kernel's log; a reseated board often has it again."
    by_board = by_switch(gpus_of(host))
    halves = [dies for dies in by_board.values() if len(dies) < size]
    count = len(gpus_of(host))
    if sum(len(dies) for dies in by_board.values()) < count:  # the tree does not show every switch
        if count % size == 0:
            return []
        return [finding(
            "warning", "host", f"{count} GPUs of {product(host)} on the PCI bus", f"{size} for each board", next_step,
        )]
    return [
        finding(
            "warning", "host", f"a {product(host)} board with {len(dies)} of {size} GPUs, {place(dies[0])}",
            f"{size} GPUs behind the switch {dies[0]['bridges'][-2]['address']}", next_step,
        )
        for dies in halves
    ]


def boards_elsewhere(host: dict) -> dict[tuple[str, str], list[dict]]:
    """GPUs of a host that another profile has and its own has not, by product and the group of that profile."""
    found: dict[tuple[str, str], list[dict]] = {}
    for profile in profiles.profiles(profiles.directory()).values():
        for device in host["pci"]:
            board = profile["gpu"]["boards"].get(device["device"])
            if board and not is_gpu(host, device):
                found.setdefault((board["product"], profile["groups"]["hosts"]), []).append(device)
    return found


def board_findings(host: dict) -> list[dict[str, str]]:
    """Findings about which boards are on the PCI bus."""
    found, elsewhere = [], boards_elsewhere(host)
    if not gpus_of(host):
        others = ", ".join(f"{device['address']} {device['device']}" for device in host["pci"]) or "none at all"
        found.append(finding(
            "error", "host", f"no {product(host)} on the PCI bus (NVIDIA functions there: {others})",
            f"{host['gpu']['per_board']} function(s) {' or '.join(f'0x10de:{i}' for i in host['gpu']['pci_ids'])} for "
            "each board",
            "".join(f"A {name} belongs into {group}. " for name, group in elsewhere)
            + "Check the board's seat, its power plug and \"above 4G decoding\" in the firmware, or take the host out "
            f"of {host['group']}.",
        ))
        elsewhere = {}
    for (name, group), dies in elsewhere.items():
        found.append(finding(
            "warning", "host", f"a {name} at {', '.join(map(place, dies))}",
            f"{product(host)} boards alone: a host has one profile, whose driver and engine are for its boards",
            f"Nothing, if it may stay idle; else put it into a host of {group}.",
        ))
    found += missing_dies(host)
    for device in host["pci"]:
        if device["device"] in host["gpu"]["other_pci_ids"]:
            found.append(finding(
                "warning", "host", f"a {host['gpu']['other_pci_ids'][device['device']]} at {place(device)}",
                f"{product(host)} boards alone: nothing of this profile is built for others",
                "Nothing, where no instance lists it: GPUs are numbered in PCI order over all boards that CUDA sees.",
            ))
    return found


def slow_findings(host: dict, instances: list[dict]) -> list[dict[str, str]]:
    """Findings about boards that a released vLLM makes little of, where an instance runs one."""
    if not any(instance.get("engine") == "stock" for instance in instances):
        return []
    return [
        finding(
            "warning", "host", f"a {board['product']} at {place(die)}, and instances with engine: stock",
            f"engine: port, which computes in float32 over weights of 16 or 4 bits: {board['slow']}",
            "Set engine to port, or nothing, if that will do: stock serves, in float16 far below a board of the same "
            "chip. Small GPTQ models of 4 bits lose least.",
        )
        for die in gpus_of(host)
        for board in [host["gpu"]["boards"][die["device"]]] if "slow" in board
    ]


def bar_findings(host: dict) -> list[dict[str, str]]:
    """Findings about GPUs whose memory the firmware did not place."""
    def gib(die: dict) -> int:
        return host["gpu"]["boards"][die["device"]].get("bar1_gib", 0)

    return [
        finding(
            "error", "host",
            f"the memory of the GPU {place(die)} is not mapped (BAR 1: start {die['bar1']['start']:#x}, "
            f"size {die['bar1']['size']:#x})",
            f"{gib(die)} GiB at an address above 4 GiB" if gib(die) else "an address",
            "Turn \"above 4G decoding\" (also: memory mapped I/O above 4 GB) on in the firmware, then boot again.",
        )
        for die in gpus_of(host)
        if die["bar1"] is not None and (die["bar1"]["start"] == 0 or die["bar1"]["size"] < gib(die) * 2**30)
    ]


def link_findings(host: dict) -> list[dict[str, str]]:
    """Findings about links with fewer lanes than both of their ends could have."""
    places = {}
    for die in gpus_of(host):
        places[die["address"]] = (f"the GPU {place(die)}", die)
        if host["gpu"]["per_board"] > 1 and len(die["bridges"]) > 1:
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
    """Findings about what sends the traffic between two GPUs on a detour, where NCCL hangs."""
    found = []
    fallback = "Where neither helps, NCCL_P2P_DISABLE=1 goes through shared memory instead."
    redirecting = sorted({
        bridge["address"] for die in gpus_of(host) for bridge in die["bridges"] if bridge["acs"]
    })
    if redirecting:
        found.append(finding(
            "warning", "host", f"ACS sends traffic between GPUs up to the root at {', '.join(redirecting)}",
            "no redirection on the bridges above the GPUs: NCCL's peer-to-peer transfers hang there",
            f"Turn ACS off in the firmware (often under PCIe or virtualization), then boot again. {fallback}",
        ))
    kinds = {die["iommu"] for die in gpus_of(host)} - {None}
    translated = bool(kinds - {"identity"}) if kinds else host["iommu"]["groups"] and not host["iommu"]["passthrough"]
    if translated and not container:
        found.append(finding(
            "warning", "host", f"the IOMMU translates what GPUs send ({host['iommu']['groups']} groups)",
            "no IOMMU, or passthrough: NCCL's peer-to-peer transfers hang behind it",
            "grubby --update-kernel=ALL --args=iommu=pt, then boot again; or turn VT-d off in the firmware. "
            + fallback,
        ))
    return found


LOST_DIE = (
    "Look at `journalctl -k -g NVRM` on the host, power it off and on, check the board's seat and its power plug; "
    "replace a board that is lost again."
)
DRIVER_MISMATCH = "Boot the host again, so that the loaded module is that of the installed driver."


def history_findings(host: dict) -> list[dict[str, str]]:
    """Findings about what the kernel's journal and the driver remember."""
    found = []
    for event in host["xids"]:
        found.append(finding(
            "warning", "host",
            f"{describe(event['xid'])} of {event['address']}, {event['count']} times, the last at {event['last']}: "
            f"{event['text']}",
            "no Xid in the kernel's journal",
            "Check power plugs and cooling, and qualify the host again before it serves.",
        ))
    for event in host.get("driver_faults", []):
        found.append(finding(
            "warning", "host",
            f"{event['text']} ({event['count']} times, the last at {event['last']})",
            "a driver that reaches every GPU", LOST_DIE,
        ))
    for die in host["ecc"]:
        if "fault" in die:
            found.append(finding(
                "warning", "host", f"nvidia-smi says of {die['address'] or 'the host'}: {die['fault']}",
                "a mode and two counts of ECC errors for each GPU",
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
    """Findings about GPUs that the driver holds and nvidia-smi passes over without a word."""
    named = {bus_of(row["address"]) for row in host["ecc"] if row["address"]}
    passed_over = unlisted(host)
    return [
        finding(
            "warning", "host", f"the GPU {place(die)}, which nvidia-smi does not list",
            "every GPU that the driver holds", LOST_DIE,
        )
        for die in gpus_of(host)
        if die["driver"] == "nvidia" and passed_over(die) and bus_of(die["address"]) not in named
    ]


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {"gpu_of": gpu_of, "profile_gpus": profile_gpus}
