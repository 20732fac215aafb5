"""Filters of the role monitoring: what Prometheus is to ask, and what is wrong with what was asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.kepler.vllm.plugins.filter.kepler_balancer import balancer_pools
from ansible_collections.kepler.vllm.plugins.filter.kepler_variables import role_findings
from ansible_collections.kepler.vllm.plugins.module_utils.findings import finding
from ansible_collections.kepler.vllm.plugins.module_utils.server.addresses import authority, is_loopback
from ansible_collections.kepler.vllm.plugins.plugin_utils.addresses import address_of
from ansible_collections.kepler.vllm.plugins.plugin_utils.findings import PLAIN_PATH_FORM, is_plain_path, shown


def error(name: str, found: str, expected: str, next_step: str) -> dict[str, str]:
    """A finding about the variable monitoring_NAME."""
    return finding("error", f"monitoring_{name}", found, expected, next_step)


def server_targets(hosts: Mapping[str, Mapping], members: list[str], prometheus: str, balancer: str) -> list[dict]:
    """The servers of the hosts `members`, as `prometheus` reaches them: each by itself, or through `balancer`."""
    found = []
    for pool, servers in balancer_pools(hosts, members, prometheus).items():
        for server in servers:
            labels = {"instance": server["name"], "host": server["name"].split("/", 1)[0], "pool": pool}
            target = authority(server["address"], server["port"])
            if balancer:
                target, labels["__metrics_path__"] = balancer, f"/metrics/{server['name']}"
            found.append({"targets": [target], "labels": labels})
    return found


def host_targets(hosts: Mapping[str, Mapping], members: list[str], prometheus: str, port: int) -> list[dict]:
    """Targets for Prometheus: `port` of each host of `members`."""
    found = []
    for host in members:
        target = authority(address_of(host, hosts[host], prometheus), port)
        found.append({"targets": [target], "labels": {"instance": host, "host": host}})
    return found


def monitoring_findings(asked: dict[str, Any], prometheus: str) -> list[dict[str, str]]:
    """Findings about what Prometheus is to ask; `asked` has the role's variables without their prefix."""
    known = {name: value for name, value in asked.items() if name != "servers"}
    if found := role_findings("monitoring", known):
        return found
    for item in asked["servers"]:
        target, labels = item["targets"][0], item["labels"]
        address = target.rsplit(":", 1)[0].strip("[]")
        if not asked["balancer"] and is_loopback(address) and labels["host"] != prometheus:
            found.append(error(
                "balancer", f"nothing, and {labels['instance']} on {target}",
                f"a way from {prometheus} to that server",
                "Name the balancer as ADDRESS:PORT, or let the instance listen beyond loopback.",
            ))
    if not asked["servers"]:
        found.append(finding(
            "error", "vllm_service_instances", "no instance of any host", "one at least", "Add it to a host.",
        ))
    if asked["balancer"] and not re.fullmatch(r"(\[[0-9a-f:]+\]|[A-Za-z0-9._-]+):[0-9]+", str(asked["balancer"])):
        found.append(error("balancer", shown(asked["balancer"]), "ADDRESS:PORT", "Correct it."))
    for name in ("credentials_file", "ca_file"):
        if asked[name] and not is_plain_path(asked[name]):
            found.append(error(
                name, shown(asked[name]), PLAIN_PATH_FORM, "Correct the path."
            ))
    return found


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {
            "host_targets": host_targets,
            "monitoring_findings": monitoring_findings,
            "server_targets": server_targets,
        }
