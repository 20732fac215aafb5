"""A host whose generation and layout change: a released vLLM over two ranks beside a server of the port.

The tests follow one another: a generation that computes NaN goes back by itself to the one that was deployed, one that
answers stays until the rollback, and in the end a rank is killed and the server stopped. What takes minutes runs with
STANDIN_LONG=1.
"""

from __future__ import annotations

import pytest
from conftest import PROJECT
from generations import LINE, NAN, VLLM_LINE, VLLM_NAN, active, changed_port, changed_vllm, outputs
from license import PROMPTS, follows
from several_hosts import BEFORE_THE_BUILD, left_behind
from standin.settings import LONG, VOLTA
from standin.testing import player
from units import Unit

LAYOUT = '{"vllm_service_instances": "{{ standin_later }}"}'
# The server of one rank that the first layout has, and those of the later one.
ONE, MAIN, PORT = (f"http://127.0.0.1:{port}" for port in (8001, 8000, 8002))
minutes = pytest.mark.skipif(not LONG, reason="takes minutes: STANDIN_LONG=1 runs it")


@pytest.fixture(scope="module")
def upgrade():
    """Function that upgrades to profiles and a port: (exit status, what it printed)."""
    play = player(VOLTA, "volta")

    def upgrade(profiles=None, port=PROJECT / "vllm_src"):
        with pytest.MonkeyPatch.context() as patch:
            if profiles:
                patch.setenv("KEPLER_PROFILES_DIR", str(profiles))
            # The scenario `upgrade_rollback` runs what comes before.
            skipped = ["--skip-tags", f"preflight,{BEFORE_THE_BUILD}"]
            return play("playbooks/upgrade.yml", "-e", LAYOUT, "-e", f"__vllm_port={port}", *skipped)

    return upgrade


def ids(ask, url, **body):
    """Greedy ids of answers that go on as the license does."""
    found = []
    for prompt in PROMPTS[:3]:
        status, answer = ask(url, prompt=prompt, max_tokens=24, logprobs=0, return_tokens_as_token_ids=True, **body)
        assert status == 200, answer
        (choice,) = answer["choices"]
        assert follows(prompt, choice["text"]), choice["text"]
        found.append(choice["logprobs"]["tokens"])
    return found


@pytest.fixture(scope="module")
def before(v100, ask):
    """The generation that was deployed, and what a server with one rank answers."""
    return active(v100), ids(ask, ONE)


@pytest.fixture
def serves(ask, before):
    """Function that fails unless the servers of both engines answer as one rank did."""
    def serves():
        assert ids(ask, MAIN) == before[1]
        assert ids(ask, PORT, model="port") == before[1]

    return serves


def test_a_generation_of_nan_goes_back_by_itself(v100, before, upgrade, serves):
    """The released vLLM of another lock, in whose place the earlier one serves the new layout."""
    status, printed = upgrade(changed_vllm("volta-nan", VLLM_NAN))
    assert status != 0
    assert f"this host is back on generation {before[0]}, which answers" in printed, printed[-3000:]
    assert "vllm@main: asked to go on from" in printed
    assert active(v100) == before[0]
    failed, kept = outputs(v100, before[0] + 1), outputs(v100, before[0])
    assert {name for name in kept if failed[name] != kept[name]} == {"vllm", "serving"}
    serves()


@minutes
def test_nan_of_the_port_goes_back_by_itself(v100, before, upgrade, serves, tmp_path):
    status, printed = upgrade(port=changed_port(tmp_path, NAN))
    assert status != 0
    assert f"this host is back on generation {before[0]}, which answers" in printed, printed[-3000:]
    assert "vllm@port: asked to go on from" in printed
    assert active(v100) == before[0]
    serves()


@minutes
def test_an_upgrade_of_both_engines_and_a_rollback(v100, before, upgrade, serves, tmp_path):
    profiles = changed_vllm("volta-later", f"        # Another build.\n{VLLM_LINE}")
    port = changed_port(tmp_path, LINE + "    # Another generation.\n")
    status, printed = upgrade(profiles, port)
    assert status == 0, printed[-3000:]
    later, kept = outputs(v100, active(v100)), outputs(v100, before[0])
    changed = {name for name in kept if later[name] != kept[name]}
    assert changed == {"vllm", "serving", "vllm_kepler", "serving_port"}
    serves()
    status, printed = player(VOLTA, "volta")("playbooks/rollback.yml", "-e", LAYOUT)
    assert status == 0, printed[-3000:]
    assert active(v100) == before[0]
    serves()


def test_a_killed_rank_of_two_is_served_again(v100, key, serves):
    unit = Unit(v100, key, "vllm@main")
    invocation, before = unit.show("InvocationID"), unit.tree()
    v100.check_output(f"kill -9 {unit.engine('Worker_TP1')}")
    unit.ready(but=invocation)
    reason = [line for line in unit.log().splitlines() if line.startswith("vllm@main ends: ")][-1]
    assert "while serving: Worker proc VllmWorker-1 died" in reason
    assert not set(before) & set(unit.processes())
    serves()


def test_a_stop_of_two_ranks_leaves_nothing(v100, key):
    unit = Unit(v100, key, "vllm@main")
    before = unit.tree()
    v100.check_output(f"systemctl stop {unit.name} vllm@port")
    assert (unit.show("Result"), unit.last()) == ("success", "vllm@main ends: stopped as asked")
    assert not set(before) & set(unit.processes())
    assert left_behind(v100, "vllm@main") == ""
