"""Instances over several hosts: which host does what for them, and how the hosts reach one another."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

INSTANCES = "vllm_service_instances"
# Ports of a host that one instance takes, from its link_port on; vllm_serving.cluster lays them out.
PORTS = 120


class LinkError(AnsibleFilterError):
    """A link of an instance that is not there.

    Attributes:
        found, expected, next_step: as a message names them.
    """

    def __init__(self, name: str, found: str, expected: str, next_step: str) -> None:
        super().__init__(f"link of the instance {name}: found {found}; expected {expected}. {next_step}")
        self.found, self.expected, self.next_step = found, expected, next_step


def spans(instance: Any) -> bool:
    """Return whether an instance names hosts; the validation reports what is no list of texts."""
    hosts = instance.get("hosts") if isinstance(instance, dict) else None
    return isinstance(hosts, list) and bool(hosts) and all(isinstance(host, str) for host in hosts)


def stages_of(instance: Mapping[str, Any]) -> int:
    """Return the stages of an instance's pipeline: one on each of its hosts."""
    return len(instance.get("hosts") or [None])


def is_stage(instance: Mapping[str, Any], host: str) -> bool:
    """Return whether `host` lends GPUs to the server of another host."""
    return spans(instance) and instance["hosts"][0] != host


def is_here(instance: Any, host: str) -> bool:
    """Return whether an instance of a host's inventory concerns that host; what is not well-formed does."""
    return not spans(instance) or host in instance["hosts"]


def is_address(value: Any) -> bool:
    """Return whether `value` is the text of an IPv4 address that one host has: the ports of a link take no IPv6."""
    try:
        address = ipaddress.IPv4Address(value if isinstance(value, str) else "")
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_multicast or address.is_loopback or address.is_reserved)


def is_link(value: Any) -> bool:
    """Return whether `value` is a name of an interface, or a mapping of hosts to addresses."""
    if isinstance(value, dict):
        return len(value) > 1 and all(isinstance(host, str) and is_address(at) for host, at in value.items())
    return isinstance(value, str) and bool(re.fullmatch("[A-Za-z0-9_.:-]{1,15}", value))


def addresses_on(facts: Mapping[str, Any], interface: str) -> list[str]:
    """IPv4 addresses of an interface, of a host's facts."""
    found = facts.get(re.sub("[-:.]", "_", interface)) or facts.get(interface) or {}
    entries = [found.get("ipv4") or {}, *(found.get("ipv4_secondaries") or [])]
    return [entry["address"] for entry in entries if entry.get("address")]


def interface_of(facts: Mapping[str, Any], address: str) -> str | None:
    """The interface of a host that has an address, of the host's facts."""
    names = facts.get("interfaces") or []
    return next((name for name in names if address in addresses_on(facts, name)), None)


def address_on_link(instance: Mapping[str, Any], host: str, hostvars: Mapping[str, Any]) -> str:
    """Address of `host` on the link of an instance. Raises LinkError."""
    link = instance["link"]
    if isinstance(link, dict):
        return link[host]
    facts = (hostvars[host].get("ansible_facts") or {}) if host in hostvars else {}
    if "interfaces" not in facts:
        raise LinkError(
            instance["name"], f"no facts of {host}", f"all its hosts in one run (-l '{':'.join(instance['hosts'])}')",
            "Name them all, or write their addresses into link.",
        )
    found = addresses_on(facts, link)
    if not found:
        raise LinkError(
            instance["name"], f"no interface {link} with an IPv4 address on {host}",
            f"one of {', '.join(facts['interfaces'])}",
            "Correct the name, or write the hosts' addresses into link.",
        )
    return found[0]


def link_of(instance: Mapping[str, Any], host: str, hostvars: Mapping[str, Any]) -> dict[str, Any]:
    """What `host` must know of an instance's link: its address and interface, the head and the other hosts.

    Raises LinkError.
    """
    addresses = {name: address_on_link(instance, name, hostvars) for name in instance["hosts"]}
    facts = hostvars[host].get("ansible_facts") or {}
    link = instance["link"]
    interface = link if isinstance(link, str) else interface_of(facts, addresses[host])
    if interface is None:
        raise LinkError(
            instance["name"], f"no interface with {addresses[host]} on {host}", "the host's own address on the link",
            "Correct the address, or set the interface up.",
        )
    return {
        "address": addresses[host], "interface": interface, "head": addresses[instance["hosts"][0]],
        "peers": sorted(address for name, address in addresses.items() if name != host),
    }
