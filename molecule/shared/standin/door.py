"""The door of a stand-in: runs in it what comes through a socket, with the streams that come along.

Ansible's connection plugin `standin` knocks: `docker exec` with its engine and runc takes a twentieth of a second of
processor time for each task. The door itself is started by it, so that tasks have the same user, variables and limits.

usage: door.py SOCKET     ends at once where there is such a door already
"""

import array
import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

# Bytes of a command that are read: one more than Linux lets an argument have.
LONGEST = (128 << 10) + 1
# Exit status of what cannot be started.
UNSTARTED = 126


def answer(connection):
    """Run the shell command that a client sends with its three streams, and send its exit status."""
    with connection:
        command, ancillary, _, _ = connection.recvmsg(LONGEST, socket.CMSG_SPACE(3 * 4))
        if not ancillary:  # somebody looked whether there is a door
            return
        streams = list(array.array("i", ancillary[0][2]))
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", command], cwd="/", start_new_session=True,
                stdin=streams[0], stdout=streams[1], stderr=streams[2],
            )  # fmt: skip
        except OSError as error:
            os.write(streams[2], str(error).encode())
            process = None
        for stream in streams:
            os.close(stream)
        status = process.wait() if process else UNSTARTED
        # Who knocked may have gone.
        with contextlib.suppress(OSError):
            connection.send(str(status if status >= 0 else 128 - status).encode())


def serve(listener):
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


def main(address):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.suppress(OSError):
        listener.connect(address)
        return
    with contextlib.suppress(OSError):
        Path(address).unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    # The directory above it on the controller is its user's alone.
    Path(address).chmod(0o666)
    listener.listen(64)
    # It listens when this process has ended.
    if os.fork():
        return
    os.setsid()
    for stream in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    serve(listener)


if __name__ == "__main__":
    main(sys.argv[1])
