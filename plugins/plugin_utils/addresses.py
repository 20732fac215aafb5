"""Under which address one host of the inventory reaches another."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

# One part of a host name.
LABEL = re.compile("[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


def is_listening_address(value: Any) -> bool:
    """Return whether a server can listen on `value`: an IP address without a zone, or a host name.

    A name whose last part begins with a digit is none: resolvers take 127.1 and 0x7f.1 for addresses.
    """
    try:
        return isinstance(value, str) and "%" not in value and bool(ipaddress.ip_address(value))
    except ValueError:
        labels = value.split(".")
        return all(map(LABEL.fullmatch, labels)) and not labels[-1][0].isdigit() and len(value) <= 253


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
