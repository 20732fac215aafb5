"""Answers that come token by token."""

import asyncio
import json
import re
import signal
import time
from itertools import pairwise

import pytest
from balancer_rig import KEYS, tokens
from rendered import render

STREAMS, TOKENS = 200, 40


def request(prompt, **more):
    body = json.dumps({"prompt": prompt, "stream": True, **more}).encode()
    return (
        f"POST /v1/completions HTTP/1.1\r\nHost: balancer\r\nAuthorization: Bearer {KEYS['alice']}\r\n"
        f"X-Session-ID: {prompt[:50]}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body


async def stream(port, prompt, **more):
    """Tokens of an answer and when each came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(prompt, **more))
    found = []
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    async for line in reader:
        if line.startswith(b"data: "):
            found.append((line[6:].decode().strip(), time.monotonic()))
    writer.close()
    return found


def test_a_token_arrives_when_it_is_made(balancer, well):
    running = balancer()
    found = asyncio.run(stream(running.port, "slow", max_tokens=6, pace=0.2))
    assert [token for token, _ in found] == tokens("slow", 6)
    gaps = [after - before for (_, before), (_, after) in pairwise(found)]
    assert all(gap > 0.1 for gap in gaps), gaps


def test_an_answer_that_nobody_reads_is_not_piled_up(balancer, well):
    """Neither in memory nor, as nginx does with what it buffers, in a file."""
    running = balancer()

    async def wait():
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(request("long" * 20000, max_tokens=2000))
        await asyncio.sleep(2)
        writer.close()

    asyncio.run(wait())
    sent = sum(server.sent for server in well)
    assert 0 < sent < 1000, sent


def test_many_streams_at_once_and_none_mixed_up(balancer, well):
    running = balancer()

    async def everybody():
        prompts = [f"stream-{index}" for index in range(STREAMS)]
        done = await asyncio.gather(*(stream(running.port, name, max_tokens=TOKENS, pace=0.05) for name in prompts))
        for prompt, found in zip(prompts, done, strict=True):
            assert [token for token, _ in found] == tokens(prompt, TOKENS)
        # All of them ran at the same time.
        assert max(found[0][1] for found in done) < min(found[-1][1] for found in done)

    asyncio.run(everybody())
    assert sum(len(server.completions) for server in well) == STREAMS


@pytest.mark.parametrize("action", ["reload", "stop"])
def test_reload_and_stop_end_no_stream(balancer, well, action):
    """By the signal that the unit sends."""
    asked, running = signal.SIGHUP, balancer()
    if action == "stop":
        said = re.search("^KillSignal=(.+)$", render("load_balancer", "kepler-balancer.service.j2"), re.MULTILINE)
        asked = signal.Signals[said[1] if said else "SIGTERM"]

    async def through():
        names = [f"s{index}" for index in range(8)]
        streams = [asyncio.create_task(stream(running.port, name, max_tokens=20, pace=0.1)) for name in names]
        await asyncio.sleep(0.5)
        running.process.send_signal(asked)
        for name, task in zip(names, streams, strict=True):
            assert [token for token, _ in await task] == tokens(name, 20)

    asyncio.run(through())
    if action == "reload":
        assert running.ask()[0] == 200
    else:
        assert running.process.wait(5) == 0


def test_a_client_that_leaves_ends_its_request(balancer, well):
    running = balancer()

    async def leave():
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(request("left", max_tokens=200, pace=0.02))
        await asyncio.sleep(0.3)
        writer.close()

    asyncio.run(leave())
    deadline = time.monotonic() + 3
    while not sum(server.aborted for server in well) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sum(server.aborted for server in well) == 1
