"""Under which address one host of the inventory reaches another."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any


def is_loopback(address: Any) -> bool:
    """Whether `address` is one that its own host alone reaches."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def address_of(host: str, values: Mapping[str, Any], seen_from: str) -> str:
    """Address of `host`, whose variables are `values`, as the host `seen_from` reaches it."""
    if host == seen_from:
        return "127.0.0.1"
    return str(values.get("load_balancer_address") or values.get("ansible_host") or host)
