"""The servers answer sense, and the store holds what its manifests say."""

from __future__ import annotations

import json


def test_an_answer_that_is_not_expected_fails(k80, play):
    """Every run that serves asks the same, and passes."""
    status, printed = play(
        "k80-standin", '{"vllm_service_smoke_expect": {"demo": "never"}}', playbook="playbooks/smoke.yml",
    )
    assert status != 0
    assert "which does not hold" in printed


def test_the_store_is_whole(k80, play):
    """All of it by the command on the host, and one output by the playbook, built again."""
    listed = k80.check_output("kepler-store verify").splitlines()
    assert len(listed) >= 6
    assert all(" whole " in line for line in listed), listed
    status, printed = play(
        "k80-standin", "store_verify_output=vllm_kepler", "store_verify_rebuild=true", playbook="playbooks/verify.yml"
    )
    assert status == 0, printed
    bill = json.loads(k80.check_output("kepler-store sbom"))
    names = {part["name"] for component in bill["components"] for part in component.get("components", [])}
    assert {"torch", "vllm", "transformers"} <= names
