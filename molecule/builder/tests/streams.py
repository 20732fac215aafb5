"""Clients of the balancer: as many streams at a time as asked for, each compared with its reference."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from dataclasses import dataclass, field

import httpx2
import openai

# What the fleet serves.
MODEL = "license"
TOKENS = 32
# A server that restarts is away for half a minute; its client comes back as the answer's Retry-After says.
RETRIES = 20


@dataclass
class Tally:
    """What became of the streams.

    Attributes:
        answered: how many ended with what the reference says.
        wrong: (reference, answer) of those that ended with something else.
        failed: errors of those that did not end.
        seconds: longest times to the first token and between two.
    """

    answered: int = 0
    wrong: list[tuple[str, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0


@dataclass(frozen=True)
class Address:
    """How the balancer is reached.

    Attributes:
        url: with /v1.
        key: of the client.
        certificate: the balancer's own, in PEM.
    """

    url: str
    key: str
    certificate: str

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.certificate)

    def client(self) -> openai.OpenAI:
        """A client that trusts this certificate alone and asks once."""
        http = httpx2.Client(verify=self.trust(), trust_env=False)
        return openai.OpenAI(base_url=self.url, api_key=self.key, http_client=http, max_retries=0)


def ask(api: openai.OpenAI, prompt: str, session: str | None = None) -> openai.types.Completion:
    """The greedy answer to one prompt."""
    headers = {"X-Session-ID": session} if session else None
    return api.completions.create(
        model=MODEL, prompt=prompt, max_tokens=TOKENS, temperature=0, extra_headers=headers
    )


class Streams:
    """`count` clients that ask for one stream after the other, `pause` s between two, from `with` to its end."""

    def __init__(self, address: Address, references: dict[str, str], count: int, pause: float = 0) -> None:
        self.address, self.references, self.count, self.pause = address, references, count, pause
        self.tally = Tally()
        self.over = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.run()))

    def __enter__(self) -> Tally:
        self.thread.start()
        return self.tally

    def __exit__(self, *exception: object) -> None:
        """Let the running streams end."""
        self.over.set()
        self.thread.join()

    async def run(self) -> None:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(verify=self.address.trust(), trust_env=False, limits=limits, timeout=600) as http:
            api = openai.AsyncOpenAI(
                base_url=self.address.url, api_key=self.address.key, http_client=http, max_retries=RETRIES
            )
            await asyncio.gather(*(self.client(api, number) for number in range(self.count)))

    async def client(self, api: openai.AsyncOpenAI, number: int) -> None:
        prompts, session = list(self.references), f"client-{number}"
        while not self.over.is_set():
            await asyncio.sleep(self.pause)
            prompt = prompts[number % len(prompts)]
            number += 1
            try:
                text = await self.stream(api, prompt, session)
            except openai.OpenAIError as error:
                self.tally.failed.append(f"{type(error).__name__}: {error}")
            except httpx2.HTTPError as error:
                self.tally.failed.append(f"broke off: {type(error).__name__}: {error}")
            else:
                if text == self.references[prompt]:
                    self.tally.answered += 1
                else:
                    self.tally.wrong.append((self.references[prompt], text))

    async def stream(self, api: openai.AsyncOpenAI, prompt: str, session: str) -> str:
        """The text of one streamed answer. Raises openai.OpenAIError and httpx2.HTTPError."""
        before, text, end = time.monotonic(), "", None
        parts = await api.completions.create(
            model=MODEL, prompt=prompt, max_tokens=TOKENS, temperature=0, stream=True,
            extra_headers={"X-Session-ID": session},
        )
        async for part in parts:
            now = time.monotonic()
            self.tally.seconds, before = max(self.tally.seconds, now - before), now
            text += part.choices[0].text
            end = part.choices[0].finish_reason or end
        if end is None:
            raise httpx2.RemoteProtocolError("the stream ended without a reason")
        return text
