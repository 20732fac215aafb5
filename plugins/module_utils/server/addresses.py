"""Which addresses the network reaches. Self-contained: the serving environment has a copy."""

import ipaddress


def is_loopback(address):
    """Whether `address`, a text, is one that its own host alone reaches."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
