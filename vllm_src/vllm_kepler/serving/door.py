"""The door: what a request meets before vLLM does. vLLM loads it by `--middleware vllm_kepler.serving.door.Door`.

It keeps a server without a key from the network, asks for the key on every path (upstream asks on /v1 alone, and
/invocations completes without one), refuses bodies that are too large, no JSON or known to end the engine, and turns
new requests away while the server drains, or is held until somebody has looked at its answers.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import socket
import stat
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from .instance import CONFIGURATION, Refused, key_of, refuse_open_server

# A file of this name in the unit's runtime directory: the supervisor drains the server.
DRAINING = "draining"
# Header of the questions that a held server answers: what the file holds that holds it.
HELD = "x-kepler-held"
# Header of /health while the server drains: how many requests still run.
RUNNING = "x-requests-running"
# Seconds after which a client may come back to a server that drains; another one can be asked at once.
RETRY_AFTER = "10"
# Paths that say how the server fares. They need no key, as upstream has it.
OPEN = ("/health", "/ping", "/metrics", "/version")
MEBIBYTE = 1 << 20
# How many times the limit of a body is read, and thrown away, before its sender is cut off.
PATIENCE = 8

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Turned(Exception):
    """A request that gets no further: status, what is wrong, further headers."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


def constant(name: str) -> None:
    """NaN and Infinity, which Python reads and JSON does not know."""
    raise ValueError(f"{name} is no JSON")


def integer(text: str) -> int:
    """A number that the engine can hold."""
    number = int(text)
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError("an integer needs more than 64 bits")
    return number


def look_at(content: bytes, vocabulary: int) -> None:
    """Raise Turned for a body that vLLM 0.9.2 answers with 500, or that ends its engine.

    vocabulary: how many token ids the model has; 0 where that is unknown.
    """
    try:
        body = json.loads(content, parse_constant=constant, parse_int=integer)
    except (ValueError, RecursionError) as error:
        # No word of the body: it may hold what nobody else should read.
        where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise Turned(400, f"The body is no JSON, or holds a number of more than 64 bits{where}.") from None
    if not isinstance(body, dict):
        raise Turned(400, "The body must be a JSON object.")
    if body.get("guided_decoding_backend") is not None:
        # A pattern that another backend cannot read ends the engine.
        raise Turned(400, "guided_decoding_backend: the server chooses it. Leave it out.")
    if body.get("prompt_embeds") is not None:
        # Upstream decodes it before it says that it does not take it.
        raise Turned(400, "prompt_embeds: the server takes text and tokens. Leave it out.")
    tools = body.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise Turned(400, "tools: expected a list of objects.")
    tokens = body.get("stop_token_ids")
    # With min_tokens these index the logits.
    if vocabulary and isinstance(tokens, list):
        strange = [token for token in tokens if not (isinstance(token, int) and 0 <= token < vocabulary)]
        if strange:
            raise Turned(400, f"stop_token_ids: expected integers of 0 to {vocabulary - 1}.")


