"""A model of the hub, fetched, recorded and served without the hub."""

from __future__ import annotations

import json

import pytest
from conftest import MODEL, PROJECT

HUB = "/var/tmp/small_hub.py"
PLAYBOOK = "playbooks/models.yml"
INSTANCES = json.dumps({
    "vllm_service_instances": [{"name": "demo", "model": "owner/tiny"}],
    "models_environment": {"HF_ENDPOINT": "http://127.0.0.1:8766"},
})


@pytest.fixture(scope="module")
def hub(k80):
    """A hub on the host's loopback, which has the stand-in's model."""
    source = (PROJECT / "tests" / "unit" / "small_hub.py").read_text()
    k80.check_output(f"cat > {HUB} <<'END'\n{source}\nEND")
    k80.check_output(f"systemd-run --unit kepler-test-hub --collect /usr/bin/python3 {HUB} {MODEL} 8766")
    yield
    k80.check_output("systemctl stop kepler-test-hub")


def test_a_model_is_fetched_once(k80, play, hub, tmp_path):
    records = f"models_record_directory={tmp_path}"
    status, printed = play("k80-standin", INSTANCES, records, "models_record=true", playbook=PLAYBOOK)
    assert status == 0, printed[-3000:]
    # It was asked for by the name of a branch.
    assert "Pin it: revision: 0123456789abcdef0123456789abcdef01234567" in printed
    recorded = json.loads((tmp_path / "owner--tiny@main.json").read_text())
    record = json.loads(k80.check_output("cat /var/lib/vllm/models/owner--tiny/record.json"))
    for name, sha256 in recorded["files"].items():
        assert k80.check_output(f"sha256sum {record['path']}/{name}").split()[0] == sha256
        assert k80.check_output(f"sha256sum {MODEL}/{name}").split()[0] == sha256
    assert k80.check_output(f"stat -c %U {record['path']}") == "vllm"
    status, printed = play("k80-standin", INSTANCES, records, playbook=PLAYBOOK)
    assert status == 0, printed[-3000:]
    assert "changed=0" in printed


def test_another_file_than_the_recorded_one_is_refused(play, hub, tmp_path):
    (tmp_path / "owner--tiny@main.json").write_text(json.dumps({"files": {"config.json": "0" * 64}}))
    status, printed = play("k80-standin", INSTANCES, f"models_record_directory={tmp_path}", playbook=PLAYBOOK)
    assert status != 0
    assert "config.json: found sha256" in printed, printed[-3000:]
    assert "expected the recorded 0000" in printed


def test_a_hub_that_is_not_there(play):
    asked = INSTANCES.replace("owner/tiny", "owner/other").replace("8766", "8767")
    status, printed = play("k80-standin", asked, playbook=PLAYBOOK)
    assert status != 0
    assert "expected an answer of http://127.0.0.1:8767" in printed, printed[-3000:]
    assert "Traceback" not in printed
