"""Under which address one host of the inventory reaches another."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError


def is_loopback(address: Any) -> bool:
    """Whether `address` is one that its own host alone reaches."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def address_of(host: str, values: Mapping[str, Any], seen_from: str) -> str:
    """Address of `host`, whose variables are `values`, as the host `seen_from` reaches it.

    Raises AnsibleFilterError for one that is made of what this play does not know, such as facts.
    """
    if host == seen_from:
        return "127.0.0.1"
    for name in ("load_balancer_address", "ansible_host"):
        address = str(values.get(name) or "")
        if "{{" in address:
            raise AnsibleFilterError(
                f"{name} of {host}: found {address!r}, and this play has not gathered what stands in it; expected an "
                "address or a name. Write it out."
            )
        if address:
            return address
    return host
