"""playbooks/bench.yml through the balancer: conversations and decisions, as a client of the servers has them."""

from __future__ import annotations

import json

from conftest import MODEL, PROJECT
from standin.settings import VOLTA
from standin.testing import player

SERVERS = {"v100-standin/gpu0", "v100-standin/gpu1"}
SMALL = {
    "bench_target": "balancer", "bench_lengths": [[192, 8, 3], [256, 1]], "bench_concurrency": [4], "bench_rounds": 6,
}


def test_conversations_and_decisions_through_the_balancer():
    report = PROJECT / "bench-reports" / "v100-standin-balancer.json"
    report.unlink(missing_ok=True)
    status, printed = player(VOLTA, "volta")("playbooks/bench.yml", "-e", json.dumps(SMALL))
    assert status == 0, printed[-3000:]
    points = {(point["name"], point["output_tokens"]): point for point in json.loads(report.read_text())["points"]}
    assert set(points) == {(name, tokens) for name in (MODEL, "port") for tokens in (8, 1)}
    for point in points.values():
        assert point["completed"] == 24
        assert point["output_throughput"] > 0
    for tokens in (8, 1):
        assert set(points[MODEL, tokens]["servers"]) == SERVERS
        assert all(points[MODEL, tokens]["servers"].values())
    # Sessions stay: of 200 and 400 tokens, whole blocks of 128 are found. Half of that would be found without them.
    assert 0.7 < points[MODEL, 8]["history_cached"] <= 1
    # Single requests have no history, and V0 does not count what it finds.
    assert [key for key, point in points.items() if "history_cached" in point] == [(MODEL, 8)]
