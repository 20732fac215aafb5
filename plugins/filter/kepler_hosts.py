"""Filters for instances over several hosts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.kepler.vllm.plugins.filter.kepler_capacity import model_key
from ansible_collections.kepler.vllm.plugins.filter.kepler_instances import INSTANCES, instances_with_defaults
from ansible_collections.kepler.vllm.plugins.filter.kepler_profiles import profile_hosts
from ansible_collections.kepler.vllm.plugins.module_utils.findings import finding
from ansible_collections.kepler.vllm.plugins.plugin_utils import several_hosts
from ansible_collections.kepler.vllm.plugins.plugin_utils.engine_options import by_ray
from ansible_collections.kepler.vllm.plugins.plugin_utils.findings import shown

# Seconds that the clocks of two hosts may differ: their logs could not be read side by side, and less is the noise of
# how they are asked.
CLOCKS = 60
# Files of a model that every host of an instance has alike, and what the module model_facts calls their contents.
MODEL_FILES = {
    "config.json": "config", "tensors": "tensors", "tokenizer_config.json": "tokenizer",
    "generation_config.json": "generation",
}
# Begin of the names of groups of hosts that change generations together.
BATCH = "kepler_batch_"
# No other hosts are looked at.
NOBODY: Mapping[str, Any] = {}


def listed_by(host: str, hostvars: Mapping[str, Any]) -> list[Any]:
    """The instances that the inventory lists for a host; the validation reports what is no list."""
    listed = hostvars[host].get(INSTANCES)
    return listed if isinstance(listed, list) else []


def with_defaults(host: str, hostvars: Mapping[str, Any], serve: Mapping[str, Any] = NOBODY) -> list[Any]:
    """The instances that the inventory lists for a host, with their defaults."""
    found: list[Any] = instances_with_defaults(
        listed_by(host, hostvars), hostvars[host].get("vllm_service_instance_defaults"), dict(serve)
    )
    return found


def need_ray(hosts: Iterable[str], hostvars: Mapping[str, Any], serve: dict[str, Any]) -> bool:
    """Return whether an instance of one of the hosts spans several by Ray."""
    asked = [item for host in hosts if host in hostvars for item in with_defaults(host, hostvars, serve)]
    return any(several_hosts.spans(item) and by_ray([item.get("engine")]) for item in asked)


def engines_needed(
    instances: Any, serve: dict[str, Any], hostvars: Mapping[str, Any] = NOBODY, hosts: Iterable[str] = ()
) -> list[str]:
    """Engines that a host has an environment of, in the order of the profile: those of its instances, or the default.

    instances: with their defaults. hosts: those that it builds for as well.
    """
    listed = [instances, *(with_defaults(host, hostvars, serve) for host in hosts if host in hostvars)]
    asked = [item.get("engine") for items in listed if isinstance(items, list) for item in items
             if isinstance(item, dict)]
    return [engine for engine in serve["engines"] if engine in asked] or [serve["engine"]]


def instances_here(instances: Any, host: str) -> Any:
    """The instances that concern a host; what is no list is left for the validation."""
    if not isinstance(instances, list):
        return instances
    return [item for item in instances if several_hosts.is_here(item, host)]


def servers_here(instances: list[dict[str, Any]], host: str) -> list[dict[str, Any]]:
    """The instances whose API a host serves."""
    return [item for item in instances if not several_hosts.is_stage(item, host)]


def unit_of(instance: Mapping[str, Any], host: str) -> str:
    """The unit of an instance on a host, without its suffix."""
    return f"{'vllm-stage' if several_hosts.is_stage(instance, host) else 'vllm'}@{instance['name']}"


def without_lost_hosts(
    instances: list[dict[str, Any]], hostvars: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The instances whose other hosts may start their parts of them, as far as their qualification is known."""
    def starts(instance: dict[str, Any]) -> bool:
        passed = (hostvars[host].get("qualification_dies") for host in instance.get("hosts") or [] if host in hostvars)
        return all(gpus is None or set(instance["gpus"]) <= set(gpus) for gpus in passed)

    return [instance for instance in instances if starts(instance)]


