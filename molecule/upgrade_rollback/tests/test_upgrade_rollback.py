"""An upgrade that fails goes back by itself; a rollback is one command; the host serves in the end.

The tests follow one another: generation 1 is the one that was deployed, 2 answers garbage, 3 answers sense.
"""

from __future__ import annotations

from generations import GENERATIONS, LINE, NAN, active, changed_port, outputs
from several_hosts import BEFORE_THE_BUILD


def serves(host) -> bool:
    return host.run("curl -fsS http://127.0.0.1:8000/health").rc == 0


def test_a_generation_that_answers_garbage_goes_back_by_itself(k80, play, tmp_path):
    status, printed = play("playbooks/upgrade.yml", "-e", f"__vllm_port={changed_port(tmp_path, NAN)}")
    assert status != 0
    assert "this host is back on generation 1, which answers" in printed, printed[-3000:]
    assert "vllm@demo: asked to go on from" in printed
    assert active(k80) == 1
    # The generation that failed is there to be looked at.
    assert outputs(k80, 2)["vllm_kepler"] != outputs(k80, 1)["vllm_kepler"]
    assert serves(k80)


def test_rollback_refuses_another_kernel(k80, play):
    described = f"{GENERATIONS}/2/generation.json"
    k80.check_output(f"sed -i.kept 's/\"kernel\": \"[^\"]*\"/\"kernel\": \"0.0.1-other\"/' {described}")
    try:
        status, printed = play("playbooks/rollback.yml", "-e", "store_generation_wanted=2")
        assert status != 0
        assert "generation 2: found kernel" in printed
        assert "it was proven with 0.0.1-other" in printed
        assert "store_generation_force" in printed
        assert active(k80) == 1
    finally:
        k80.check_output(f"mv {described}.kept {described}")


def test_rollback_to_nowhere_is_refused(k80, play):
    status, printed = play("playbooks/rollback.yml", "-e", "store_generation_wanted=99")
    assert status != 0
    assert "generation: found 99, and generations 1, 2" in printed


def test_rollback_brings_back_the_generation_before(k80, play, tmp_path):
    port = changed_port(tmp_path, LINE + "    # Another generation.\n")
    skipped = f"preflight,{BEFORE_THE_BUILD}"
    status, printed = play("playbooks/upgrade.yml", "-e", f"__vllm_port={port}", "--skip-tags", skipped)
    assert status == 0, printed[-3000:]
    assert active(k80) == 3
    assert serves(k80)
    status, printed = play("playbooks/rollback.yml")
    assert status == 0, printed[-3000:]
    assert active(k80) == 1
    assert serves(k80)


def test_collection_after_going_back_keeps_what_it_must(k80, play):
    """The generation that failed goes; the active one and the last, their outputs and what the server uses stay."""
    kept = {*outputs(k80, 1).values(), *outputs(k80, 3).values()}
    gone = set(outputs(k80, 2).values()) - kept
    status, printed = play("playbooks/gc.yml", "-e", "store_keep=1", "-e", "store_gc_sources=true")
    assert status == 0, printed
    assert gone
    assert {path for path in gone | kept if k80.file(path).exists} == kept
    assert "1*" in k80.check_output("kepler-store list")
    assert serves(k80)
