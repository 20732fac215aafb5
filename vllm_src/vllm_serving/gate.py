"""Join the hosts of a server whose vLLM starts ranks on each of them by itself, and notice when one of them is gone.

One connection from each other host to the first one, for as long as both serve: vLLM 0.12.0 waits for ranks of a host
that is lost. Either side proves that it knows the link's key, which does not cross the link.

The head starts `python -m vllm_serving.gate DESCRIPTOR`, which writes to the descriptor once all hosts are there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from .cluster import OUTPUT, STORE, TOKEN, Cluster, Member, describe, read_cluster
from .log import HOSTS_COMPLETE, HOSTS_MISSING

# Bytes of a message, and seconds that a greeting may take.
LONGEST, GREETING = 4096, 5.0
# A host that is cut off is given up after ten seconds by the kernel, however busy the processes are.
KEEP_ALIVE = {
    socket.TCP_KEEPIDLE: 2, socket.TCP_KEEPINTVL: 2, socket.TCP_KEEPCNT: 4, socket.TCP_USER_TIMEOUT: 10_000,
}
HEAD, STAGE = "head", "stage"
# Is PyTorch's store, in which ranks find one another, with a socket on the link: rank 0 would listen on all addresses.
STORE_PROGRAM = """
import signal, sys
from torch.distributed import TCPStore
address, port, descriptor = sys.argv[1], *map(int, sys.argv[2:])
store = TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=descriptor)
signal.pause()
"""
# Lets rank 0 take that store.
STORE_ENVIRONMENT = {"TORCHELASTIC_USE_AGENT_STORE": "True"}


class Lost(Exception):
    """The other side is gone; the message says why."""


def keep_alive(connection: socket.socket) -> None:
    """Let the kernel notice that the other host is cut off."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEP_ALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def written(**message: Any) -> bytes:
    """A message as it crosses the link."""
    return json.dumps(message).encode() + b"\n"


def read(line: bytes) -> dict[str, Any]:
    """The message of a line. Raises ValueError for what is none."""
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError(f"found {type(found).__name__}; expected a mapping")
    return found


def proof(token: str, side: str, head: str, stage: str) -> str:
    """What a side shows of the key: a digest over what both sides have just made up."""
    return hmac.new(token.encode(), f"{side} {head} {stage}".encode(), hashlib.sha256).hexdigest()


def proves(message: dict[str, Any], expected: str) -> bool:
    """Return whether a message has the proof."""
    return hmac.compare_digest(str(message.get("proof")).encode(), expected.encode())


def node_arguments(cluster: Cluster, number: int) -> list[str]:
    """Arguments of `vllm serve` on the host of that number; the first one, 0, has the API and the engine."""
    return ["--nnodes", str(cluster.hosts), "--node-rank", str(number), "--master-addr", cluster.head,
            "--master-port", str(cluster.port + STORE), *(["--headless"] if number else [])]


class Joined:
    """A stage's side of its connection. Raises Lost and OSError where there is no head with the same key."""

    def __init__(self, cluster: Cluster, token: str) -> None:
        self.rest = b""
        self.connection = socket.create_connection((cluster.head, cluster.port), GREETING, (cluster.address, 0))
        try:
            keep_alive(self.connection)
            theirs, ours = str(self.receive().get("nonce")), secrets.token_hex(16)
            self.send(nonce=ours, proof=proof(token, STAGE, theirs, ours), environment=OUTPUT, gpus=cluster.ranks)
            if not proves(self.receive(), proof(token, HEAD, theirs, ours)):
                raise Lost("its answer proves nothing")
        except Lost as lost:
            self.connection.close()
            raise Lost(f"{lost}; has it another {TOKEN}?") from None
        self.connection.setblocking(False)

    def send(self, **message: Any) -> None:
        self.connection.sendall(written(**message))

    def receive(self) -> dict[str, Any]:
        """Return the next message. Raises BlockingIOError if none is there yet, and Lost if none can come."""
        while b"\n" not in self.rest:
            try:
                found = self.connection.recv(LONGEST)
            except BlockingIOError:
                raise
            except OSError as error:
                raise Lost(os.strerror(error.errno) if error.errno else "it does not answer") from None
            if not found or len(self.rest) > LONGEST:
                raise Lost("it has closed the connection")
            self.rest += found
        line, _, self.rest = self.rest.partition(b"\n")
        try:
            return read(line)
        except ValueError as error:
            raise Lost(f"it speaks otherwise: {error}") from None

    def number(self) -> int | None:
        """The number of this host once all are there; None before. Raises Lost."""
        try:
            return int(self.receive()["node"])
        except BlockingIOError:
            return None
        except (KeyError, ValueError):
            raise Lost("it speaks otherwise") from None

    def close(self, reason: str) -> None:
        """Say why this host ends, and close the connection."""
        with contextlib.suppress(OSError):
            self.send(ended=reason)
        self.connection.close()


