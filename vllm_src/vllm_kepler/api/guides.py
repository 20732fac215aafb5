"""Check of a guide by the compiler, in a process of its own, before its request is queued."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import OrderedDict
from hashlib import sha256
from typing import Any

from vllm_serving.errors import Rejected

# Answers of the compiler that are kept, and characters of a grammar up to which they are: most clients send the same
# guide with every request.
KEPT, KEPT_CHARACTERS = 256, 1 << 16
# Seconds and bytes for the guides of one request: each of its sequences has a compiled one.
SECONDS, MEMORY = 4.0, 1 << 30


class Guides:
    """The compiler's process, started with the first guide.

    tokenizer: the model's, as the tokenizers library writes it; None if that cannot read it.
    """

    def __init__(self, tokenizer: str | None, eos: int | None) -> None:
        self.first = {"tokenizer": tokenizer, "eos": eos}
        self.process: asyncio.subprocess.Process | None = None
        self.turn = asyncio.Lock()
        self.kept: OrderedDict[bytes, asyncio.Future[dict[str, Any]]] = OrderedDict()

    async def check(self, guide: dict[str, str], sequences: int) -> str | None:
        """Return a grammar's text in the form that the engine reads at once. Raise Rejected for a guide it cannot take.

        guide: as guide_compiler.compile_guide takes it.
        """
        if self.first["tokenizer"] is None:
            raise Rejected(400, "The guide cannot be used: the compiler cannot read the model's tokenizer.")
        line = json.dumps(guide).encode()
        # A client that leaves must not leave half an exchange.
        found = await asyncio.shield(self.compiled(line))
        if found["error"]:
            raise Rejected(400, f"The guide cannot be compiled: {found['error']}.")
        seconds, size = found["seconds"], found["bytes"]
        if sequences * seconds > SECONDS or sequences * size > MEMORY:
            raise Rejected(400, f"The guide takes {seconds:.2f} s and {size >> 20} MiB for each of the {sequences} "
                                f"sequences; the server takes {SECONDS:.0f} s and {MEMORY >> 20} MiB for all.")
        return found["text"]

    def compiled(self, line: bytes) -> asyncio.Future[dict[str, Any]]:
        """Return the compiler's answer to come, which requests with the same guide share."""
        key = sha256(line).digest()

        def keep(answer: asyncio.Future[dict[str, Any]]) -> None:
            if answer.cancelled() or answer.exception() or len(answer.result().get("text") or "") > KEPT_CHARACTERS:
                self.kept.pop(key, None)

        if key not in self.kept:
            self.kept[key] = asyncio.ensure_future(self.ask(line))
            self.kept[key].add_done_callback(keep)
        self.kept.move_to_end(key)
        while len(self.kept) > KEPT:
            self.kept.popitem(last=False)
        return self.kept[key]

    async def ask(self, line: bytes) -> dict[str, Any]:
        """Return the compiler's answer. Raise Rejected if it gives none."""
        async with self.turn:
            try:
                if self.process is None:
                    self.process = await asyncio.create_subprocess_exec(
                        sys.executable, "-m", "vllm_kepler.api.guide_compiler", stdin=asyncio.subprocess.PIPE,
                        stdout=asyncio.subprocess.PIPE, limit=1 << 26)
                    line = json.dumps(self.first).encode() + b"\n" + line
                assert self.process.stdin and self.process.stdout
                self.process.stdin.write(line + b"\n")
                await self.process.stdin.drain()
                return json.loads(await self.process.stdout.readline())
            except (OSError, ValueError):
                if self.process is not None and self.process.returncode is None:
                    self.process.kill()
                self.process = None
                raise Rejected(503, "The guides' compiler does not answer. Ask again.") from None
