"""An upgrade that fails goes back by itself; a rollback is one command; the host serves in the end."""

from __future__ import annotations

import json

import pytest
from generations import NAN, active, changed_port

STORE = "/opt/kepler"


def outputs(host, number: int) -> dict[str, str]:
    return json.loads(host.check_output(f"cat {STORE}/generations/{number}/generation.json"))["outputs"]


@pytest.fixture(scope="module")
def broken_port(tmp_path_factory):
    return changed_port(tmp_path_factory.mktemp("port"), NAN)


def test_a_generation_that_answers_garbage_goes_back_by_itself(k80, play, broken_port):
    before = active(k80)
    status, printed = play("k80-standin", f"__vllm_port={broken_port}", playbook="playbooks/upgrade.yml")
    assert status != 0
    assert f"this host is back on generation {before}, which answers" in printed, printed[-3000:]
    assert "vllm@demo: asked to go on from" in printed
    assert active(k80) == before
    # The generation that failed is there to be looked at.
    assert outputs(k80, before + 1)["vllm_kepler"] != outputs(k80, before)["vllm_kepler"]
    assert k80.check_output("systemctl is-active vllm@demo") == "active"


def test_rollback_refuses_another_kernel_and_takes_force(k80, play):
    """The generation that failed was made on this kernel; a hand-made one was not."""
    number, before = active(k80) + 1, active(k80)
    described = f"{STORE}/generations/{number}/generation.json"
    k80.check_output(f"sed -i.kept 's/\"kernel\": \"[^\"]*\"/\"kernel\": \"0.0.1-other\"/' {described}")
    try:
        status, printed = play("k80-standin", f"store_generation_wanted={number}", playbook="playbooks/rollback.yml")
        assert status != 0
        assert f"generation {number}: found kernel" in printed
        assert "it was proven with 0.0.1-other" in printed
        assert "store_generation_force" in printed
        assert active(k80) == before
    finally:
        k80.check_output(f"mv {described}.kept {described}")


def test_rollback_to_nowhere_is_refused(k80, play):
    status, printed = play("k80-standin", "store_generation_wanted=99", playbook="playbooks/rollback.yml")
    assert status != 0
    assert "generation: found 99, and generations 1, 2" in printed


def test_the_servers_pass_the_smoke_test(k80, play):
    status, printed = play("k80-standin", playbook="playbooks/smoke.yml")
    assert status == 0, printed
    status, printed = play(
        "k80-standin", '{"vllm_service_smoke_expect": {"demo": "never"}}', playbook="playbooks/smoke.yml",
    )
    assert status != 0
    assert "which does not hold" in printed


def test_collection_after_going_back_keeps_what_it_must(k80, play):
    """The generation that failed goes on request; the active one, its outputs and what the server uses stay."""
    before, failed = active(k80), active(k80) + 1
    port = outputs(k80, failed)["vllm_kepler"]
    status, printed = play("k80-standin", "store_keep=1", "store_gc_sources=true", playbook="playbooks/gc.yml")
    assert status == 0, printed
    # The last one is kept; a newer one moves it out of the way.
    assert k80.file(port).exists
    k80.check_output(f"rm -rf {STORE}/generations/{failed}")
    assert f"{before}*" in k80.check_output("kepler-store list")
    status, printed = play("k80-standin", playbook="playbooks/gc.yml")
    assert status == 0, printed
    assert not k80.file(port).exists
    assert active(k80) == before
    for path in outputs(k80, before).values():
        assert k80.file(path).exists
    assert k80.run("curl -fsS http://127.0.0.1:8000/health").rc == 0


def test_the_store_is_whole(k80, play):
    status, printed = play("k80-standin", playbook="playbooks/verify.yml")
    assert status == 0, printed
    status, printed = play(
        "k80-standin", "store_verify_output=vllm_kepler", "store_verify_rebuild=true", playbook="playbooks/verify.yml"
    )
    assert status == 0, printed
    bill = json.loads(k80.check_output("kepler-store sbom"))
    names = {part["name"] for component in bill["components"] for part in component.get("components", [])}
    assert {"torch", "vllm", "transformers"} <= names
