"""Filters that judge the inventory and the hosts, and that report what they found.

A finding is a mapping of five strings: severity (`error` or `warning`), variable (what to look at: a variable, or
`host` where no variable has a say), found, expected and next_step. A filter returns all findings, never the first.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable
from typing import Any

INSTANCES = "vllm_service_instances"
SEVERITIES = ("error", "warning")
PROVIDERS = {"pytorch_provider": ("source", "wheel"), "python310_provider": ("source", "prebuilt")}

EL8 = ("rocky", "rhel", "almalinux", "centos", "ol")
K80 = "0x102d"
# Kepler boards that driver 470 sees, of sm_35: the project serves sm_37 alone.
OTHER_KEPLER = {
    "0x1021": "Tesla K20Xm",
    "0x1022": "Tesla K20c",
    "0x1023": "Tesla K40m",
    "0x1024": "Tesla K40c",
    "0x1028": "Tesla K20m",
}
# Packages of the same driver from elsewhere, by the start of their names.
FOREIGN_DRIVERS = {
    "akmod-nvidia": "RPM Fusion",
    "xorg-x11-drv-nvidia": "RPM Fusion",
    "nvidia-x11-drv": "ELRepo",
    "kmod-nvidia-open-dkms": "NVIDIA's open kernel modules, which need a newer board",
    "dkms-nvidia": "negativo17",
}


def finding(severity: str, variable: str, found: str, expected: str, next_step: str) -> dict[str, str]:
    """One finding."""
    return {"severity": severity, "variable": variable, "found": found, "expected": expected, "next_step": next_step}


def shown(value: Any) -> str:
    """A value of the inventory as JSON, so that "4" and 4 differ."""
    return json.dumps(value, default=str)


def is_integer(value: Any) -> bool:
    """Whether `value` is an integer; True and False, which Python counts as such, are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_dies(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(is_integer(die) and die >= 0 for die in value)
        and len(set(value)) == len(value)
    )


def is_arguments(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and re.fullmatch("[a-z][a-z0-9-]*", key) for key in value
    )


REQUIRED = object()
# What one instance may say: key -> (default, test, what is expected). None as a default: it may be left out. The
# defaults are those of the role vllm_service; a test compares them.
KEYS: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
    "name": (
        REQUIRED,
        lambda value: isinstance(value, str) and bool(re.fullmatch("[a-z0-9][a-z0-9-]*", value)),
        "lower-case letters, digits and hyphens",
    ),
    "model": (
        REQUIRED,
        lambda value: is_text(value) and not value.startswith("."),
        "the name of a Hugging Face model or the absolute path of its directory on the host",
    ),
    "host": ("127.0.0.1", is_text, "an address to listen on"),
    "port": (8000, lambda value: is_integer(value) and 1024 <= value <= 65535, "an integer of 1024 to 65535"),
    "dies": ([0, 1, 2, 3], is_dies, "a list of different integers from 0"),
    "tensor_parallel_size": (4, lambda value: is_integer(value) and value >= 1, "an integer from 1"),
    "dtype": ("float32", lambda value: value == "float32", "float32, the one type that sm_37 computes in here"),
    "max_model_len": (None, lambda value: is_integer(value) and value >= 1, "an integer from 1"),
    "served_model_name": (None, is_text, "a text that is not empty"),
    "api_key_file": (
        None,
        lambda value: is_text(value) and value.startswith("/"),
        "the absolute path of a file on the host",
    ),
    "extra_args": ({}, is_arguments, "a mapping of vLLM options, such as swap-space: lower-case words and hyphens"),
}
# Options of vLLM that an instance has a key of its own for.
OWN_OPTIONS = {key.replace("_", "-") for key in KEYS if key not in ("name", "dies", "extra_args")} | {"api-key"}


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def instances_with_defaults(instances: Any, defaults: dict) -> Any:
    """The instances as the servers get them; what is no mapping is left for the judgement."""
    if not isinstance(instances, list):
        return instances
    return [{**defaults, **item} if isinstance(item, dict) else item for item in instances]


def setting(instance: dict, key: str) -> Any:
    """What an instance says about `key`, or the default."""
    return instance.get(key, KEYS[key][0])


