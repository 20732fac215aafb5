"""Acceptance test and benchmark of a running server, as an operator runs them."""

from __future__ import annotations

import json
import shutil

from conftest import PROJECT

REPORT = PROJECT / "acceptance-reports" / "k80-standin.json"
STRESS = "playbooks/stress.yml"


def results() -> dict[tuple[int, str], dict]:
    return {(row["size"], row["check"]): row for row in json.loads(REPORT.read_text())}


def test_another_number_of_dies_passes(k80, play, tmp_path):
    """The answers of four ranks are recorded; one gives the same."""
    status, printed = play(
        "k80-standin", "acceptance_record=true", f"acceptance_golden_directory={tmp_path}",
        '{"acceptance_sizes": [1]}', "acceptance_requests=8", "acceptance_long_tokens=100", playbook=STRESS,
    )
    assert status == 0, printed[-3000:]
    found = results()
    assert {size for size, _ in found} == {4, 1}
    for (size, check), row in found.items():
        assert row["result"] == ("skipped" if check == "memory" else "passed"), (size, row)
    assert found[4, "load"]["figures"]["requests"] == 8
    # In the end it serves as before.
    assert '"tensor-parallel-size": 4' in k80.file("/etc/kepler/instances/demo.yaml").content_string
    assert k80.run("curl -fsS http://127.0.0.1:8000/health").rc == 0


def test_another_answer_than_the_recorded_one_fails(k80, play, tmp_path):
    shutil.copytree(PROJECT / "files" / "golden", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "licence-llama.json"
    recorded = json.loads(path.read_text())
    recorded[0]["text"] += "!"
    path.write_text(json.dumps(recorded))
    status, printed = play(
        "k80-standin", f"acceptance_golden_directory={tmp_path}", '{"acceptance_checks": ["completion", "golden"]}',
        playbook=STRESS,
    )
    assert status != 0
    assert "1 of 2 checks failed: demo TP 4 golden failed" in printed, printed[-2000:]
    assert "recorded was" in printed
    assert {check: row["result"] for (_, check), row in results().items()} == {
        "completion": "passed", "golden": "failed",
    }


def test_the_benchmark_and_its_comparison(k80, play, tmp_path):
    small = '{"bench_lengths": [[16, 8]], "bench_concurrency": [1, 4], "bench_requests": 4}'
    reports = PROJECT / "bench-reports"
    status, printed = play("k80-standin", small, playbook="playbooks/bench.yml")
    assert status == 0, printed[-3000:]
    run = json.loads((reports / "k80-standin.json").read_text())
    assert [(point["concurrency"], point["completed"]) for point in run["points"]] == [(1, 4), (4, 12)]
    assert all(point["output_throughput"] > 0 for point in run["points"])
    before = shutil.copy(reports / "k80-standin.json", tmp_path)
    # Of the second run one number of requests at a time is enough.
    status, printed = play(
        "k80-standin", small, '{"bench_concurrency": [1]}', f"bench_compare={before}", playbook="playbooks/bench.yml"
    )
    assert status == 0, printed[-3000:]
    assert " x</td>" in (reports / "k80-standin.html").read_text()


def test_a_benchmark_longer_than_the_model_takes_is_refused(k80, play):
    status, printed = play("k80-standin", '{"bench_lengths": [[100000, 8]]}', playbook="playbooks/bench.yml")
    assert status != 0
    assert "bench_lengths: found 100008 tokens" in printed, printed[-2000:]
