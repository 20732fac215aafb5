"""Filters that write an inventory's instances for container engines: a compose project, and units of podman."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible_collections.kepler.vllm.plugins.filter.kepler_balancer import model_name, pool_name
from ansible_collections.kepler.vllm.plugins.module_utils.findings import finding
from ansible_collections.kepler.vllm.plugins.module_utils.server.addresses import authority
from ansible_collections.kepler.vllm.plugins.plugin_utils import engine_options

# Port of every server in its own network.
PORT = 8000
# Longest time in seconds that running requests get, as a unit has it, and what vLLM gets to stop after that.
DRAIN, STOP = 300, 60
HEALTH = ["python", "-m", "vllm_serving.container", "--health"]
TEMPORARY = "/tmp:mode=1777"
SHARED = "2g"
# Variables of the role vllm_service that the environment of a server has, if the inventory sets them.
SETTINGS = {
    "vllm_service_start_timeout": "VLLM_SERVING_START", "vllm_service_start_stall": "VLLM_SERVING_STALL",
    "vllm_service_drain": "VLLM_SERVING_DRAIN", "vllm_service_max_body": "VLLM_SERVING_BODY",
    "vllm_service_max_sequences": "VLLM_SERVING_SEQUENCES", "vllm_service_watchdog": "VLLM_SERVING_WATCHDOG",
}
# The balancer is the first, then the servers, in the order of the inventory.
FIRST_ADDRESS = 10


def arguments_of(item: Mapping[str, Any]) -> list[str]:
    """The arguments of `vllm serve` of an instance in a container."""
    found = []
    options = engine_options.of_instance({**item, "host": "0.0.0.0", "port": PORT})
    for name, value in options.items():
        if value is True:
            found.append(f"--{name}")
        elif value is not False:
            found += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return found


def environment_of(item: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, str]:
    """The variables of a server. given: see `compose_project`."""
    found = {SETTINGS[name]: str(value) for name, value in given["settings"].items() if name in SETTINGS}
    # A text where the command line gives it.
    if boolean(given["settings"].get("vllm_service_hub_offline", True)):
        found["HF_HUB_OFFLINE"] = "1"
    if not item.get("parsers", True):
        found["VLLM_SERVING_PARSERS"] = "0"
    if item.get("adapters"):
        found["VLLM_SERVING_ADAPTERS"] = " ".join(f"{name}={path}" for name, path in sorted(item["adapters"].items()))
    if item.get("cuda_graphs") == "auto":
        found["VLLM_KEPLER_CUDA_GRAPHS_AUTO"] = "no host was qualified for this container"
    elif item.get("cuda_graphs"):
        found["VLLM_KEPLER_CUDA_GRAPHS"] = "1"
    if given["device"] == "cpu":
        found["VLLM_KEPLER_DEVICE"] = "cpu"
    elif given["device"] == "verify":
        found["VLLM_KEPLER_VERIFY"] = "1"
    return found


def volumes_of(item: Mapping[str, Any]) -> list[str]:
    """What a server reads, at the same path as on the host, and its home."""
    paths = [item["model"], *item.get("adapters", {}).values()]
    return [*(f"{path}:{path}:ro" for path in dict.fromkeys(paths) if path.startswith("/")), "home:/var/lib/vllm"]


def published(item: Mapping[str, Any]) -> str:
    """The port of the host that leads to a server."""
    host = {"localhost": "127.0.0.1"}.get(item["host"], item["host"])
    return f"{authority(host, item['port'])}:{PORT}"


def memory_of(item: Mapping[str, Any]) -> str | None:
    """Most memory of a container, as engines write it; None without a limit."""
    return str(item["memory_max"]).lower() if item.get("memory_max") else None


def stop_seconds(given: Mapping[str, Any]) -> int:
    return int(given["settings"].get("vllm_service_drain", DRAIN)) + STOP


def logs_of(name: str) -> dict[str, Any]:
    """The journal, under the name that a unit has."""
    return {"driver": "journald", "options": {"tag": f"vllm@{name}"}}


def literal(text: str) -> str:
    """A text of a compose project, which puts variables in place of a dollar sign."""
    return text.replace("$", "$$")


def service_of(item: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A server as a service of a compose project."""
    found: dict[str, Any] = {
        "image": given["image"],
        "hostname": item["name"],
        "command": [literal(word) for word in arguments_of(item)],
        "environment": {name: literal(value) for name, value in environment_of(item, given).items()},
        "volumes": volumes_of(item),
        "read_only": True,
        "tmpfs": [TEMPORARY],
        "shm_size": SHARED,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "ulimits": {"nofile": 65536, "core": 0},
        "healthcheck": {"test": ["CMD", *HEALTH], "interval": "30s", "timeout": "10s", "retries": 3,
                        "start_period": f"{given['settings'].get('vllm_service_start_timeout', 1800)}s"},
        "stop_grace_period": f"{stop_seconds(given)}s",
        "restart": "unless-stopped",
        "logging": logs_of(item["name"]),
    }
    if given["device"] != "cpu":
        # By number, in the order of their PCI addresses, as nvidia-smi and an instance's `gpus` count.
        devices = {"driver": "nvidia", "device_ids": [str(gpu) for gpu in item["gpus"]], "capabilities": ["gpu"]}
        found["deploy"] = {"resources": {"reservations": {"devices": [devices]}}}
    if memory := memory_of(item):
        found["mem_limit"] = memory
    if item.get("cpu_quota"):
        found["cpus"] = int(item["cpu_quota"].rstrip("%")) / 100
    if item.get("api_key_file"):
        found["env_file"] = [item["api_key_file"]]
    return found


