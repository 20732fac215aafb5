"""What the first run proved before the servers started, and what starts on a host that stands less."""

from __future__ import annotations

import json

import pytest
from conftest import PROJECT, minutes

KEPT = "/var/lib/kepler/qualification"
REPORT = PROJECT / "qualification-reports" / "k80-standin.html"

# An nvidia-smi that sees the last die get hot while four ranks are loaded.
HOT = r"""#!/bin/bash
if pgrep --full -- '--mode load.*--world 4' > /dev/null; then
    nvidia-smi.kept "$@" | sed -E 's/:86:00[.]0, [0-9]+/:86:00.0, 96/'
else
    exec nvidia-smi.kept "$@"
fi
"""


def record(host) -> dict:
    return json.loads(host.check_output(f"cat {KEPT}/stamp.json"))


def served(host) -> str:
    """Number of the ranks of the running server, as its last start logged it."""
    log = host.check_output("journalctl --unit vllm@demo --no-pager --output cat")
    start = log.rindex("Initializing a V0 LLM engine")
    return log[start:].partition("tensor_parallel_size=")[2].partition(",")[0]


def test_all_dies_have_passed(k80):
    found = record(k80)
    assert (found["result"], found["size"], found["dies"]) == ("passed", 4, [0, 1, 2, 3])
    assert [stage["dies"] for stage in found["stages"]] == [[0], [0, 1], [0, 1, 2, 3]]
    records = [json.loads(line) for line in k80.check_output(f"cat {KEPT}/{found['trace']}").splitlines()]
    steps = [record["step"] for record in records if record["event"] == "step"]
    # The first board's pair, then every other pair, each tried once.
    assert steps == ["load", "pair 0-1", "load", "pair 0-2", "pair 0-3", "pair 1-2", "pair 1-3", "pair 2-3", "load"]
    assert records[-1]["event"] == "end"


def test_the_report_needs_nothing_but_itself(k80):
    page = REPORT.read_text()
    assert page.count("<svg") > 3
    assert "Passed" in page
    assert record(k80)["time"] in page
    assert "//" not in page.replace("</", "<")


def test_what_was_qualified_is_not_qualified_again(k80, play):
    before = k80.check_output(f"ls -l --time-style=full-iso {KEPT}")
    status, printed = play("k80-standin", playbook="playbooks/qualify.yml")
    assert status == 0, printed
    assert "changed=0" in printed
    assert k80.check_output(f"ls -l --time-style=full-iso {KEPT}") == before


@pytest.fixture
def hot(k80):
    """The last die gets hot under the load of four."""
    k80.check_output("mv /usr/bin/nvidia-smi /usr/bin/nvidia-smi.kept")
    k80.check_output("printf %s > /usr/bin/nvidia-smi && chmod 755 /usr/bin/nvidia-smi", HOT)
    yield
    k80.check_output("mv /usr/bin/nvidia-smi.kept /usr/bin/nvidia-smi")


@minutes
def test_a_die_that_gets_hot_costs_its_board_and_not_the_service(k80, play, hot):
    """Two GPUs serve, with one warning; the next run leaves that alone."""
    k80.check_output(f"rm {KEPT}/stamp.json")
    status, printed = play("k80-standin", "qualification_seconds=2", playbook="playbooks/serve.yml")
    assert status == 0, printed
    assert "GPU 3: found 96 degrees" in printed
    assert "demo: on GPUs 0, 1 instead of GPUs 0, 1, 2, 3" in printed
    found = record(k80)
    assert (found["result"], found["size"], found["dies"]) == ("failed", 2, [0, 1])
    assert served(k80) == "2"
    assert "96 degrees" in REPORT.read_text()
    status, printed = play("k80-standin", playbook="playbooks/serve.yml")
    assert status == 0, printed
    assert "changed=0" in printed
    assert "demo: on GPUs 0, 1 instead of GPUs 0, 1, 2, 3" in printed


@minutes
def test_a_repaired_host_serves_as_asked(k80, play):
    status, printed = play(
        "k80-standin", "qualification_seconds=2", "qualification_retry=true", playbook="playbooks/serve.yml"
    )
    assert status == 0, printed
    assert "instead of" not in printed
    assert record(k80)["result"] == "passed"
    assert served(k80) == "4"