class Door:
    """ASGI middleware."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app
        self.key = key_of(os.environ)
        self.limit = int(float(os.environ.get("VLLM_KEPLER_BODY", "8")) * MEBIBYTE)
        self.draining = Path(os.environ.get("RUNTIME_DIRECTORY", "/nonexistent")) / DRAINING
        self.held = Path(os.environ.get("VLLM_KEPLER_HELD", "/nonexistent"))
        self.running = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.open()
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # Of a name that comes twice the first counts, as it does for vLLM.
        found = reversed(scope["headers"])
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in found}
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        try:
            self.admit(path, scope["method"], headers)
            if path in OPEN:
                await self.app(scope, receive, send)
                return
        except Turned as turned:
            await answer(send, turned)
            return
        self.running += 1
        try:
            if scope["method"] == "POST":
                receive = await self.read(scope, headers, receive)
            await self.app(scope, receive, send)
        except Turned as turned:
            await answer(send, turned)
        except Exception as error:
            if not from_validation(error):
                raise
            await answer(send, Turned(400, "A field of the body is not of the kind that it must be."))
        finally:
            self.running -= 1

    async def open(self) -> None:
        """End the process with status 78 instead of starting a server that the network reaches and that has no key."""
        try:
            for address in unused_sockets():
                refuse_open_server(address, self.key)
        except Refused as refused:
            print(f"ERROR {refused}", flush=True)
            # uvicorn goes on after any exception of this task, SystemExit included.
            asyncio.get_running_loop().call_soon(sys.exit, CONFIGURATION)
            await asyncio.Event().wait()

    def admit(self, path: str, method: str, headers: dict[str, str]) -> None:
        """Raise Turned for a request without the key, or one that came too late or too early."""
        # A browser asks with OPTIONS, and without a key, whether it may ask.
        if self.key and path not in OPEN and method != "OPTIONS":
            brought = headers.get("authorization", "").encode()
            if not hmac.compare_digest(brought, f"Bearer {self.key}".encode()):
                raise Turned(401, "The key is missing or wrong.", **{"www-authenticate": "Bearer"})
        if path in ("/metrics", "/version"):
            return
        if self.draining.exists():
            running = {RUNNING: str(self.running)} if path in OPEN else {}
            raise Turned(503, "The server is being stopped. Ask again.", **{"retry-after": RETRY_AFTER}, **running)
        word = word_of(self.held)
        if word and not hmac.compare_digest(headers.get(HELD, "").encode(), word.encode()):
            raise Turned(503, "The server takes requests once its answers were looked at. Ask again.",
                         **{"retry-after": RETRY_AFTER})

    async def read(self, scope: Message, headers: dict[str, str], receive: Receive) -> Receive:
        """Read the body, no more than the limit of it; a `receive` that gives it once more. Raises Turned."""
        too_large = Turned(413, f"The body is larger than {self.limit} bytes.", connection="close")
        length = headers.get("content-length", "0")
        # Who asks first whether to send it is told at once; the others hear the answer only once they have sent.
        if "expect" in headers and length.isdigit() and int(length) > self.limit:
            raise too_large
        content, size, more = bytearray(), 0, True
        while more and size <= PATIENCE * self.limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            part = message.get("body", b"")
            size += len(part)
            if size <= self.limit:
                content += part
            more = message.get("more_body", False)
        if size > self.limit:
            raise too_large
        if headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
            look_at(bytes(content), vocabulary_of(scope))
        parts = [{"type": "http.request", "body": bytes(content), "more_body": False}]

        async def again() -> Message:
            return parts.pop() if parts else await receive()

        return again


def unused_sockets() -> Iterator[str]:
    """Yield the addresses of this process's TCP sockets that are bound and neither listen nor are connected yet.

    vLLM binds its port long before it listens there.
    """
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            found = socket.socket(fileno=os.dup(number))
        except OSError:
            continue
        with found:
            if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
                continue
            address, port = found.getsockname()[:2]
            if not port or found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                continue
            try:
                found.getpeername()
            except OSError:
                yield address


def word_of(held: Path) -> str:
    """The word that lets a question through to a held server; empty where the server is not held."""
    try:
        return held.read_text().strip()
    except FileNotFoundError:
        return ""


def vocabulary_of(scope: Message) -> int:
    """How many token ids the served model has; 0 where vLLM does not say."""
    config = getattr(getattr(scope.get("app"), "state", None), "vllm_config", None)
    return config.model_config.get_vocab_size() if config is not None else 0


def from_validation(error: BaseException) -> bool:
    """Whether an error was raised where the fields of a body are looked at: upstream compares some before it knows
    their types. Nothing was answered yet there.
    """
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == "fastapi.dependencies.utils" for frame, _ in frames)


async def answer(send: Send, turned: Turned) -> None:
    """Answer as vLLM words its own errors."""
    error = {"object": "error", "message": str(turned), "type": "BadRequestError", "param": None, "code": turned.status}
    content = json.dumps(error).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), **turned.headers}
    await send({"type": "http.response.start", "status": turned.status,
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()]})
    await send({"type": "http.response.body", "body": content})
