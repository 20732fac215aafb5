"""Admission: an ASGI middleware in front of vLLM's API, which vLLM loads by its option `--middleware`.

It keeps a server without an API key from the network, asks for the key on every path (upstream asks on /v1 alone, and
/invocations completes without one), and rejects bodies that are too large, no JSON or known to end the engine. While
the server drains or is in quarantine it rejects new requests.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import re
import secrets
import socket
import stat
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial, wraps
from importlib import metadata
from pathlib import Path
from typing import Any

from . import envs
from .addresses import QUARANTINE_HEADER
from .errors import ConfigError, Rejected
from .instance import CONFIGURATION, key_of, refuse_open_server
from .limits import Limits, normalizer_of, parse
from .versions import table_of

# File in the unit's runtime directory with which the supervisor drains the server.
DRAINING = "draining"
# Header that names a request, and characters of it that are kept.
REQUEST_ID, LONGEST_ID = "x-request-id", 64
# Header of /health while the server drains: how many requests still run.
RUNNING = "x-requests-running"
# Seconds after which a client may come back to a server that drains; another one can be asked at once.
RETRY_AFTER = "10"
# Paths of health and metrics. They need no API key, as with upstream.
OPEN = ("/health", "/ping", "/metrics", "/version")
# What compiles guides: one that the others cannot compile ends the engine.
GUIDES = "guidance"
MEBIBYTE = 1 << 20
# A body of up to so many times the limit is read and discarded before the connection ends.
PATIENCE = 8
# Calls of vLLM's handler of completions that make an answer, and assert that the request has a length.
ANSWERS = ("request_output_to_completion_response", "completion_stream_generator")
# Seconds within which a body must arrive.
ARRIVAL = 60

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class AdmissionMiddleware:
    """ASGI middleware; a port's own is a subclass that knows more of the model."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app
        self.key = key_of(os.environ)
        self.limit = int(envs.number(os.environ, "VLLM_SERVING_BODY") * MEBIBYTE)
        self.draining = Path(os.environ.get("RUNTIME_DIRECTORY", "/nonexistent")) / DRAINING
        self.quarantine = envs.quarantine_file(os.environ)
        self.running = 0
        self.closed: tuple[str, ...] = ()
        # vLLM's client of the engine, from the start on.
        self.engine: Any = None
        self.limits = Limits(sequences=int(envs.number(os.environ, "VLLM_SERVING_SEQUENCES")))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.open(scope)
        elif scope["type"] == "websocket":
            # Nothing of the key or of the limits would be looked at.
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # If a name comes twice, the first one counts, as for vLLM.
        found = reversed(scope["headers"])
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in found}
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        try:
            self.admit(path, scope["method"], headers)
            if path in OPEN:
                await self.app(scope, receive, send)
                return
        except Rejected as rejected:
            await answer(send, rejected)
            return
        self.running += 1
        try:
            if scope["method"] == "POST":
                receive, body = await self.read(headers, receive)
                scope = with_own_id(scope, headers.get(REQUEST_ID) or body.get("request_id"))
            await self.app(scope, receive, send)
        except Rejected as rejected:
            await answer(send, rejected)
        except Exception as error:
            if not from_validation(error):
                raise
            await answer(send, Rejected(400, "A field of the body is not of the kind that it must be."))
        finally:
            self.running -= 1

    async def open(self, scope: Message) -> None:
        """Learn the model's limits, or end the process: with status 78 if the configuration must be corrected."""
        try:
            for address in unused_sockets():
                refuse_open_server(address, self.key, os.environ)
            if "app" in scope:
                table = table_of(metadata.version("vllm"))
                self.closed = table.CLOSED_PATHS
                self.engine = scope["app"].state.engine_client
                self.limits = replace(self.limits, ignored=table.IGNORED_FIELDS)
                self.limits = await self.learn(scope["app"].state)
                if handler := getattr(scope["app"].state, "openai_serving_completion", None):
                    for call in filter(partial(hasattr, handler), ANSWERS):
                        setattr(handler, call, with_length(getattr(handler, call), self.limits.length))
        except Exception as error:
            known = isinstance(error, ConfigError)
            print(f"ERROR {error}" if known else traceback.format_exc(), flush=True)
            # uvicorn ignores every exception of this task, SystemExit included.
            asyncio.get_running_loop().call_soon(sys.exit, CONFIGURATION if known else 1)
            await asyncio.Event().wait()

    async def learn(self, state: Any) -> Limits:
        """Return the limits, with those of the model. Raises ConfigError. state: of vLLM's application."""
        found = state.vllm_config.structured_outputs_config.backend
        if found != GUIDES:
            raise ConfigError(f"structured-outputs-config: found the backend {found}; expected {GUIDES}: a guide that "
                              "another one cannot compile ends the engine. Leave the option out.")
        tokenizer = await state.engine_client.get_tokenizer()
        return replace(self.limits.of_model(state.vllm_config.model_config, tokenizer),
                       normalize=normalizer_of(tokenizer))

    def admit(self, path: str, method: str, headers: dict[str, str]) -> None:
        """Raise Rejected for a request without the key, or one that came too late or too early."""
        # A browser sends OPTIONS without a key before its request.
        if self.key and path not in OPEN and method != "OPTIONS":
            brought = headers.get("authorization", "").encode()
            if not hmac.compare_digest(brought, f"Bearer {self.key}".encode()):
                raise Rejected(401, "The key is missing or wrong.", **{"www-authenticate": "Bearer"})
        if path in self.closed:
            raise Rejected(404, "Not found: the server keeps this path closed.")
        if path in ("/metrics", "/version"):
            return
        if self.draining.exists():
            running = {RUNNING: str(self.running)} if path in OPEN else {}
            raise Rejected(503, "The server is being stopped. Ask again.", **{"retry-after": RETRY_AFTER}, **running)
        # vLLM would answer 500, after which nobody asks another server.
        if path not in OPEN and self.engine is not None and self.engine.errored:
            raise Rejected(503, "The engine has ended, and the server starts again. Ask again.",
                           **{"retry-after": RETRY_AFTER})
        token = quarantine_token(self.quarantine)
        if token and not hmac.compare_digest(headers.get(QUARANTINE_HEADER, "").encode(), token.encode()):
            raise Rejected(503, "The server takes requests once its answers were looked at. Ask again.",
                           **{"retry-after": RETRY_AFTER})

    async def read(self, headers: dict[str, str], receive: Receive) -> tuple[Receive, dict[str, Any]]:
        """Read the body up to the limit. Returns a `receive` that gives it once more, and its JSON. Raises Rejected."""
        too_large = Rejected(413, f"The body is larger than {self.limit} bytes.", connection="close")
        length = headers.get("content-length", "0")
        # A client that sends Expect gets the answer at once; others read it only after they have sent the body.
        if "expect" in headers and length.isdecimal() and int(length) > self.limit:
            raise too_large
        content, size, more = bytearray(), 0, True
        end = asyncio.get_running_loop().time() + ARRIVAL
        while more and size <= PATIENCE * self.limit:
            try:
                message = await asyncio.wait_for(receive(), end - asyncio.get_running_loop().time())
            except asyncio.TimeoutError:
                raise Rejected(408, f"The body did not arrive within {ARRIVAL} s.", connection="close") from None
            if message["type"] == "http.disconnect":
                break
            part = message.get("body", b"")
            size += len(part)
            if size <= self.limit:
                content += part
            more = message.get("more_body", False)
        if size > self.limit:
            raise too_large
        body: dict[str, Any] = {}
        if headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
            body = parse(bytes(content))
            self.limits.check(body)
        parts = [{"type": "http.request", "body": bytes(content), "more_body": False}]

        async def again() -> Message:
            return parts.pop() if parts else await receive()

        return again, body


