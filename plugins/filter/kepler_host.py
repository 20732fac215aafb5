"""Filters that check a host by what the module kepler_host_facts returned."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.kepler.vllm.plugins.filter.kepler_boards import (
    bar_findings,
    board_findings,
    gpu_numbers,
    gpus_of,
    history_findings,
    isolation_findings,
    link_findings,
    seen_by_cuda,
    slow_findings,
    unlisted_findings,
)
from ansible_collections.kepler.vllm.plugins.filter.kepler_driver import driver_findings
from ansible_collections.kepler.vllm.plugins.filter.kepler_instances import INSTANCES, link_ports_of, setting
from ansible_collections.kepler.vllm.plugins.module_utils.findings import finding
from ansible_collections.kepler.vllm.plugins.module_utils.gpu.pci import bus_of
from ansible_collections.kepler.vllm.plugins.module_utils.server.addresses import WILDCARDS
from ansible_collections.kepler.vllm.plugins.plugin_utils import engine_options
from ansible_collections.kepler.vllm.plugins.plugin_utils.findings import is_plain_path, shown
from ansible_collections.kepler.vllm.plugins.plugin_utils.several_hosts import PORTS, is_stage

# Keys of an instance that name key files, and the variable in them.
KEY_NAMES = {"api_key_file": "VLLM_API_KEY", "link_key_file": "RAY_AUTH_TOKEN"}
# Options of vLLM that name files.
PATH_OPTIONS = ("chat-template", "generation-config", "tokenizer", "tool-parser-plugin")
# Beginnings of the names of our units that compute on GPUs.
OURS = ("vllm@", "vllm-stage@")
# GiB of host memory for one rank: its process, with libraries and CUDA's context.
RANK_GIB = 2
# GiB that vLLM pins for each rank where `swap-space` says nothing; it refuses to start beyond 70 % of the memory.
SWAP_GIB = 4
# GiB that one compile job of PyTorch may take.
JOB_GIB = 4


def platform_findings(host: dict) -> list[dict[str, str]]:
    """Findings about release, architecture, processor and process 1."""
    found = []
    release, wanted = host["os"], host["platform"]
    major, _, minor = release["version_id"].partition(".")
    if release["id"] not in wanted["os"] or major != str(wanted["major"]):
        found.append(finding(
            "error", "host", release["pretty_name"] or "no /etc/os-release",
            f"Enterprise Linux {wanted['major']} (Rocky, RHEL, ...)",
            f"Take the host out of {host['group']}, or install Rocky Linux {wanted['major']} on it.",
        ))
    # CentOS Stream has no minor releases.
    elif minor.isdigit() and int(minor) < wanted.get("minor", 0):
        found.append(finding(
            "error", "host", release["pretty_name"],
            f"Enterprise Linux {major}.{wanted['minor']} or later, the first with all packages of the lock",
            "Update the host (dnf upgrade), boot it again, then run again.",
        ))
    if host["architecture"] != "x86_64":
        found.append(finding("error", "host", host["architecture"], "x86_64", f"Take the host out of {host['group']}."))
    elif "sse4_2" not in host["cpu_flags"]:
        found.append(finding(
            "error", "host", "a processor without SSE4.2", "SSE4.2, which PyTorch's libraries are compiled for",
            f"Take the host out of {host['group']}; a virtual machine may need the host's own processor model.",
        ))
    elif "avx2" not in host["cpu_flags"]:
        found.append(finding(
            "warning", "host", "a processor without AVX2", "AVX2, which PyTorch's fast paths on the CPU need",
            "Nothing: models on the GPUs are not slower; quantized operators on the CPU do not run.",
        ))
    if host["init"] != "systemd":
        found.append(finding(
            "error", "host", f"{host['init']} as process 1", "systemd as process 1",
            "Boot the host with systemd; the servers are its units.",
        ))
    return found


def glibc_findings(host: dict, wheels: Sequence[str]) -> list[dict[str, str]]:
    """Findings about a glibc that is older than what a wheel asks for by its tag."""
    there = [int(number) for number in re.findall("[0-9]+", host.get("glibc", ""))]
    tags = {file: [int(level) for level in re.findall("manylinux_2_([0-9]+)", file)] for file in wheels}
    needed, file = max(((min(levels), file) for file, levels in tags.items() if levels), default=(0, ""))
    if not there or there >= [2, needed]:
        return []
    return [finding(
        "error", "host", f"glibc {host['glibc']}", f"2.{needed} or newer, which {file} is linked with",
        f"Install a release of the distribution that has it; Enterprise Linux {host['platform']['major']} does.",
    )]


def overlap(first: str, second: str) -> bool:
    """Return whether listening on address `first` takes a port of address `second` too."""
    second = "127.0.0.1" if second == "localhost" else second
    return first == second or first in WILDCARDS or second in WILDCARDS


def unit_of(instance: dict) -> str:
    """The unit that serves an instance."""
    return f"vllm@{instance['name']}.service"


def directories_of(instance: dict) -> dict[str, str]:
    """Return directories of the host that the server reads, by the key of the instance that names each."""
    adapters = {f"adapters.{name}": path for name, path in setting(instance, "adapters").items()}
    models = {key: named["model"] for key, named in engine_options.models_of(instance).items()}
    return {**{key: model for key, model in models.items() if model.startswith("/")}, **adapters}


def paths_to_look_at(instances: Any) -> list[str]:
    """Return the paths of directories_of for all `instances`."""
    return [path for instance in instances for path in directories_of(instance).values()]


def read_by_server(instance: dict) -> dict[str, str]:
    """Absolute paths that the service's user reads, by the key of the instance that names each; not the key file."""
    named: dict[str, Any] = directories_of(instance)
    named.update({f"extra_args.{option}": setting(instance, "extra_args").get(option) for option in PATH_OPTIONS})
    return {key: path for key, path in named.items() if isinstance(path, str) and path.startswith("/")}


