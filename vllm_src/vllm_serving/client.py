"""Ask the server: a small HTTP client, the probe that proves life, sums of metrics."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from dataclasses import dataclass
from typing import Any

from .admission import QUARANTINE_HEADER, quarantine_token
from .instance import Instance

# Marks the supervisor's probes in the server's access log. Random: no client can hide its requests behind it.
PROBE_MARK = f"?probe-{secrets.token_hex(8)}"
# Asks for one token. Without a model's name: any that is served answers.
PROBE = {"prompt": "1", "max_tokens": 1, "temperature": 0}


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; the names of its headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: str


async def ask(instance: Instance, path: str, body: Any = None, timeout: float = 10) -> Answer | None:
    """Return the answer to GET, or to POST if there is a body; None if there is none within `timeout` seconds."""
    # Not wait_for: until Python 3.12 it loses a cancellation that meets the answer.
    asking = asyncio.ensure_future(exchange(instance, path, body))
    try:
        done, _ = await asyncio.wait({asking}, timeout=timeout)
        return asking.result() if done else None
    except (OSError, ValueError):
        return None
    finally:
        asking.cancel()


async def refuses(instance: Instance) -> bool:
    """Return whether nothing listens on the server's port."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(instance.address, instance.port), 5)
        writer.close()
    except ConnectionRefusedError:
        return True
    except (OSError, asyncio.TimeoutError):
        return False
    return False


async def exchange(instance: Instance, path: str, body: Any) -> Answer:
    """Send one request in HTTP/1.0: the answer ends with the connection. Raises OSError, ValueError."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{'GET' if body is None else 'POST'} {path}{PROBE_MARK} HTTP/1.0", f"Host: {instance.address}"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    if instance.key:
        lines.append(f"Authorization: Bearer {instance.key}")
    if token := quarantine_token(instance.quarantine):
        lines.append(f"{QUARANTINE_HEADER}: {token}")
    reader, writer = await asyncio.open_connection(instance.address, instance.port)
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        received = await reader.read()
    finally:
        writer.close()
    head, _, text = received.decode("utf-8", "replace").partition("\r\n\r\n")
    first, *rest = head.split("\r\n")
    protocol, status, *_ = (first + "  ").split(" ")
    if not protocol.startswith("HTTP/1."):
        raise ValueError(f"no HTTP: {first[:80]!r}")
    headers = (line.partition(":") for line in rest)
    return Answer(int(status), {name.lower(): value.strip() for name, _, value in headers}, text)


def has_token(answer: Answer | None) -> bool:
    """Return whether an answer to PROBE has a token of the model."""
    try:
        return answer is not None and answer.status == 200 and "text" in json.loads(answer.body)["choices"][0]
    except (ValueError, LookupError, TypeError):
        return False


def total(metrics: str, *names: str) -> float:
    """Return the sum of the samples of these metrics in the text format of Prometheus. Raises ValueError."""
    return sum(map(float, re.findall(rf"^(?:{'|'.join(names)})(?:{{.*}})? (\S+)$", metrics, re.MULTILINE)))