def with_own_id(scope: Message, given: Any) -> Message:
    """Return a request whose id nobody else has. given: the client's own, which it begins with.

    vLLM refuses a request with the id of one that still runs, be it another client's.
    """
    if not given or not isinstance(given, str):
        return scope
    name = f"{re.sub('[^!-~]+', '_', given)[:LONGEST_ID]}-{secrets.token_hex(8)}"
    others = [header for header in scope["headers"] if header[0].lower() != REQUEST_ID.encode()]
    return {**scope, "headers": [*others, (REQUEST_ID.encode(), name.encode())]}


def with_length(call: Callable[..., Any], length: int) -> Callable[..., Any]:
    """Wrap a call so that a request without `max_tokens` has one, once the engine has its parameters.

    Upstream answers "max_tokens": null with 500 after all tokens were made.
    """

    @wraps(call)
    def called(*arguments: Any, **options: Any) -> Any:
        for request in (*arguments, *options.values()):
            if getattr(request, "max_tokens", length) is None:
                request.max_tokens = length
        return call(*arguments, **options)

    return called


def unused_sockets() -> Iterator[str]:
    """Yield the addresses of this process's TCP sockets that are bound and neither listen nor are connected yet.

    vLLM binds its port long before it listens there.
    """
    for number in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
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


def quarantine_token(quarantine: Path) -> str:
    """Return the quarantine token, or "" if the server is not quarantined."""
    try:
        return quarantine.read_text().strip()
    except FileNotFoundError:
        return ""


def from_validation(error: BaseException) -> bool:
    """Return whether an error comes from reading the fields of a body, before anything is answered.

    Upstream compares some fields before it checks their types, and reads those of /invocations outside of FastAPI.
    """
    places = {(frame.f_globals.get("__name__"), frame.f_code.co_name)
              for frame, _ in traceback.walk_tb(error.__traceback__)}
    return ("pydantic.main", "model_validate") in places or any(
        module == "fastapi.dependencies.utils" for module, _ in places)


async def answer(send: Send, rejected: Rejected) -> None:
    """Send an error in the form of vLLM's own."""
    content = json.dumps({"object": "error", "message": str(rejected), "type": "BadRequestError", "param": None,
                          "code": rejected.status}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), **rejected.headers}
    await send({"type": "http.response.start", "status": rejected.status,
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()]})
    await send({"type": "http.response.body", "body": content})
