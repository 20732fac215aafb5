"""Ports of this machine that nobody listens on. Runs on Python 3.6 too."""

import contextlib
import socket


def free_ports(count):
    """As many, each another one."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def free_port():
    return free_ports(1)[0]
