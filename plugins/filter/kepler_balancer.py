"""Filters of the role load_balancer: which servers stand for which model, and what is wrong with what was asked for."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.kepler.vllm.plugins.filter.kepler_instances import RULES, accepts, instances_with_defaults
from ansible_collections.kepler.vllm.plugins.filter.kepler_preflight import findings_report
from ansible_collections.kepler.vllm.plugins.filter.kepler_variables import role_findings
from ansible_collections.kepler.vllm.plugins.module_utils.findings import finding
from ansible_collections.kepler.vllm.plugins.module_utils.server.addresses import is_loopback
from ansible_collections.kepler.vllm.plugins.module_utils.server.key_text import KeyTextError, key_of
from ansible_collections.kepler.vllm.plugins.plugin_utils.addresses import address_of
from ansible_collections.kepler.vllm.plugins.plugin_utils.findings import (
    PLAIN_PATH_FORM,
    is_integer,
    is_plain_path,
    shown,
)
from ansible_collections.kepler.vllm.plugins.plugin_utils.numbers import as_integer
from ansible_collections.kepler.vllm.plugins.plugin_utils.several_hosts import is_here, is_stage

# Keys of an instance that name and reach its server.
READ = ("name", "model", "host", "port", "hosts", "served_model_name", "revision", "api_key_file", "adapters")
# Paths of the balancer itself.
RESERVED = ("health", "v1")
POOL = re.compile("[a-z0-9][a-z0-9._-]*")
SERVER = re.compile("[A-Za-z0-9._-]+/[a-z0-9-]+")
# nginx needs no quoting for these characters, and reads words of at most 4,096. 16 is the shortest key we accept.
KEY = re.compile("[A-Za-z0-9._~+/=-]{16,512}")
KEY_FORM = "16 to 512 letters, digits and ._~+/=-"
CLIENT = re.compile("[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


def error(name: str, found: str, expected: str, next_step: str) -> dict[str, str]:
    """A finding about the variable load_balancer_NAME."""
    return finding("error", f"load_balancer_{name}", found, expected, next_step)


def is_any(host: Any) -> bool:
    return host in ("0.0.0.0", "::", "*")


def model_name(instance: Mapping) -> str:
    """The name by which clients ask for an instance's model."""
    return str(instance.get("served_model_name") or instance.get("model", ""))


def pool_name(model: str) -> str:
    """Path of the pool that serves `model`: a directory counts by its last part."""
    last = model.rstrip("/").rsplit("/", 1)[-1] if model.startswith("/") else model
    return re.sub("[^a-z0-9._-]+", "-", last.lower()).strip("-.")


def listed(values: Mapping) -> list[tuple[Any, Any]]:
    """The instances that a host's variables list, each as it stands there and with its defaults."""
    items = values.get("vllm_service_instances") or []
    items = items if isinstance(items, list) else [items]
    return list(zip(items, instances_with_defaults(items, values.get("vllm_service_instance_defaults")), strict=True))


def servers_findings(hosts: Mapping[str, Mapping], members: list[str]) -> list[dict[str, str]]:
    """Findings about instances of the hosts `members` whose servers nobody could name or reach."""
    found = []
    for host in members:
        for index, (item, instance) in enumerate(listed(hosts[host])):
            if not isinstance(instance, dict) or not {"name", "model"} <= instance.keys():
                faults = [("", shown(item), "a mapping with name and model")]
            else:
                faults = [(f".{key}", shown(instance[key]), RULES[key][1]) for key in READ
                          if key in instance and not accepts(key, instance[key])]
            found += [
                finding("error", f"vllm_service_instances[{index}]{key} of {host}", what, expected,
                        "Correct it; playbooks/preflight.yml says more.")
                for key, what, expected in faults
            ]
    return found


def balancer_pools(hosts: Mapping[str, Mapping], members: list[str], balancer: str) -> dict[str, list[dict]]:
    """The instances of the hosts `members` by the model that they serve, as `balancer` reaches them.

    Raises AnsibleFilterError for those that servers_findings reports.
    """
    if found := findings_report(servers_findings(hosts, members)):
        raise AnsibleFilterError(found[0])
    pools: dict[str, list[dict]] = {}
    for host in members:
        values = hosts[host]
        for _, instance in listed(values):
            if not is_here(instance, host) or is_stage(instance, host):
                continue
            listens = instance["host"]
            pools.setdefault(pool_name(model_name(instance)), []).append({
                "name": f"{host}/{instance['name']}",
                "address": address_of(host, values, balancer) if is_any(listens) else str(listens),
                "port": instance["port"],
                "key_file": instance.get("api_key_file") or "",
                "serves": {
                    "name": instance.get("served_model_name") or instance["model"],
                    "model": str(instance["model"]).rstrip("/"),
                    "revision": instance.get("revision") or "",
                    "adapters": sorted(instance.get("adapters") or {}),
                },
            })
    return pools


