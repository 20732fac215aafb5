"""Addresses of a server, for itself and its clients. Self-contained: the serving environment has a copy."""

import ipaddress

# The address of a server that listens everywhere.
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
# Header with the quarantine token. The wire keeps the name that older servers know.
QUARANTINE_HEADER = "x-kepler-held"


def authority(host, port):
    """Host and port as a URL has them."""
    return "%s:%s" % ("[%s]" % host if ":" in host else host, port)


def is_loopback(address):
    """Return whether `address`, a text, is one that its own host alone reaches."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