def instance_findings(instance: Any, where: str) -> list[dict[str, str]]:
    """Findings about one instance by itself; `where` is how messages name it."""
    if not isinstance(instance, dict):
        return [finding("error", where, shown(instance), "a mapping with name and model", "Write it as a mapping.")]
    found = []
    for key in instance:
        if key not in KEYS:
            found.append(finding(
                "error", f"{where}.{key}", f"the unknown key {key!r}", f"one of {', '.join(KEYS)}",
                "Correct the key, or move an option of vLLM itself into extra_args.",
            ))
    valid = {}
    for key, (default, accepts, expected) in KEYS.items():
        value = setting(instance, key)
        if value is REQUIRED:
            found.append(finding("error", f"{where}.{key}", "nothing", expected, f"Add {key} to the instance."))
        elif (key in instance or value is not None) and not accepts(value):
            found.append(finding(
                "error", f"{where}.{key}", shown(value), expected,
                "Take the quotes away." if isinstance(value, str) and is_integer(default) else "Correct the value.",
            ))
        else:
            valid[key] = value
    if {"dies", "tensor_parallel_size"} <= set(valid) and valid["tensor_parallel_size"] > len(valid["dies"]):
        found.append(finding(
            "error", f"{where}.tensor_parallel_size", shown(valid["tensor_parallel_size"]),
            f"at most {len(valid['dies'])}, the number of dies that the instance lists ({valid['dies']})",
            "List more dies, or lower tensor_parallel_size (it is 4 where nothing is said).",
        ))
    if "host" in valid and not is_loopback(valid["host"]) and valid.get("api_key_file", "") is None:
        found.append(finding(
            "error", f"{where}.host", shown(valid["host"]),
            "a loopback address, since the instance has no api_key_file",
            "Add api_key_file, or listen on 127.0.0.1 behind a proxy.",
        ))
    for option in sorted(OWN_OPTIONS & set(valid.get("extra_args") or {})):
        found.append(finding(
            "error", f"{where}.extra_args.{option}", "an option that the instance sets itself",
            "options that have no key of their own", f"Use the instance's key {option.replace('-', '_')} instead.",
        ))
    return found


def clashes(instances: list[dict]) -> list[dict[str, str]]:
    """Findings about names, ports and dies that two of the well-formed `instances` claim."""
    found = []
    for key, next_step in (
        ("name", "Give each instance its own name."),
        ("port", "Give each instance its own port (it is 8000 where nothing is said)."),
    ):
        owner: dict[Any, int] = {}
        for index, instance in enumerate(instances):
            value = setting(instance, key)
            if value in owner:
                found.append(finding(
                    "error", f"{INSTANCES}[{index}].{key}", shown(value),
                    f"another {key} than {INSTANCES}[{owner[value]}]", next_step,
                ))
            owner.setdefault(value, index)
    taken: dict[int, int] = {}
    for index, instance in enumerate(instances):
        shared = [die for die in setting(instance, "dies") if die in taken]
        if shared:
            owners = sorted({taken[die] for die in shared})
            found.append(finding(
                "error", f"{INSTANCES}[{index}].dies", shown(shared),
                "dies that " + " and ".join(f"{INSTANCES}[{owner}]" for owner in owners) + " does not list",
                "Give each die to one instance (an instance that lists none takes 0 to 3).",
            ))
        for die in setting(instance, "dies"):
            taken.setdefault(die, index)
    return found


def inventory_findings(instances: Any, providers: dict[str, Any]) -> list[dict[str, str]]:
    """Findings about what the inventory says, without a host.

    instances: the value of vllm_service_instances. providers: values of the variables in PROVIDERS.
    """
    found = []
    for variable, value in providers.items():
        if value not in PROVIDERS[variable]:
            found.append(finding(
                "error", variable, shown(value), f"one of {', '.join(PROVIDERS[variable])}", "Correct the value.",
            ))
    if not isinstance(instances, list):
        return [*found, finding("error", INSTANCES, shown(instances), "a list of instances", "Write it as a list.")]
    faults = [instance_findings(item, f"{INSTANCES}[{index}]") for index, item in enumerate(instances)]
    for fault in faults:
        found += fault
    # Clashes are judged where the instances can be read at all.
    return found + ([] if any(faults) else clashes(instances))


