#!/usr/libexec/platform-python
"""Hands the files of one directory to those who know the password, until it is stopped.

Usage: share.py DIRECTORY ADDRESS PORT. KEPLER_SHARE_PASSWORD holds the password (HTTP basic authentication, any name).
"""

import base64
import hmac
import os
import re
import resource
import socket
import sys
import threading
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn

# The only form of a range: from one byte on, as a resumed download asks.
RANGE = re.compile("bytes=([0-9]+)-$")
IDLE_SECONDS = 60
MOST_CLIENTS = 256
FILES_OF_ITS_OWN = 12  # standard streams, the listening socket, what Python opens now and then
LET_GO_SECONDS = 1  # for a thread to notice that its connection was closed


class Server(ThreadingMixIn, HTTPServer):
    """Takes as many clients as it has files for; the one that has been idle longest makes room for a new one."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, directory, password, address, port):
        self.directory, self.password = directory, password
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        # A download takes two files: the connection, and what is sent.
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.places = MOST_CLIENTS
        if files != resource.RLIM_INFINITY:
            self.places = max(1, min(MOST_CLIENTS, (files - FILES_OF_ITS_OWN) // 2))
        # Connections in order of arrival; True until the client has sent the password.
        self.clients, self.changed = OrderedDict(), threading.Condition()
        super().__init__((address, port), Handler)

    def process_request(self, request, client_address):
        with self.changed:
            if len(self.clients) >= self.places:
                self.let_go()
            if len(self.clients) >= self.places:
                # All places are taken by downloads, or by connections that have not closed yet.
                super().shutdown_request(request)
                return
            self.clients[request] = True
        super().process_request(request, client_address)

    def let_go(self):
        """Close the oldest connection without a password yet, and wait until its place is free."""
        idle = next((client for client, waits in self.clients.items() if waits), None)
        if idle is not None:
            try:
                idle.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the client closed it
            self.changed.wait_for(lambda: idle not in self.clients, LET_GO_SECONDS)

    def is_served(self, request):
        """Mark a connection whose client sent the password: it keeps its place."""
        with self.changed:
            if request in self.clients:
                self.clients[request] = False

    def handle_error(self, request, client_address):
        """Tell of a fault; a client that left, or was let go, is none."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def shutdown_request(self, request):
        super().shutdown_request(request)
        with self.changed:
            self.clients.pop(request, None)
            self.changed.notify_all()


class Handler(BaseHTTPRequestHandler):
    timeout = IDLE_SECONDS

    def knows_the_password(self):
        kind, _, given = self.headers.get("Authorization", "").partition(" ")
        try:
            password = base64.b64decode(given).partition(b":")[2]
        except ValueError:
            return False
        return kind == "Basic" and hmac.compare_digest(password, self.server.password)

    def do_GET(self):
        if not self.knows_the_password():
            self.send_error(401)
            return
        self.server.is_served(self.connection)
        name = self.path.lstrip("/")
        try:
            # Names of published files are plain; nothing above or below the directory is meant.
            if "/" in name or "%" in name or name.startswith("."):
                raise OSError(name)
            stream = open(os.path.join(self.server.directory, name), "rb")
        except OSError:
            self.send_error(404)
            return
        with stream:
            size = os.fstat(stream.fileno()).st_size
            asked = RANGE.match(self.headers.get("Range", ""))
            start = int(asked.group(1)) if asked else 0
            if asked and start >= size:
                self.send_error(416)
                return
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", "bytes %d-%d/%d" % (start, size - 1, size))
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(size - start))
            self.end_headers()
            try:
                self.connection.sendfile(stream, start)
            except OSError as error:
                self.log_error("%s: %s", name, error)


def tell_systemd():
    """Say that the port is open: the unit has Type=notify."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect(address.replace("@", "\0", 1))
            notify.send(b"READY=1")


def main():
    directory, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    password = os.environb.pop(b"KEPLER_SHARE_PASSWORD", b"")
    if not password:
        sys.exit("KEPLER_SHARE_PASSWORD: found nothing; expected a password.")
    try:
        server = Server(directory, password, address, port)
    except OSError as error:
        sys.exit("store_share_address, store_share_port: found %s and %d, where no server can listen (%s); expected an "
                 "address of this host and a free port." % (address, port, error.strerror or error))
    tell_systemd()
    server.serve_forever()


if __name__ == "__main__":
    main()