def paths_to_read(instances: Any) -> list[str]:
    """Findings of read_by_server for all `instances`."""
    return [path for instance in instances for path in read_by_server(instance).values()]


def access_findings(host: dict, instances: list[dict], user: str) -> list[dict[str, str]]:
    """Findings about what the service's `user` cannot read."""
    found = []
    for index, instance in enumerate(instances):
        for key, path in read_by_server(instance).items():
            blocked = host.get("unreadable", {}).get(path)
            if blocked:
                found.append(finding(
                    "error", f"{INSTANCES}[{index}].{key}",
                    f"{blocked['path']} ({blocked['found']}), which the user {user} cannot read",
                    f"{path}, all below it and every directory above it open to {user}",
                    f"As root on the host: setfacl -m u:{user}:rX {blocked['path']} (or chmod o+rX), or move the model "
                    "to /srv/models.",
                ))
    return found


def ports_to_look_at(instances: Any) -> list[int]:
    """Return the ports that the servers of `instances` take."""
    return sorted({port for item in instances for port in (setting(item, "port"), *link_ports_of(item))})


def held_by(process: dict) -> str:
    """Describe a process of the host's facts; one without a number is out of sight."""
    if not process["pid"]:
        return "a process of another namespace"
    return f"{process['command']} (process {process['pid']}, {process['unit'] or 'no unit'})"


def occupied_findings(host: dict, instance: dict, where: str) -> list[dict[str, str]]:
    """Findings about GPUs and link ports of an instance that what is none of our units uses."""
    found, devices = [], seen_by_cuda(host)
    addresses = {bus_of(devices[gpu]["address"]): gpu for gpu in setting(instance, "gpus") if gpu < len(devices)}
    busy: dict[int, list[str]] = {}
    for process in host.get("gpu_processes", []):
        gpu = addresses.get(bus_of(process["address"]))
        if gpu is not None and not (process["unit"] or "").startswith(OURS):
            busy.setdefault(gpu, []).append(held_by(process))
    if busy:
        found.append(finding(
            "warning", f"{where}.gpus", "; ".join(f"{gpu}, used by {', '.join(busy[gpu])}" for gpu in sorted(busy)),
            "GPUs that nothing else uses", "End these processes, or list other gpus: their memory is missing.",
        ))
    taken = [
        f"{socket['port']}, where {held_by(socket)} listens"
        for socket in host["ports"]
        if socket["port"] in link_ports_of(instance) and not (socket["unit"] or "").startswith(OURS)
    ]
    if taken:
        found.append(finding(
            "error", f"{where}.link_port", "; ".join(sorted(taken)),
            f"{PORTS} free ports from {setting(instance, 'link_port')} on",
            "Choose another link_port, or stop what listens there.",
        ))
    return found