def platform_findings(host: dict) -> list[dict[str, str]]:
    """Findings about release, architecture and process 1."""
    found = []
    release = host["os"]
    if release["id"] not in EL8 or release["version_id"].split(".")[0] != "8":
        found.append(finding(
            "error", "host", release["pretty_name"] or "no /etc/os-release", "Enterprise Linux 8 (Rocky, RHEL, ...)",
            "Take the host out of k80-hosts, or install Rocky Linux 8 on it.",
        ))
    if host["architecture"] != "x86_64":
        found.append(finding("error", "host", host["architecture"], "x86_64", "Take the host out of k80-hosts."))
    if host["init"] != "systemd":
        found.append(finding(
            "error", "host", f"{host['init']} as process 1", "systemd as process 1",
            "Boot the host with systemd; the servers are its units.",
        ))
    return found


def k80_dies(host: dict) -> int:
    """Number of K80 dies on the PCI bus; a board has two."""
    return sum(device["device"] == K80 for device in host["pci"])


def k80_numbers(host: dict) -> list[int]:
    """Numbers of the K80 dies, as CUDA counts in PCI order: every board counts, its audio function does not."""
    boards = [device for device in host["pci"] if device["address"].endswith(".0")]
    return [number for number, device in enumerate(boards) if device["device"] == K80]


def board_findings(host: dict) -> list[dict[str, str]]:
    """Findings about the boards on the PCI bus."""
    found = []
    dies = k80_dies(host)
    if not dies:
        others = ", ".join(f"{device['address']} {device['device']}" for device in host["pci"]) or "none at all"
        found.append(finding(
            "error", "host", f"no Tesla K80 on the PCI bus (NVIDIA functions there: {others})",
            f"two functions 0x10de:{K80} for each board",
            "Check the board's seat, its EPS power plug and «above 4G decoding» in the firmware, or take the host out "
            "of k80-hosts.",
        ))
    elif dies % 2:
        found.append(finding(
            "warning", "host", f"{dies} K80 dies on the PCI bus", "two for each board",
            "Look for the missing die in the firmware and in the kernel's log.",
        ))
    for device in host["pci"]:
        if device["device"] in OTHER_KEPLER:
            found.append(finding(
                "warning", "host", f"a {OTHER_KEPLER[device['device']]} at {device['address']}",
                "K80 boards alone: other Kepler boards are sm_35, which nothing here is built for",
                "Nothing, where no instance lists it: dies are numbered in PCI order over all NVIDIA boards.",
            ))
    return found


def driver_findings(host: dict, locked: dict[str, str], container: bool) -> list[dict[str, str]]:
    """Findings about drivers and kernels that the pinned driver cannot live with.

    locked: the lock's `driver` version, `stream` and `kernel` (as uname -r prints it). A container has its machine's
    kernel and drivers, so these are not judged there.
    """
    found = []
    stream = host["streams"].get("nvidia-driver")
    if stream and stream != locked["stream"]:
        found.append(finding(
            "error", "host", f"the module stream nvidia-driver:{stream}", f"nvidia-driver:{locked['stream']}, or none",
            "Remove that driver (dnf module remove nvidia-driver; dnf module reset nvidia-driver), then run again.",
        ))
    for name in host["packages"]:
        for prefix, origin in FOREIGN_DRIVERS.items():
            if name.startswith(prefix):
                found.append(finding(
                    "error", "host", f"the package {name} ({origin})", "no other NVIDIA driver",
                    f"Remove it (dnf remove {name}), reboot, then run again.",
                ))
    if host["runfile"]:
        found.append(finding(
            "error", "host", "/usr/bin/nvidia-uninstall, which NVIDIA's own installer leaves", "no other NVIDIA driver",
            "Run nvidia-uninstall, reboot, then run again.",
        ))
    if container:
        return found
    if host["kernel"] != locked["kernel"]:
        found.append(finding(
            "error", "host", f"the running kernel {host['kernel']}",
            f"{locked['kernel']}, which driver {locked['driver']} is locked with",
            f"Install kernel-{locked['kernel']}, make it the default (grubby --set-default), reboot, then run again.",
        ))
    if host["secure_boot"] and not host["nvidia_version"]:
        found.append(finding(
            "error", "host", "Secure Boot is on and no NVIDIA module is loaded",
            "Secure Boot off, or DKMS's key enrolled: what DKMS builds is not signed by the distribution",
            "Turn Secure Boot off in the firmware, or enrol the key (mokutil --import /var/lib/dkms/mok.pub, reboot, "
            "confirm in the firmware's dialogue).",
        ))
    if "nouveau" in host["modules"]:
        found.append(finding(
            "warning", "host", "nouveau is loaded", "nouveau off",
            "Nothing now: nvidia_driver turns it off, and a reboot will be due.",
        ))
    if host["nvidia_version"] not in (None, locked["driver"]):
        found.append(finding(
            "warning", "host", f"the NVIDIA module {host['nvidia_version']} is loaded", locked["driver"],
            "Nothing now: nvidia_driver installs the locked one, and a reboot will be due.",
        ))
    return found


