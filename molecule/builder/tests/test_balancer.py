"""The balancer before two servers: real nginx, real vLLM, the real `openai` client.

Environment: STANDIN_STREAM_SECONDS, STANDIN_UPGRADES, STANDIN_ROLLBACKS and STANDIN_CLIENTS make the tests under load
longer and harder. Upgrades take minutes each and run with STANDIN_LONG=1, or where a number of them is asked for.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import random
import re
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest
from conftest import play
from generations import LINE, NAN, active, changed_port
from license import LICENSE, PROMPTS, follows
from standin.settings import BUILDER, LONG
from streams import TOKENS, Address, Streams, ask
from waiting import until

# Few clients during an upgrade: the play needs the machine's cores too.
SECONDS, UPGRADES, ROLLBACKS, CLIENTS = (
    int(os.environ.get(f"STANDIN_{name}", default))
    for name, default in (("STREAM_SECONDS", 20), ("UPGRADES", int(LONG)), ("ROLLBACKS", int(LONG)), ("CLIENTS", 3))
)
STARTED = time.time()
SERVERS = ("k80-first", "k80-second")
BASE = f"https://127.0.0.1:{BUILDER.port}"


@pytest.fixture(scope="module")
def address(fleet) -> Address:
    balancer = fleet["k80-builder"]
    key = balancer.check_output("cut -d' ' -f2 /etc/kepler-standin/clients")
    return Address(f"{BASE}/v1", key, balancer.check_output("cat /etc/kepler-standin/certificate.pem"))


@pytest.fixture(scope="module")
def api(address) -> openai.OpenAI:
    return address.client()


@pytest.fixture(scope="module")
def references(api) -> dict[str, str]:
    """What each prompt is answered when nothing else is asked; the license, as the model has learned it."""
    answers = {prompt: ask(api, prompt).choices[0].text for prompt in PROMPTS}
    for prompt, text in answers.items():
        assert follows(prompt, text), text
    return answers


def upgrade(port: Path) -> tuple[int, str]:
    """Move host after host to a generation with this port: (exit status, what the playbook printed)."""
    return play("playbooks/upgrade.yml", "-e", f"__vllm_port={port}")


def get(path: str, address: Address, key: str | None = None) -> tuple[int, str]:
    """Status and body of a GET."""
    request = urllib.request.Request(BASE + path, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=60, context=address.trust()) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def is_well(server: str, address: Address) -> bool:
    return get(f"/health/{server}/main", address)[0] == 200


def wait_until_well(address: Address) -> None:
    until(lambda: all(is_well(server, address) for server in SERVERS), "a server does not come back", seconds=300)


def test_only_who_has_a_key_is_answered(fleet, address):
    of_the_servers = fleet["k80-builder"].check_output("cut -d= -f2 /etc/kepler-standin/api-key.env")
    for key in (None, "wrong", of_the_servers):
        assert get("/v1/models", address, key)[0] == 401
    assert get("/v1/models", address, address.key)[0] == 200
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(BASE + "/health", timeout=60, context=ssl.create_default_context())


def test_neither_keys_nor_prompts_are_in_a_log(fleet, address, api):
    ask(api, "a-prompt-that-nobody-else-has")
    for host in fleet.values():
        log = host.check_output("journalctl --no-pager")
        assert address.key not in log
        assert "a-prompt-that-nobody-else-has" not in log
    assert " alice POST /v1/completions 200 " in fleet["k80-builder"].check_output(
        "journalctl --no-pager --identifier kepler_balancer"
    )


def servers_asked(balancer) -> list[str]:
    """Address of the server that answered, for each completion that the balancer has handed on."""
    log = balancer.check_output("journalctl --no-pager --output cat --identifier kepler_balancer")
    return re.findall(r" POST /v1/completions 200 .*? \[([\d.:]+)\]", log)


def test_a_session_stays_on_one_server(fleet, api):
    """And the sessions are spread over both."""
    before, sessions, turns = len(servers_asked(fleet["k80-builder"])), 12, 3
    for session in range(sessions):
        for turn in range(turns):
            ask(api, " ".join(LICENSE.split()[: 20 + 10 * turn]), f"conversation-{session}")
    asked = until(
        lambda: servers_asked(fleet["k80-builder"])[before:], "not in the balancer's log",
        lambda asked: len(asked) >= sessions * turns, seconds=60,
    )
    used = [set(asked[turns * session : turns * (session + 1)]) for session in range(sessions)]
    assert all(len(servers) == 1 for servers in used), used
    assert len(set.union(*used)) == 2


def cached(fleet) -> tuple[float, float]:
    """Prompt tokens that the servers found in their prefix cache since they started, and all their prompt tokens."""
    found, asked = 0.0, 0.0
    since = {server: fleet[server].check_output("date +%s").strip() for server in SERVERS}
    for server, start in since.items():
        log = f"journalctl --unit vllm@main --since @{start} --output cat"
        rates = until(
            lambda host=fleet[server], log=log: re.findall(r"hit rate: .*CPU: ([\d.]+)%", host.check_output(log)),
            "the server says nothing of its prefix cache", seconds=60,
        )
        metrics = fleet[server].check_output("curl --silent --fail http://127.0.0.1:8000/metrics")
        tokens = float(re.findall(r"^vllm:prompt_tokens_total{.*} (.*)$", metrics, re.MULTILINE)[0])
        found, asked = found + float(rates[-1]) / 100 * tokens, asked + tokens
    return found, asked


def converse(api: openai.OpenAI, names: list[str | None]) -> None:
    """A new conversation of five turns for each name of a session, all at a time; None: without one."""
    texts = [random.sample(LICENSE.split(), 150) for _ in names]
    with concurrent.futures.ThreadPoolExecutor(len(names)) as clients:
        for words in range(30, 151, 30):
            prompts = [" ".join(text[:words]) for text in texts]
            list(clients.map(lambda prompt, name: ask(api, prompt, name), prompts, names))


def test_conversations_find_their_prefix_again(fleet, api):
    """By X-Session-ID a turn meets the server that has the turns before in its cache; else often the other one."""
    # An odd number: else requests that are dealt out in turns would find their server again by themselves.
    names = [f"talk-{number}" for number in range(9)]
    sums = [cached(fleet)]
    for sessions in ([None] * len(names), names):
        converse(api, sessions)
        sums.append(cached(fleet))
    scattered, together = (
        (found - found_before) / (asked - asked_before)
        for (found_before, asked_before), (found, asked) in itertools.pairwise(sums)
    )
    print(f"prefix cache: {scattered:.1%} of the prompts without sessions, {together:.1%} with")
    assert together > scattered


def test_200_streams(fleet, address, references):
    """None lost, none mixed up, and no process that grows."""

    def memory() -> list[int]:
        units = [("k80-builder", "kepler-balancer"), *((server, "vllm@main") for server in SERVERS)]
        command = "ps -e -o unit=,rss= | awk '$1 == \"{}.service\" {{ kib += $2 }} END {{ print kib }}'"
        return [int(fleet[server].check_output(command.format(unit))) for server, unit in units]

    with Streams(address, references, 200) as tally:
        time.sleep(SECONDS / 2)
        half = memory()
        time.sleep(SECONDS / 2)
        full = memory()
    print(f"{tally.answered} streams of {TOKENS} tokens, longest silence {tally.seconds:.1f} s, KiB {half} {full}")
    assert not tally.wrong
    assert not tally.failed
    assert tally.answered >= 200
    for before, after in zip(half, full, strict=True):
        assert after < 1.1 * before + (16 << 10)


def test_a_server_that_is_killed(fleet, address, references):
    """At most the requests that it had are lost; the health says what is; it comes back."""
    clients = 8
    with Streams(address, references, clients) as tally:
        while tally.answered < clients:
            time.sleep(0.2)
        fleet["k80-first"].check_output("systemctl kill --signal KILL --kill-who all vllm@main")
        assert not is_well("k80-first", address)
        assert is_well("k80-second", address)
        assert get("/health", address)[0] == 200
        answered = tally.answered
        while tally.answered < answered + 2 * clients:
            time.sleep(0.2)
        wait_until_well(address)
    assert not tally.wrong
    assert len(tally.failed) <= clients


@pytest.mark.parametrize("number", range(UPGRADES))
def test_an_upgrade_that_nobody_notices(fleet, address, references, tmp_path, number):
    """Host after host moves to a new generation while clients stream."""
    before = {server: active(fleet[server]) for server in SERVERS}
    # Two take turns: after the first two runs nothing is left to build.
    port = changed_port(tmp_path, f"{LINE}    # Number {number % 2} of {STARTED:.0f}.\n")
    with Streams(address, references, CLIENTS, pause=1) as tally:
        status, printed = upgrade(port)
    print(f"{tally.answered} streams, longest silence {tally.seconds:.1f} s")
    assert status == 0, printed[-3000:]
    assert all(active(fleet[server]) > before[server] for server in SERVERS)
    assert not tally.wrong
    assert not tally.failed
    assert tally.answered


@pytest.mark.parametrize("number", range(ROLLBACKS))
def test_a_bad_generation_that_nobody_notices(fleet, address, references, tmp_path, number):
    """It answers nothing but NaN, so no client is ever answered by it; the host after it keeps what it has."""
    before = {server: active(fleet[server]) for server in SERVERS}
    port = changed_port(tmp_path, NAN)
    with Streams(address, references, CLIENTS, pause=1) as tally:
        status, printed = upgrade(port)
    print(f"{tally.answered} streams, longest silence {tally.seconds:.1f} s")
    assert status != 0
    assert "which answers. The hosts after it were not touched" in printed, printed[-3000:]
    assert {server: active(fleet[server]) for server in SERVERS} == before
    wait_until_well(address)
    assert not tally.wrong
    assert not tally.failed
    assert tally.answered
