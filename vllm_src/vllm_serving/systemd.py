"""Notifications to systemd: sd_notify(3) in Python."""

from __future__ import annotations

import contextlib
import os
import socket


def listens() -> bool:
    """Return whether systemd watches this process. If not, the process has to watch itself."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def notify(**fields: object) -> None:
    """Send fields such as READY=1 or STATUS="loading", if systemd listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    message = "\n".join(f"{name}={value}" for name, value in fields.items())
    # An at sign stands for the zero byte of an abstract name. A lost message is repeated by the next poll.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)
