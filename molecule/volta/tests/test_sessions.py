"""inventory/examples/volta/sessions.yml: two servers behind nginx, asked as programs of the host ask them."""

from __future__ import annotations

import re
import secrets

import pytest
from conftest import BALANCER
from license import LICENSE

SERVERS = {"8000": "gpu0", "8001": "gpu1"}
# Tokens of a block of the prefix cache.
BLOCK = 128


def cached(v100) -> dict[str, float]:
    """Tokens of prompts that each server has found in its prefix cache, by its port."""
    found = {}
    for port, name in SERVERS.items():
        text = v100.check_output(f"curl --silent --fail {BALANCER}/metrics/v100-standin/{name}")
        found[port] = sum(float(value) for value in re.findall(r"^vllm:prefix_cache_hits_total{.*} (\S+)$", text, re.M))
    return found


def test_a_session_stays_and_sessions_use_both_servers(ask):
    before, sessions, turns = len(ask.served_by()), 10, 2
    for session in range(sessions):
        for _ in range(turns):
            ask.text(BALANCER, f"session-{session}", prompt="You may reproduce")
    served = ask.served_by()[before:]
    used = [set(served[turns * session : turns * (session + 1)]) for session in range(sessions)]
    assert [len(servers) for servers in used] == [1] * sessions, used
    assert set.union(*used) == set(SERVERS)


def test_second_request_of_a_session_hits_the_prefix_cache(v100, ask):
    """On the server of the session, and on no other."""
    prompt = secrets.token_hex(8) + LICENSE[700:2200]
    before = cached(v100)
    ask.text(BALANCER, "with a cache", prompt=prompt, max_tokens=1)
    between = cached(v100)
    (port,) = {ask.served_by()[-1]}
    _, answer = ask(BALANCER, "with a cache", prompt=f"{prompt} for", max_tokens=1)
    after = cached(v100)
    assert between == before
    assert ask.served_by()[-1] == port
    assert after[port] - before[port] >= answer["usage"]["prompt_tokens"] - 2 * BLOCK > 0
    assert {**after, port: 0} == {**before, port: 0}


def test_decision_is_one_of_its_choices(ask):
    """In the form of each engine; that of the other one is refused, which vLLM would ignore."""
    choices, port = ["yes", "no"], "http://127.0.0.1:8002"
    given = {"prompt": "Unless required by", "max_tokens": 8}
    assert ask.text(BALANCER, "decides", structured_outputs={"choice": choices}, **given) in choices
    assert ask.text(port, model="port", guided_choice=choices, **given) in choices
    for url, fields in (
        (BALANCER, {"guided_choice": choices}), (port, {"model": "port", "structured_outputs": {"choice": choices}}),
    ):
        status, answer = ask(url, "decides", **given, **fields)
        assert (status, "would ignore it" in str(answer)) == (400, True), answer


@pytest.mark.parametrize("body", [
    {"prompt": [1, -5]}, {"prompt": "a", "stop_token_ids": [10**9], "min_tokens": 1},
    {"prompt": "a", "structured_outputs": {"regex": r"\p{L}+"}}, {"prompt": "a", "kv_transfer_params": {"a": 1}},
    # vLLM makes all tokens, then asserts that there is a number.
    {"prompt": "a", "max_tokens": None, "stop": ["e", "a", "\n"]},
])  # fmt: skip
def test_no_request_ends_the_engine(ask, v100, body):
    before = v100.check_output("pgrep --full --exact 'VLLM::EngineCore.*'")
    assert ask(BALANCER, "ends engines", **body)[0] in (200, 400)
    assert ask(BALANCER, "ends engines", prompt="a")[0] == 200
    assert v100.check_output("pgrep --full --exact 'VLLM::EngineCore.*'") == before