def address_of(number: int, subnet: str) -> str:
    """An address of the project's network, whose `subnet` ends with .0/24."""
    return f"{subnet.rpartition('.')[0]}.{FIRST_ADDRESS + number}"


def compose_project(instances: list[Mapping[str, Any]], given: Mapping[str, Any]) -> dict[str, Any]:
    """The compose project of a host.

    given: `image`; `device`, as vllm_service_device; `settings`: variables of vllm_service that are set; `subnet`;
    `balancer`: empty, or a mapping with image, host, port and directory of its configuration. Behind a balancer servers
    are published nowhere.
    """
    services = {item["name"]: service_of(item, given) for item in instances}
    project: dict[str, Any] = {"services": services, "volumes": {"home": {}}}
    balancer = given["balancer"]
    for number, item in enumerate(instances, 1):
        if balancer:
            services[item["name"]]["networks"] = {"default": {"ipv4_address": address_of(number, given["subnet"])}}
        else:
            services[item["name"]]["ports"] = [published(item)]
    if balancer:
        # nginx asks for the addresses once, when it starts: each server keeps its own.
        project["networks"] = {"default": {"ipam": {"config": [{"subnet": given["subnet"]}]}}}
        services["balancer"] = {
            "image": balancer["image"],
            "command": ["nginx", "-e", "stderr", "-c", "/etc/balancer/nginx.conf"],
            "entrypoint": [],
            "volumes": [f"{balancer['directory']}:/etc/balancer:ro"],
            "ports": [f"{balancer['host']}:{balancer['port']}:{balancer['port']}"],
            "networks": {"default": {"ipv4_address": address_of(0, given["subnet"])}},
            "read_only": True,
            "tmpfs": [TEMPORARY],
            "cap_drop": ["ALL"],
            "cap_add": ["SETUID", "SETGID", "CHOWN"],
            "security_opt": ["no-new-privileges:true"],
            "stop_signal": "SIGQUIT",
            "stop_grace_period": "120s",
            "restart": "unless-stopped",
            "logging": logs_of("balancer"),
        }
    return project


def compose_pools(instances: list[Mapping[str, Any]], subnet: str) -> dict[str, list[dict[str, Any]]]:
    """The pools of the balancer in a compose project, as load_balancer_pools has them."""
    pools: dict[str, list[dict[str, Any]]] = {}
    for number, item in enumerate(instances, 1):
        pools.setdefault(pool_name(model_name(item)), []).append(
            {"name": f"compose/{item['name']}", "address": address_of(number, subnet), "port": PORT})
    return pools