def service_findings(host: dict, instances: list[dict], name: str = "") -> list[dict[str, str]]:
    """Findings about what the well-formed `instances` ask of the host `name`: GPUs, models and ports."""
    found = []
    dies = gpu_numbers(host)
    asked = [unit_of(instance) for instance in instances]
    for index, instance in enumerate(instances):
        where = f"{INSTANCES}[{index}]"
        absent = [die for die in setting(instance, "gpus") if die not in dies]
        if gpus_of(host) and absent:
            found.append(finding(
                "error", f"{where}.gpus", shown(absent),
                f"some of {dies}, the GPUs of the host as CUDA counts them: boards of another kind, or that another "
                "driver holds, do not count",
                "List fewer gpus and lower tensor_parallel_size, or look for the missing board.",
            ))
        for key, path in directories_of(instance).items():
            there = host["paths"].get(path)
            if there != "directory":
                found.append(finding(
                    "error", f"{where}.{key}", f"{path}: " + (f"a {there}" if there else "nothing is there"),
                    "a directory on the host", "Correct the path, or copy it to the host first.",
                ))
        found += occupied_findings(host, instance, where)
        unit = unit_of(instance)
        for socket in [] if is_stage(instance, name) else host["ports"]:
            if socket["port"] != setting(instance, "port") or socket["unit"] == unit:
                continue
            # A server that the inventory no longer names is stopped before the others start.
            if (socket["unit"] or "").startswith("vllm@") and socket["unit"] not in asked:
                continue
            if overlap(socket["address"], setting(instance, "host")):
                found.append(finding(
                    "error", f"{where}.port",
                    f"{socket['port']}, where {held_by(socket)} listens",
                    f"a port that is free or held by {unit}", "Choose another port, or stop what listens there.",
                ))
    return found


def key_files(instances: Any, key: str = "api_key_file") -> dict[int, str]:
    """Path of the key file of each instance that has one, by its index; inventory_findings reports malformed ones.

    key: of the instance, of KEY_NAMES.
    """
    named = instances if isinstance(instances, list) else []
    return {
        index: item[key] for index, item in enumerate(named)
        if isinstance(item, dict) and is_plain_path(item.get(key))
    }


def key_file_findings(
    files: dict[str, dict[str, str] | None], instances: Any, key: str = "api_key_file"
) -> list[dict[str, str]]:
    """Findings about the key files of the `instances`; `files` is what the module key_file_facts returned."""
    found = []
    for index, path in key_files(instances, key).items():
        if fault := files.get(path):
            found.append(finding(
                "error", f"{INSTANCES}[{index}].{key}", f"{path}: {fault['found']}", fault["expected"],
                f"As root on the host: chown root: {path}; chmod 0600 {path}. To make a new key: "
                f"(umask 077; mkdir -p {Path(path).parent}; "
                f"echo {KEY_NAMES[key]}=$(openssl rand -hex 24) > {path})"
                + ("." if key == "api_key_file" else ", and copy it to the instance's other hosts."),
            ))
    return found


def swap_gib(instance: dict) -> float:
    """GiB that vLLM pins for each rank of an instance."""
    try:
        return float(setting(instance, "extra_args").get("swap-space", SWAP_GIB))
    except (TypeError, ValueError):
        return SWAP_GIB