def servers_of(pools: Any) -> Iterator[dict]:
    for servers in pools.values():
        yield from servers


def balancer_upstream_key_file(pools: Any) -> str:
    """The key file of the servers, where all that have one name the same."""
    files = {server.get("key_file") or "" for server in servers_of(pools)} - {""}
    return files.pop() if len(files) == 1 else ""


def server_findings(server: Any, where: str, balancer: str) -> list[dict[str, str]]:
    """Findings about one server of a pool."""
    if not isinstance(server, dict) or not {"name", "address", "port"} <= set(server):
        return [error(where, shown(server), "a mapping with name, address and port", "Correct the server.")]
    found = []
    if not SERVER.fullmatch(str(server["name"])):
        found.append(error(f"{where}.name", shown(server["name"]), "HOST/INSTANCE", "Rename the server."))
    if not re.fullmatch("[A-Za-z0-9.:_-]+", str(server["address"])):
        found.append(error(f"{where}.address", shown(server["address"]), "an address or a name", "Correct it."))
    elif is_loopback(server["address"]) and str(server["name"]).split("/", 1)[0] != balancer:
        found.append(error(
            f"{where}.address", f"{shown(server['address'])} of {server['name']}",
            f"an address that {balancer} reaches", "Give that instance host: 0.0.0.0 and an api_key_file.",
        ))
    if not is_integer(server["port"]) or not 1 <= server["port"] <= 65535:
        found.append(error(f"{where}.port", shown(server["port"]), "an integer of 1 to 65535", "Correct the port."))
    if not is_description(server.get("serves")):
        found.append(error(
            f"{where}.serves", shown(server["serves"]), "nothing, or a mapping with name, model, revision and adapters",
            "Leave it out.",
        ))
    return found


def is_description(value: Any) -> bool:
    """Return whether `value` says what a server serves, as balancer_pools does; nothing will do."""
    return not value or (isinstance(value, dict) and {"name", "model", "revision", "adapters"} <= set(value))


def model_findings(name: str, servers: list[dict]) -> list[dict[str, str]]:
    """Findings about servers of one pool that serve different models: nginx does not look at a request's `model`."""
    described = [(server["name"], server["serves"]) for server in servers if server.get("serves")]
    different = [item for item in described if item[1] != described[0][1]]
    if not different:
        return []
    shown_models = "; ".join(
        f"{server}: name {shown(serves['name'])}, model {shown(serves['model'])}"
        + (f", revision {serves['revision']}" if serves["revision"] else "")
        + (f", adapters {', '.join(serves['adapters'])}" if serves["adapters"] else "")
        for server, serves in (described[0], different[0])
    )
    return [error(
        "pools", f"the pool {name} with {shown_models}",
        "servers of one name, one model, one revision and the same adapters in each pool",
        "Give these instances a served_model_name that differs in more than its case and its punctuation, or, if they "
        "serve the same from different places, write load_balancer_pools yourself.",
    )]


def pool_findings(pools: Any, balancer: str) -> list[dict[str, str]]:
    """Findings about load_balancer_pools."""
    if not isinstance(pools, dict) or not all(isinstance(servers, list) for servers in pools.values()):
        return [error("pools", shown(pools), "a mapping of pool to a list of servers", "Correct the mapping.")]
    if not any(pools.values()):
        return [error(
            "pools", "no server", "at least one",
            "Add a host with vllm_service_instances to a group of a hardware profile, or name servers in "
            "load_balancer_pools.",
        )]
    found = []
    for name, servers in pools.items():
        if not POOL.fullmatch(str(name)) or name in RESERVED:
            found.append(error(
                "pools", f"the pool {shown(name)}",
                f"lower-case letters, digits, dots, hyphens and underscores, none of {', '.join(RESERVED)}",
                "Give the instance another served_model_name.",
            ))
        if not servers:
            found.append(error(f"pools.{name}", "no server", "at least one", "Name its servers or remove it."))
        for index, server in enumerate(servers):
            found += server_findings(server, f"pools.{name}[{index}]", balancer)
    if not found:
        for name, servers in pools.items():
            found += model_findings(name, servers)
        for key in ("name", "address and port"):
            places = [
                server["name"] if key == "name" else f"{server['address']}:{server['port']}"
                for server in servers_of(pools)
            ]
            found += [
                error("pools", f"{place} twice", f"servers that differ in {key}", "Correct the instances.")
                for place in sorted({place for place in places if places.count(place) > 1})
            ]
    return found


