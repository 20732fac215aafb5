"""Bounds on what a connection may cost before its key is known: time, memory and files.

uvicorn lets a client take any time to send the head of a request, and any time to read an answer.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Seconds for the head of a request, from the connection or the last answer on; and for a client that reads nothing.
HEAD, UNREAD = 10, 60
# Bytes of a request's head.
LONGEST_HEAD = 1 << 16
# Files for other things than connections: vLLM's own, and the connections of uvicorn's backlog (2,048).
RESERVED = 3072


def most_connections() -> int:
    """Return how many connections vLLM can have and still open its own files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(files - RESERVED, files // 4)


class Connection(HttpToolsProtocol):
    """A client's connection."""

    # Connections between two requests, the one that waits longest first.
    waiting: ClassVar[dict[Connection, None]] = {}

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.patience: asyncio.TimerHandle | None = None
        self.unread: asyncio.TimerHandle | None = None
        self.head = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.wait()
        if len(self.connections) > most_connections():
            # If all others are within a request, this connection itself waits longest.
            next(iter(self.waiting)).drop()

    def wait(self) -> None:
        """Expect the head of a request soon."""
        self.stop_waiting()
        self.waiting[self] = None
        self.patience = self.loop.call_later(HEAD, self.drop)

    def stop_waiting(self) -> None:
        self.waiting.pop(self, None)
        self.head = 0
        if self.patience is not None:
            self.patience.cancel()

    def drop(self) -> None:
        """End the connection, even if the client has not read the whole answer."""
        self.stop_waiting()
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self in self.waiting:
            self.head += len(data)
            if self.head > LONGEST_HEAD:
                self.drop()

    def on_headers_complete(self) -> None:
        self.stop_waiting()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:
            self.wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unread = self.loop.call_later(UNREAD, self.drop)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.unread is not None:
            self.unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_waiting()
        super().connection_lost(exc)
        if self.unread is not None:
            self.unread.cancel()