def overlap(first: str, second: str) -> bool:
    """Whether listening on address `first` takes a port of address `second` too."""
    wildcards = ("0.0.0.0", "::")
    second = "127.0.0.1" if second == "localhost" else second
    return first == second or first in wildcards or second in wildcards


def service_findings(host: dict, instances: list[dict]) -> list[dict[str, str]]:
    """Findings about what the well-formed `instances` ask of the host: dies, files and ports."""
    found = []
    dies = k80_numbers(host)
    for index, instance in enumerate(instances):
        where = f"{INSTANCES}[{index}]"
        absent = [die for die in setting(instance, "dies") if die not in dies]
        if dies and absent:
            found.append(finding(
                "error", f"{where}.dies", shown(absent), f"some of {dies}, the K80 dies of the host",
                "List fewer dies and lower tensor_parallel_size, or look for the missing board.",
            ))
        for key, kind in (("model", "directory"), ("api_key_file", "file")):
            path = setting(instance, key)
            if path and path.startswith("/") and host["paths"].get(path) != kind:
                there = host["paths"].get(path)
                found.append(finding(
                    "error", f"{where}.{key}", f"{path}: " + (f"a {there}" if there else "nothing is there"),
                    f"a {kind} on the host", "Correct the path, or copy it to the host first.",
                ))
        unit = f"vllm@{instance['name']}.service"
        for socket in host["ports"]:
            if socket["port"] != setting(instance, "port") or socket["unit"] == unit:
                continue
            if overlap(socket["address"], setting(instance, "host")):
                holder = f"{socket['command']} (process {socket['pid']}, {socket['unit'] or 'no unit'})"
                found.append(finding(
                    "error", f"{where}.port",
                    f"{socket['port']}, where {holder if socket['pid'] else 'a process of another namespace'} listens",
                    f"a port that is free or held by {unit}", "Choose another port, or stop what listens there.",
                ))
    return found


def disk_findings(host: dict, root: str, gib: int) -> list[dict[str, str]]:
    """Findings about free space at `root`, where `gib` GiB are needed until the first generation is active."""
    free = host["free"][root] / 2**30
    if host["paths"].get(f"{root}/current") or free >= gib:
        return []
    return [finding(
        "error", "preflight_store_gib", f"{free:.1f} GiB free for {root}", f"{gib} GiB or more",
        f"Free space, or mount a larger file system at {root}.",
    )]


def host_findings(
    host: dict, *, instances: list[dict], locked: dict[str, str], root: str, gib: int, container: bool
) -> list[dict[str, str]]:
    """All findings about a host; `host` is what the module kepler_host_facts returned."""
    return (
        platform_findings(host)
        + board_findings(host)
        + driver_findings(host, locked, container)
        + service_findings(host, instances)
        + disk_findings(host, root, gib)
    )


def findings_report(findings: list[dict[str, str]]) -> list[str]:
    """One line for each finding, worst first."""
    return [
        "{severity}: {variable}: found {found}; expected {expected}. {next_step}".format(**item)
        for item in sorted(findings, key=lambda item: SEVERITIES.index(item["severity"]))
    ]


def findings_errors(findings: list[dict[str, str]]) -> int:
    """How many of the findings are errors."""
    return sum(item["severity"] == "error" for item in findings)


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {
            "instances_with_defaults": instances_with_defaults,
            "inventory_findings": inventory_findings,
            "driver_findings": driver_findings,
            "host_findings": host_findings,
            "findings_report": findings_report,
            "findings_errors": findings_errors,
            "k80_dies": k80_dies,
        }