def partners(host: str, hostvars: Mapping[str, Any]) -> list[str]:
    """The other hosts of a host's instances over several hosts."""
    spanning = [item["hosts"] for item in listed_by(host, hostvars) if several_hosts.spans(item)]
    shared = [hosts for hosts in spanning if host in hosts]
    return sorted({other for hosts in shared for other in hosts} - {host})


def batch_of(host: str, hostvars: Mapping[str, Any]) -> str:
    """Name of the group of hosts that change generations together, for the module group_by."""
    together, new = {host}, [host]
    while new:
        new = [other for one in new for other in partners(one, hostvars) if other in hostvars and other not in together]
        together.update(new)
    return BATCH + hashlib.sha256(" ".join(sorted(together)).encode()).hexdigest()[:12]


def batches(groups: Mapping[str, list[str]]) -> list[list[str]]:
    """Hosts that change generations together, in the order of the inventory; only what group_by has grouped."""
    found = [members for name, members in groups.items() if name.startswith(BATCH)]
    order = {host: place for place, host in enumerate(groups.get("all", []))}
    return sorted((sorted(members, key=order.__getitem__) for members in found), key=lambda part: order[part[0]])


def in_batches(groups: Mapping[str, list[str]]) -> list[str] | str:
    """The `hosts` of a play whose `serial` is batch_sizes."""
    return [host for part in batches(groups) for host in part] or profile_hosts(dict(groups))