def compose_findings(instances: list[Mapping[str, Any]], given: Mapping[str, Any]) -> list[dict[str, str]]:
    """What no container engine can have, beside what no unit can."""
    found = []
    for item in instances:
        where = f"vllm_service_instances, {item['name']}"
        if str(item.get("memory_max", "")).endswith("%"):
            found.append(finding("error", f"{where}, memory_max", item["memory_max"], "bytes, such as 48G", "Write the "
                                 "limit in bytes: engines have no percent."))
        if item.get("nice"):
            found.append(finding("error", f"{where}, nice", str(item["nice"]), "none: engines have no priority",
                                 "Leave it out, or use cpu_quota."))
        if item.get("hosts"):
            found.append(finding("error", f"{where}, hosts", ", ".join(item["hosts"]), "none: containers serve what "
                                 "one host holds", "Leave the instance to units (site.yml), or shrink it to one host."))
        if given["balancer"] and item.get("api_key_file"):
            found.append(finding("error", f"{where}, api_key_file", item["api_key_file"], "none behind the balancer, "
                                 "where servers are published nowhere", "Leave it out; name compose_keys_file."))
        if item.get("engine") != instances[0].get("engine"):
            found.append(finding("error", f"{where}, engine", str(item.get("engine")),
                                 f"{instances[0].get('engine')}, as of {instances[0]['name']}: an image has one engine",
                                 "Leave the instance to units (site.yml), or give both one engine."))
        if item["name"] == "balancer":
            found.append(finding("error", f"{where}, name", "balancer", "another name", "Rename the instance."))
    taken: dict[int, str] = {}
    for item in instances if given["device"] != "cpu" else []:
        for gpu in item["gpus"]:
            if gpu in taken:
                found.append(finding("error", f"vllm_service_instances, {item['name']}, gpus",
                                     f"GPU {gpu}, which {taken[gpu]} has", "a GPU of its own", "Correct gpus."))
            taken.setdefault(gpu, item["name"])
    return found


def quoted(word: str) -> str:
    """A word of a unit's command or environment, as systemd reads it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return escaped if word and not set(word) & set(" \t\"'\\;{}[]") else f'"{escaped}"'


def quadlet_lines(item: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the file NAME.container, of which podman makes a unit."""
    yield from ("[Unit]", f"Description=vLLM server {item['name']} in a container", "After=network-online.target",
                "Wants=network-online.target", "StartLimitIntervalSec=60", "StartLimitBurst=10", "", "[Container]")
    yield f"ContainerName=vllm-{item['name']}"
    yield f"HostName={item['name']}"
    yield f"Image={given['image']}"
    yield f"Exec={' '.join(map(quoted, arguments_of(item)))}"
    for name, value in environment_of(item, given).items():
        yield f"Environment={quoted(f'{name}={value}')}"
    if item.get("api_key_file"):
        yield f"EnvironmentFile={item['api_key_file']}"
    for volume in volumes_of(item):
        yield f"Volume={volume.replace('home:', 'vllm-home:')}"
    for gpu in item["gpus"] if given["device"] != "cpu" else []:
        yield f"AddDevice=nvidia.com/gpu={gpu}"
    yield from (f"PublishPort={published(item)}", "ReadOnly=true", "DropCapability=ALL", "NoNewPrivileges=true",
                f"Tmpfs={TEMPORARY}", f"HealthCmd={' '.join(HEALTH)}", "HealthInterval=30s", "HealthTimeout=10s",
                f"HealthStartPeriod={given['settings'].get('vllm_service_start_timeout', 1800)}s", "LogDriver=journald")
    limits = [f"--shm-size={SHARED}", "--ulimit=nofile=65536:65536", "--ulimit=core=0:0",
              f"--stop-timeout={stop_seconds(given)}"]
    if memory := memory_of(item):
        limits.append(f"--memory={memory}")
    if item.get("cpu_quota"):
        limits.append(f"--cpus={int(item['cpu_quota'].rstrip('%')) / 100}")
    yield f"PodmanArgs={' '.join(limits)}"
    # The statuses of the supervisor are those of a unit: what nobody but the operator can repair is not tried again.
    yield from ("", "[Service]", "Restart=on-failure", "RestartSec=2", "RestartPreventExitStatus=2 78 69",
                f"TimeoutStopSec={stop_seconds(given) + 10}", f"SyslogIdentifier=vllm@{item['name']}", "", "[Install]",
                "WantedBy=multi-user.target")


def quadlet(item: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    return "\n".join(quadlet_lines(item, given)) + "\n"


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "compose_findings": compose_findings,
            "compose_pools": compose_pools,
            "compose_project": compose_project,
            "quadlet": quadlet,
        }
