"""Connection plugin: a stand-in, through its door (standin/door.py)."""

from __future__ import annotations

import array
import contextlib
import os
import selectors
import shlex
import socket
import tempfile
from pathlib import Path
from typing import IO

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = r"""
name: standin
short_description: Run tasks in a stand-in
description:
  - Sends a command with its streams to the door of a stand-in, which runs it there as C(docker exec) would.
options:
  host:
    description: Inventory name of the stand-in.
    vars: [{name: inventory_hostname}]
  doors:
    description: Directory that has the doors of a fleet, by name.
    required: true
    env: [{name: STANDIN_DOORS}]
"""

CHUNK = 64 << 10


class Connection(ConnectionBase):
    transport = "standin"
    has_pipelining = True

    def _connect(self) -> Connection:
        return self

    def close(self) -> None:
        """Each command has a connection of its own."""

    def knock(self) -> socket.socket:
        """A connection to the door."""
        host, doors = self.get_option("host"), self.get_option("doors")
        door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # By a short name: the address of a socket has at most 107 bytes.
            directory = os.open(Path(doors, host), os.O_PATH)
            try:
                door.connect(f"/proc/self/fd/{directory}/door")
            finally:
                os.close(directory)
        except OSError as error:
            raise AnsibleConnectionFailure(
                f"{host}: found no door in {doors}: {error.strerror}; expected a stand-in that runs. Start it: "
                "python -m standin up FLEET"
            ) from error
        return door

    def run(self, command: str, given: IO[bytes]) -> tuple[int, bytes, bytes]:
        """Exit status, output and errors of a shell command that has `given` as its standard input."""
        said = {}
        with contextlib.ExitStack() as stack:
            door = stack.enter_context(self.knock())
            streams = array.array("i", [given.fileno()])
            with contextlib.ExitStack() as sent:
                for _ in range(2):
                    ours, theirs = os.pipe()
                    stack.callback(os.close, ours)
                    sent.callback(os.close, theirs)
                    said[ours] = bytearray()
                    streams.append(theirs)
                door.sendmsg([command.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
            selector = stack.enter_context(selectors.DefaultSelector())
            for stream in said:
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    if data := os.read(key.fd, CHUNK):
                        said[key.fd] += data
                    else:
                        selector.unregister(key.fd)
            status = door.recv(16)
        if not status:
            raise AnsibleConnectionFailure(f"{self.get_option('host')}: the stand-in stopped while a command ran")
        output, errors = said.values()
        return int(status), bytes(output), bytes(errors)

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        with tempfile.TemporaryFile() as given:
            given.write(in_data or b"")
            given.seek(0)
            return self.run(cmd, given)

    def transfer(self, command: str, given: IO[bytes]) -> bytes:
        status, output, errors = self.run(command, given)
        if status:
            raise AnsibleConnectionFailure(f"{self.get_option('host')}: {command}: {errors.decode(errors='replace')}")
        return output

    def put_file(self, in_path: str, out_path: str) -> None:
        super().put_file(in_path, out_path)
        with Path(in_path).open("rb") as given:
            self.transfer(f"cat > {shlex.quote(out_path)}", given)

    def fetch_file(self, in_path: str, out_path: str) -> None:
        super().fetch_file(in_path, out_path)
        with Path(os.devnull).open("rb") as nothing:
            Path(out_path).write_bytes(self.transfer(f"cat {shlex.quote(in_path)}", nothing))