def batch_sizes(groups: Mapping[str, list[str]], serial: Any) -> Any:
    """The `serial` of a play over in_batches: as asked, but no instance's hosts are parted."""
    parts = [len(part) for part in batches(groups)]
    if max(parts, default=1) == 1:
        return serial
    text = str(serial)
    most = max(1, sum(parts) * int(text[:-1]) // 100) if text.endswith("%") else int(text)
    sizes: list[int] = []
    for size in parts:
        if sizes and sizes[-1] + size <= most:
            sizes[-1] += size
        else:
            sizes.append(size)
    return sizes


def hosts_findings(
    instances: Any, host: str, hostvars: Mapping[str, Any], members: list[str], ray: bool = True,
) -> list[dict[str, str]]:
    """Findings about a host's instances over several hosts that compare the inventories of those hosts.

    members: hosts of the profile. ray: whether the profile's lock has Ray.
    """
    found = []
    for index, instance in enumerate(listed_by(host, hostvars)):
        if several_hosts.spans(instance) and not {*instance["hosts"]} & {*members}:
            found.append(finding(
                "error", f"{INSTANCES}[{index}].hosts", shown(instance["hosts"]),
                f"hosts of the profile: {', '.join(members)}",
                "Correct the names, or add the hosts to the group: nobody would serve the instance.",
            ))
    for index, instance in enumerate(instances if isinstance(instances, list) else []):
        if not several_hosts.spans(instance):
            continue
        where = f"{INSTANCES}[{index}]"
        if not ray and by_ray([instance.get("engine")]):
            found.append(finding(
                "error", f"{where}.hosts", f"{len(instance['hosts'])} hosts", "one: this profile's lock has no Ray",
                "Leave hosts out, or serve the model on hosts of another profile.",
            ))
        for other in instance["hosts"]:
            if other not in members:
                found.append(finding(
                    "error", f"{where}.hosts", other, f"hosts of the profile: {', '.join(members)}",
                    "Correct the name, or add the host to the group.",
                ))
            elif other != host and (differs := difference(instance, other, hostvars)):
                found.append(finding(
                    "error", f"{where}.{differs[0]}", f"{differs[1]} on {host} and {differs[2]} on {other}",
                    "the same on every host of the instance", "Define the instance once, in group_vars of its hosts.",
                ))
    return found


def difference(instance: dict[str, Any], other: str, hostvars: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Return key and both values where another host has an instance otherwise, or None."""
    theirs = with_defaults(other, hostvars)
    same = [item for item in theirs if isinstance(item, dict) and item.get("name") == instance.get("name")]
    if not same:
        return "hosts", "an instance", "none"
    for key in sorted(instance.keys() & same[0].keys()):
        if key not in ("dtype", "engine") and instance[key] != same[0][key]:
            return key, shown(instance[key]), shown(same[0][key])
    return None


def link_findings(
    instances: list[dict[str, Any]], host: str, hostvars: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Findings about links, models and clocks of a host's instances over several hosts, of what the run has read."""
    found = []
    for index, instance in enumerate(instances):
        if not several_hosts.spans(instance):
            continue
        where = f"{INSTANCES}[{index}]"
        try:
            several_hosts.link_of(instance, host, hostvars)
        except several_hosts.LinkError as error:
            found.append(finding("error", f"{where}.link", error.found, error.expected, error.next_step))
        head, limit = instance["hosts"][0], ":".join(instance["hosts"])
        read = {
            name: hostvars[name] for name in instance["hosts"]
            if name in hostvars and hostvars[name].get("preflight_clock_ahead") is not None
        }
        if absent := [name for name in instance["hosts"] if name not in read]:
            found.append(finding(
                "warning", f"{where}.hosts", f"{', '.join(absent)} outside of this run",
                "all hosts of the instance, whose clocks, models and generations are compared",
                f"Name them all (-l '{limit}').",
            ))
        if host == head or absent:
            continue
        apart = abs(float(read[host]["preflight_clock_ahead"]) - float(read[head]["preflight_clock_ahead"]))
        if apart > CLOCKS:
            found.append(finding(
                "error", f"{where}.hosts", f"clocks of {host} and {head} that are {apart:.0f} s apart",
                f"at most {CLOCKS} s", "Start chronyd on both.",
            ))
        active, heads = (active_environment(read[name], instance["engine"]) for name in (host, head))
        if active and heads and active != heads:
            found.append(finding(
                "warning", f"{where}.hosts", f"generations with {active} on {host} and {heads} on {head}",
                "the same environment on every host: the server takes no other in",
                f"Run site.yml or playbooks/rollback.yml on all of them (-l '{limit}').",
            ))
        found += model_differences(instance, where, host, read)
    return found


def active_environment(variables: Mapping[str, Any], engine: str) -> str | None:
    """The environment of an engine that a host's active generation has for servers over several hosts, or None."""
    stats = (variables.get("__preflight_active") or {}).get("results") or []
    return next((item["stat"].get("lnk_source") for item in stats if item["item"] == engine), None)


def model_differences(
    instance: dict[str, Any], where: str, host: str, read: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Findings about a model whose files on a host differ from those on the head. read: variables by host."""
    head, key = instance["hosts"][0], model_key(instance)
    here, there = ((read[name].get("__preflight_models") or {}).get("models", {}).get(key) for name in (host, head))
    if not (here and there and here["config"] and there["config"]):
        return []
    differing = [file for file, name in MODEL_FILES.items() if here.get(name) != there.get(name)]
    return [finding(
        "error", f"{where}.model", f"in {key} other contents of {', '.join(differing)} than on {head}",
        "one model on all hosts", "Copy the directory from one host to the others.",
    )] if differing else []


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {
            "batch_of": batch_of,
            "batch_sizes": batch_sizes,
            "by_ray": by_ray,
            "engines_needed": engines_needed,
            "hosts_findings": hosts_findings,
            "in_batches": in_batches,
            "instance_unit": unit_of,
            "instances_here": instances_here,
            "link_findings": link_findings,
            "link_of": several_hosts.link_of,
            "need_ray": need_ray,
            "partners": partners,
            "servers_here": servers_here,
            "without_lost_hosts": without_lost_hosts,
        }