def compile_jobs(asked: int, cores: int, memory_mib: int) -> int:
    """Return how many compile jobs of PyTorch run at once: what was asked for; where that is 0, what the host bears."""
    return asked or max(1, min(cores, memory_mib // (1024 * JOB_GIB)))


def memory_findings(host: dict, instances: list[dict], floor_gib: float, jobs: int) -> list[dict[str, str]]:
    """Findings about the host's memory. jobs: compile jobs of PyTorch that were asked for; 0: no number."""
    found = []
    there = host["memory"] / 2**30
    ranks = [(setting(instance, "tensor_parallel_size"), swap_gib(instance)) for instance in instances]
    serving = sum(count * (RANK_GIB + swap) for count, swap in ranks)
    needed = max(floor_gib, serving)
    if there < needed:
        counted = " + ".join(f"{count} ranks of {RANK_GIB} and {swap:g} of swap-space" for count, swap in ranks)
        found.append(finding(
            "error", "preflight_memory_gib", f"{there:.1f} GiB of memory",
            f"{needed:g} GiB or more: at least {floor_gib:g}, and for the servers "
            f"{counted or 'nothing'} = {serving:g}; weights pass through it while they load",
            "Add memory, or lower swap-space in the instance's extra_args (vLLM pins 4 GiB a rank without it).",
        ))
    if there < jobs * JOB_GIB:
        found.append(finding(
            "warning", "pytorch_jobs", f"{jobs} compile jobs and {there:.1f} GiB of memory",
            f"{JOB_GIB} GiB for each job of the source build: the kernel may end it after an hour",
            f"Set pytorch_jobs: {max(1, int(there // JOB_GIB))}, or pytorch_provider: wheel.",
        ))
    return found


def disk_findings(host: dict, needs: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Findings about free space. needs: [{path, gib, variable}]; those of one file system are added up."""
    mounts: dict[str, list[dict[str, Any]]] = {}
    for need in needs:
        mounts.setdefault(host["free"][need["path"]]["mount"], []).append(need)
    found = []
    for mount, here in mounts.items():
        free = host["free"][here[0]["path"]]["bytes"] / 2**30
        total = sum(float(need["gib"]) for need in here)
        if free < total:
            parts = ", ".join(f"{need['path']} {float(need['gib']):g}" for need in here)
            found.append(finding(
                "error", " and ".join(sorted({need["variable"] for need in here})),
                f"{free:.1f} GiB free on the file system at {mount}", f"{total:g} GiB or more (GiB: {parts})",
                f"Free space, or mount a larger file system at {here[0]['path']}.",
            ))
    return found


def places_to_run(host: dict, container: bool) -> list[dict[str, Any]]:
    """Places of programs that are built on the host, as facts.executability gives them; a container runs no DKMS."""
    return host["programs"] + ([] if container else [host["dkms"]])


def mount_findings(host: dict, container: bool) -> list[dict[str, str]]:
    """Findings about file systems that refuse to run what is built or served there."""
    mounts: dict[str, list[str]] = {}
    for place in places_to_run(host, container):
        if place["noexec"]:
            mounts.setdefault(place["mount"], []).append(place["path"])
    return [
        finding(
            "error", "host", f"{mount} is mounted with noexec, and holds {', '.join(paths)}",
            "a mount without noexec: builds run their own programs, and servers load libraries from there",
            f"Run `mount -o remount,exec {mount}` and take noexec out of /etc/fstab or of its mount unit; or choose "
            "another place.",
        )
        for mount, paths in mounts.items()
    ]


def fapolicyd_findings(host: dict, container: bool) -> list[dict[str, str]]:
    """Findings about places where fapolicyd, which trusts what came as RPM, lets nothing run that is built there."""
    opened = host.get("fapolicyd")
    if opened is None:
        return []
    places = [place["path"] for place in places_to_run(host, container)]
    closed = [path for path in places if not any(f"{path}/".startswith(f"{top.rstrip('/')}/") for top in opened)]
    rules = " ".join(f"'allow perm=any all : dir={path.rstrip('/')}/'" for path in closed)
    return [finding(
        "error", "host", f"fapolicyd, which lets nothing run that is built in {', '.join(closed)}",
        "rules that open these places, or fapolicyd in permissive mode",
        f"As root on the host: printf '%s\\n' {rules} > /etc/fapolicyd/rules.d/25-kepler.rules; fagenrules --load.",
    )] if closed else []


def host_findings(
    host: dict,
    *,
    profile: dict,
    instances: list[dict],
    locked: dict,
    root: str,
    needs: list[dict[str, Any]],
    memory_gib: float,
    jobs: int,
    container: bool,
    user: str = "vllm",
    wheels: Sequence[str] = (),
    name: str = "",
    **driver: Any,
) -> list[dict[str, str]]:
    """All findings about a host; `host` is what the module kepler_host_facts returned, `profile` the host's.

    name: of the host. root: the store's. wheels: files that are installed there. needs: see disk_findings.
    memory_gib, jobs: see memory_findings. user: the service's. driver: see driver_findings.
    What a first run needs is not checked once a generation is active. A container has its machine's memory.
    """
    active = host["paths"].get(f"{root}/current")
    host = {**host, **{part: profile[part] for part in ("gpu", "platform")}, "group": profile["groups"]["hosts"]}
    return (
        platform_findings(host)
        + board_findings(host)
        + slow_findings(host, instances)
        + glibc_findings(host, wheels)
        + bar_findings(host)
        + link_findings(host)
        + isolation_findings(host, container)
        + history_findings(host)
        + unlisted_findings(host)
        + driver_findings(host, locked, container, **driver)
        + mount_findings(host, container)
        + fapolicyd_findings(host, container)
        + service_findings(host, instances, name)
        + access_findings(host, instances, user)
        + ([] if container else memory_findings(host, instances, memory_gib, 0 if active else jobs))
        + ([] if active else disk_findings(host, needs))
    )


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {
            "compile_jobs": compile_jobs,
            "host_findings": host_findings,
            "key_file_findings": key_file_findings,
            "key_files": key_files,
            "paths_to_look_at": paths_to_look_at,
            "ports_to_look_at": ports_to_look_at,
            "paths_to_read": paths_to_read,
        }
