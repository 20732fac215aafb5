"""A port of this machine that nobody listens on. Runs on Python 3.6 too."""

import socket


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