def file_findings(asked: dict[str, Any]) -> list[dict[str, str]]:
    """Findings about the files that the operator gives."""
    found = []
    if not is_loopback(asked["host"]) and not asked["keys_file"]:
        found.append(error(
            "keys_file", f"nothing, and load_balancer_host {asked['host']}", "the clients' keys beyond loopback",
            "Write a file with a line NAME KEY for each client (openssl rand -hex 24), mode 0400, and name it here.",
        ))
    for name in ("certificate", "certificate_key"):
        if asked["tls"] and not asked[name]:
            found.append(error(
                name, "nothing", "a file on the balancer, since it speaks TLS",
                "Name the file, or set load_balancer_tls: false if something else keeps the line safe.",
            ))
    for name in ("certificate", "certificate_key", "keys_file", "upstream_key_file"):
        if asked[name] and not is_plain_path(asked[name]):
            found.append(error(
                name, shown(asked[name]), PLAIN_PATH_FORM, "Correct the path."
            ))
    return found


def balancer_findings(asked: dict[str, Any], balancer: str) -> list[dict[str, str]]:
    """Findings about the role's variables, without a host; `asked` has them without their prefix."""
    if found := role_findings("load_balancer", asked):
        return found
    found = pool_findings(asked["pools"], balancer)
    host = str(asked["host"])
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if host != "localhost":
            found.append(error("host", shown(host), "an address of the balancer, such as 0.0.0.0", "Correct it."))
    found += file_findings(asked)
    if found:
        return found
    for server in servers_of(asked["pools"]):
        if server["address"] == "127.0.0.1" and server["port"] == as_integer(asked["port"]):
            found.append(error(
                "port", f"{server['port']}, where {server['name']} listens", "a port of its own",
                "Choose another load_balancer_port, or another port for that instance.",
            ))
    files = sorted({server.get("key_file") or "" for server in servers_of(asked["pools"])} - {""})
    if files and not asked["upstream_key_file"]:
        found.append(error(
            "upstream_key_file", f"nothing, and servers with {' and '.join(files)}",
            "one key that all servers take",
            "Give all instances the same key, and name the file that holds it on the balancer.",
        ))
    if asked["default_pool"] and asked["default_pool"] not in asked["pools"]:
        found.append(error(
            "default_pool", shown(asked["default_pool"]), f"one of {', '.join(asked['pools'])}", "Correct the name."
        ))
    known = [server["name"] for server in servers_of(asked["pools"])]
    for name in asked["drained"]:
        if name not in known:
            found.append(error("drained", shown(name), f"one of {', '.join(known)}", "Correct the name."))
    return found


def lines_of(text: str) -> Iterator[tuple[int, list[str]]]:
    """Number and words of each line that is not empty or a comment."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.split()


def balancer_keys(text: str) -> list[dict[str, str]]:
    """Clients of a key file."""
    return [{"name": words[0], "key": words[1]} for _, words in lines_of(text)]


def balancer_upstream_key(text: str) -> str:
    """Key in an environment file of the servers, which balancer_upstream_key_findings has checked."""
    return key_of(text)


def balancer_key_findings(path: str, text: str) -> list[dict[str, str]]:
    """Findings about the clients' keys: lines by number, never what stands in them."""
    found: list[dict[str, str]] = []
    clients: dict[str, int] = {}
    keys: dict[str, int] = {}
    for number, words in lines_of(text):
        where = f"line {number} of {path}"
        if len(words) != 2:
            found.append(error(
                "keys_file", f"{where} with {len(words)} words", "NAME KEY", "Put one client on each line."
            ))
            continue
        name, key = words
        if not CLIENT.fullmatch(name):
            found.append(error(
                "keys_file", f"{where} with another name", "up to 64 letters, digits and ._@-", "Rename the client."
            ))
        if not KEY.fullmatch(key):
            found.append(error(
                "keys_file", f"{where} with another key", KEY_FORM,
                "Make one with `openssl rand -hex 24`.",
            ))
        for taken, value, what in ((clients, name, "name"), (keys, key, "key")):
            if value in taken:
                found.append(error(
                    "keys_file", f"{where} with the {what} of line {taken[value]}", "each once", "Change one of them."
                ))
            taken.setdefault(value, number)
    if not clients and not found:
        found.append(error("keys_file", f"{path} without a line", "at least one client", "Add a line NAME KEY."))
    return found


def balancer_upstream_key_findings(path: str, text: str) -> list[dict[str, str]]:
    """Findings about the servers' key, which is not shown."""
    try:
        wrong = "" if KEY.fullmatch(key_of(text)) else "a key that nginx cannot take"
    except KeyTextError as fault:
        wrong = str(fault)
    if not wrong:
        return []
    return [error(
        "upstream_key_file", f"{path}: {wrong}", f"a line VLLM_API_KEY= with {KEY_FORM}",
        "Copy the file that the servers have, or give all of them a key of `openssl rand -hex 24`.",
    )]


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {
            "balancer_findings": balancer_findings,
            "balancer_key_findings": balancer_key_findings,
            "balancer_keys": balancer_keys,
            "balancer_pools": balancer_pools,
            "servers_findings": servers_findings,
            "balancer_upstream_key": balancer_upstream_key,
            "balancer_upstream_key_file": balancer_upstream_key_file,
            "balancer_upstream_key_findings": balancer_upstream_key_findings,
        }
