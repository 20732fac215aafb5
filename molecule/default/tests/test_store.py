"""The servers answer sense, and the store holds what its manifests say."""

from __future__ import annotations

import json


def test_the_servers_pass_the_smoke_test(k80, play):
    status, printed = play("k80-standin", playbook="playbooks/smoke.yml")
    assert status == 0, printed
    status, printed = play(
        "k80-standin", '{"vllm_service_smoke_expect": {"demo": "never"}}', playbook="playbooks/smoke.yml",
    )
    assert status != 0
    assert "which does not hold" in printed


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