class Gate:
    """The first host's side: takes hosts in until all are there, then waits until one of them is gone.

    Attributes:
        members: connections of the hosts that have joined, by what each of them is.
    """

    def __init__(self, cluster: Cluster, token: str) -> None:
        self.cluster, self.token = cluster, token
        self.members: dict[Member, asyncio.StreamWriter] = {}
        self.before = ""
        self.complete = asyncio.Event()
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self, go: Callable[[], None]) -> str:
        """Call `go` when all hosts are there. Returns which of them is gone then, and why."""
        server = await asyncio.start_server(self.meet, self.cluster.head, self.cluster.port, limit=LONGEST)
        self.report()
        await self.complete.wait()
        # Nobody joins a server that runs.
        server.close()
        for number, member in enumerate(sorted(self.members), 1):
            self.members[member].write(written(node=number))
        go()
        return await self.lost

    def report(self) -> None:
        """Say which hosts are there."""
        own = Member(self.cluster.head, OUTPUT, self.cluster.ranks)
        ready, text = describe([own, *self.members], self.cluster, OUTPUT)
        if ready >= self.cluster.hosts:
            for member in [member for member in self.members if member[1:] != own[1:]]:
                self.members.pop(member).close()
            print(f"{HOSTS_COMPLETE}: {text}", flush=True)
            self.complete.set()
        elif text != self.before:
            self.before = text
            print(f"{HOSTS_MISSING}: {ready} of {self.cluster.hosts} there ({text})", flush=True)

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Member | None:
        """Return the host at the other end; None for one that does not know the key. Raises ValueError, OSError."""
        ours = secrets.token_hex(16)
        writer.write(written(nonce=ours))
        hello = read(await reader.readline())
        theirs = str(hello.get("nonce"))
        if not proves(hello, proof(self.token, STAGE, ours, theirs)):
            return None
        writer.write(written(proof=proof(self.token, HEAD, ours, theirs)))
        return Member(writer.get_extra_info("peername")[0], str(hello["environment"]), float(hello["gpus"]))

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a host in, and notice its end."""
        member, reason = None, "it has closed the connection"
        try:
            keep_alive(writer.get_extra_info("socket"))
            member = await asyncio.wait_for(self.greet(reader, writer), GREETING)
            if member is None or self.complete.is_set():
                return
            for other in [other for other in self.members if other.address == member.address]:
                # A host that was cut off, and is back before that was noticed.
                self.members.pop(other).close()
            self.members[member] = writer
            self.report()
            reason = str(read(await reader.readline()).get("ended"))
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
        except (ValueError, KeyError, asyncio.TimeoutError):
            pass
        finally:
            writer.close()
            if member is not None and self.members.get(member) is writer:
                del self.members[member]
                self.miss(member, reason)

    def miss(self, member: Member, reason: str) -> None:
        """Note that a host is gone."""
        if not self.complete.is_set():
            self.report()
        elif not self.lost.done():
            self.lost.set_result(f"the host {member.address} is lost: {reason}")


async def guard(cluster: Cluster, token: str, descriptor: int) -> None:
    """Write to `descriptor` when all hosts are there, and end this process group when one of them is gone."""
    reason = "the gate failed"

    def go() -> None:
        arguments = (cluster.head, cluster.port + STORE, listening.fileno())
        subprocess.Popen(
            [sys.executable, "-c", STORE_PROGRAM, *map(str, arguments)], stdin=subprocess.DEVNULL,
            pass_fds=[listening.fileno()],
        )
        os.write(descriptor, b"\n")

    try:
        with socket.create_server((cluster.head, cluster.port + STORE)) as listening:
            reason = await Gate(cluster, token).run(go)
    except OSError as error:
        reason = f"port {cluster.port} or {cluster.port + STORE} of {cluster.head} cannot be had: {error}"
    finally:
        print(f"error: {reason}", flush=True)
        # vLLM too, which may wait for the lost ranks for ever.
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    found = read_cluster(os.environ)
    assert found is not None
    asyncio.run(guard(found, os.environ[TOKEN].strip(), int(sys.argv[1])))
