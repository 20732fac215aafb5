"""What is run, what is kept of it, and the report."""

import json
import re
from pathlib import Path

import module_run
import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.kepler.vllm.plugins.filter.kepler_bench import (
    bench_longest,
    bench_page,
    bench_points,
    bench_pools,
    bench_table,
)

ROOT = Path(__file__).resolve().parents[3]


bench_module = module_run.load("vllm_bench")

PARAMS = {
    "name": "main", "model": "/srv/models/m", "concurrency": 4, "input_tokens": 64, "output_tokens": 16, "requests": 12,
    "host": "0.0.0.0", "port": 8001, "api_key_file": "/etc/key.env", "root": "/opt/kepler", "user": "vllm",
    "program": "print()", "turns": 1, "url": None, "ca_file": None,
}
INSTANCE = {"name": "main", "model": "/srv/models/m", "tensor_parallel_size": 4}


def figures(speed):
    return {**dict.fromkeys(bench_module.FIGURES, 10.0), "output_throughput": speed}


def run(*speeds, before=None):
    """A run with the speeds of 1, 2, 4... at a time."""
    measured = [
        {"item": [INSTANCE, [64, 16], 2**place], "figures": figures(speed)} for place, speed in enumerate(speeds)
    ]
    return {
        "host": "k80-1", "time": "2026-01-01T00:00:00Z", "generation": "7", "points": bench_points(measured),
        "before": before or {},
    }


def test_the_command_holds_what_was_asked_for_and_no_key():
    command = bench_module.command_of(PARAMS, "served")
    text = " ".join(command)
    for part in (
        "--base-url http://127.0.0.1:8001 ", "--random-input-len 64 ", "--random-output-len 16 ", "--num-prompts 12 ",
        "--max-concurrency 4 ", "--model served ", "--tokenizer /srv/models/m ", "--uid=vllm",
        "EnvironmentFile=/etc/key.env", "/opt/kepler/current/serving/bin/python",
    ):
        assert part in text, part
    assert "SSL_CERT_FILE" not in text
    assert "EnvironmentFile" not in " ".join(
        part for part in bench_module.command_of({**PARAMS, "api_key_file": None}, "m") if "key.env" in part
    )


def test_the_command_asks_a_balancer_with_its_certificate():
    asked = {**PARAMS, "url": "https://balancer:8443/m", "ca_file": "/etc/pki/balancer.pem", "turns": 4}
    text = " ".join(bench_module.command_of(asked, "served"))
    assert "--base-url https://balancer:8443/m --model" in text
    assert "Environment=SSL_CERT_FILE=/etc/pki/balancer.pem " in text
    assert "--turns 4 " in text


def test_each_measurement_has_prompts_of_its_own():
    """A server with a prefix cache would have those of the measurement before."""
    seeds = [command[command.index("--seed") + 1] for command in (
        bench_module.command_of(PARAMS, "served") for _ in range(8)
    )]
    assert len(set(seeds)) == 8
    assert all(0 <= int(seed) < 2**32 for seed in seeds)


def decisions(*speeds):
    """A run of answers of one token."""
    found = run(*speeds)
    return {**found, "points": [{**point, "output_tokens": 1, "median_tpot_ms": 0.0} for point in found["points"]]}


def test_answers_of_one_token_have_no_further_ones():
    assert bench_table(decisions(97.9)) == ["main: 64 in, 1 out, 1 at a time: 97.9 answers/s, first token 10 ms"]
    page = bench_page(decisions(97.9, 132.2))
    assert page.count("<svg") == 3  # two plots and one key
    assert "<h2>Each further token" not in page
    both = decisions(97.9)
    both["points"] += run(5.0)["points"]
    further = bench_page(both).partition("<h2>Each further token")[2].partition("</figure>")[0]
    # In the look that the key gives it, as the second one.
    assert re.findall("<polyline class='die (die[0-9])'", further) == ["die1"]


def test_points_and_table():
    points = run(5.0, 9.5)["points"]
    assert [(point["concurrency"], point["output_throughput"]) for point in points] == [(1, 5.0), (2, 9.5)]
    assert json.loads(json.dumps(points)) == points
    assert bench_table(run(5.0))[0].startswith("main: 64 in, 16 out, 1 at a time: 5.0 tok/s")


@pytest.fixture
def measure(monkeypatch, capsys):
    """Run the module, where the benchmark prints this and ends with this status; its answer.

    counters: of each server before and after, by the address of its metrics; an address without any does not answer.
    """

    def run(printed, status=1, counters=(), **others):
        left = {address: list(values) for address, values in dict(counters).items()}

        class Api:
            def __init__(self, *_, base, ca_file):
                self.base = base

            def model(self):
                return "served", 2048

            def read(self, path):
                if not left.get(self.base):
                    raise bench_module.CheckFailed("refused")
                return left[self.base].pop(0)

        monkeypatch.setattr(bench_module, "Api", Api)
        monkeypatch.setattr(
            bench_module.AnsibleModule, "run_command", lambda module, command: (status, printed, "its log")
        )
        return module_run.run(bench_module, monkeypatch, capsys, **{**PARAMS, "api_key_file": None, **others})

    return run


def metrics(answered, cached):
    """Metrics of a server, and one that nobody reads."""
    return (
        f'# HELP vllm:request_success_total\nvllm:request_success_total{{reason="stop"}} {answered}\n'
        f'vllm:request_success_total{{reason="length"}} 1.0\nvllm:num_requests_running 0.0\n'
        f'vllm:prefix_cache_hits_total{{engine="0"}} {cached}\n'
    )


BALANCED = {
    "url": "http://b:8080/m", "turns": 3,
    "metrics": {"a/gpu0": "http://b:8080/metrics/a/gpu0", "a/gpu1": "http://b:8080/metrics/a/gpu1"},
}


def test_figures_of_a_balancer_name_its_servers(measure):
    counters = {
        BALANCED["metrics"]["a/gpu0"]: [metrics(5.0, 100.0), metrics(14.0, 700.0)],
        BALANCED["metrics"]["a/gpu1"]: [metrics(7.0, 0.0), metrics(10.0, 120.0)],
    }
    answer = measure(json.dumps({**figures(5.0), "completed": 12, "history_tokens": 960}), 0, counters, **BALANCED)
    assert answer["figures"]["servers"] == {"a/gpu0": 0.75, "a/gpu1": 0.25}
    assert answer["figures"]["history_cached"] == 0.75


def test_a_server_that_is_gone_has_no_requests(measure):
    counters = {BALANCED["metrics"]["a/gpu0"]: [metrics(5.0, 100.0), metrics(14.0, 700.0)]}
    answer = measure(json.dumps({**figures(5.0), "completed": 12, "history_tokens": 960}), 0, counters, **BALANCED)
    assert answer["figures"]["servers"] == {"a/gpu0": 1.0, "a/gpu1": 0.0}
    assert "history_cached" not in answer["figures"]


def test_conversation_longer_than_the_model_takes_is_refused(measure):
    answer = measure("", input_tokens=600, output_tokens=100, **BALANCED)
    message = "bench_lengths: found 2100 tokens for prompt and answer of 3 turns; expected at most the 2048"
    assert message in answer["msg"]
    assert answer["msg"].startswith("http://b:8080/m: ")


def test_dry_run_asks_for_the_length_and_measures_nothing(measure):
    assert measure("Traceback", check_mode=True)["changed"] is False
    assert "found 2148 tokens" in measure("", input_tokens=2048, output_tokens=100, check_mode=True)["msg"]


@pytest.mark.parametrize(("lengths", "longest"), [
    ([[128, 128], [1024, 1]], [1024, 1]), ([[1024, 1], [512, 128, 4]], [512, 128, 4]),
])  # fmt: skip
def test_longest_requests_are_those_of_a_conversation(lengths, longest):
    assert bench_longest(lengths) == longest


def test_missing_certificates_are_named(measure, tmp_path):
    answer = measure("", ca_file=str(tmp_path / "ca.pem"), **BALANCED)
    assert f"bench_ca_file: found {tmp_path}/ca.pem missing; expected" in answer["msg"]


@pytest.mark.parametrize(("completed", "fails"), [(12, False), (11, True), (0, True)])
def test_benchmark_that_lost_requests_fails(measure, completed, fails):
    answer = measure(json.dumps({**figures(5.0), "completed": completed}))
    assert answer.get("failed", False) is fails
    if fails:
        assert f"found {completed} answers to 12 requests; expected all" in answer["msg"]


def test_benchmark_without_a_result_shows_its_log(measure):
    answer = measure("Traceback")
    assert answer["failed"] and "left no result (status 1):\nits log" in answer["msg"]


def test_the_page_shows_every_point_and_needs_nothing_else():
    page = bench_page(run(5.0, 9.5, 17.25))
    assert page.count("<svg") == 4  # three plots and one key
    for part in ("5.0", "9.5", "17.2", "k80-1", "generation 7", "TP = 4"):
        assert part in page
    assert "//" not in page.replace("</", "<").replace("/srv/models", "")
    # A point twice as fast is twice as high: the plot is 184 high and its top is 20.
    heights = page.partition("points='")[2].partition("'")[0].split()
    assert [round(212 - float(point.partition(",")[2]), 1) for point in heights] == [
        pytest.approx(184 * speed / 20, abs=0.1) for speed in (5.0, 9.5, 17.25)
    ]


def test_one_point_is_drawn():
    assert "polyline" in bench_page(run(5.0))


def test_an_earlier_run_stands_beside_it():
    page = bench_page(run(5.0, 30.0, before=run(5.0, 10.0)))
    assert "1.00 x" in page
    assert "3.00 x" in page
    assert "tok/s to k80-1, generation 7" in page
    other = run(5.0)
    other["points"][0]["model"] = "/srv/models/other"
    assert " x</td>" not in bench_page(run(5.0, before=other))


def conversations():
    """A run through a balancer, of conversations and of single requests."""
    found = run(5.0, 30.0)
    talks, single = found["points"]
    talks |= {"turns": 4, "servers": {"a/gpu0": 0.52, "a/gpu1": 0.48}, "history_cached": 0.974}
    single |= {"servers": {"a/gpu0": 0.5, "a/gpu1": 0.5}}
    return {**found, "target": "balancer"}


def test_a_report_of_a_balancer_shows_sessions_and_servers():
    first, second = bench_table(conversations())
    assert "64 in, 16 out, 4 turns, 1 at a time: 5.0 tok/s" in first
    assert first.endswith("; 97% of what was said before in a prefix cache; a/gpu0 52%, a/gpu1 48% of the requests")
    assert second.endswith("; a/gpu0 50%, a/gpu1 50% of the requests")
    assert "turns" not in second
    page = bench_page(conversations())
    assert "<h1>Balancer on k80-1</h1>" in page
    assert "<th>turns</th><th>said before, found in a prefix cache</th><th>requests of each server</th>" in page
    assert "<td>4</td><td>97%</td><td>a/gpu0 52%, a/gpu1 48%</td>" in page
    alone = bench_page(run(5.0))
    assert "turns" not in alone and "prefix cache" not in alone and "Servers of k80-1" in alone


def test_conversations_are_compared_with_conversations():
    """A run of before knew none."""
    assert " x</td>" not in bench_page({**run(5.0), "before": conversations()})
    before = run(2.5)
    del before["points"][0]["turns"]
    assert "2.00 x" in bench_page({**run(5.0), "before": before})


INSTANCES = {"vllm_service_instances": [
    {"name": "gpu0", "model": "/srv/models/m", "port": 8000, "tensor_parallel_size": 1},
]}
HOSTS = {
    "v100-1": {**INSTANCES, "ansible_host": "10.0.0.1", "store_root": "/srv/kepler"},
    "b": {"ansible_host": "10.0.0.9"},
}
POOLS = {"m": [{"name": "v100-1/gpu0"}, {"name": "v100-2/gpu0"}]}


@pytest.mark.parametrize(("balancer", "url", "listens", "base"), [
    ("v100-1", "", ("http", "127.0.0.1", 8080), "http://127.0.0.1:8080"),
    ("v100-1", "", ("https", "0.0.0.0", 8443), "https://127.0.0.1:8443"),
    ("b", "", ("https", "0.0.0.0", 8443), "https://10.0.0.9:8443"),
    ("b", "", ("http", "::1:2", 8080), "http://[::1:2]:8080"),
    ("b", "https://llm.example.org/", ("https", "127.0.0.1", 8443), "https://llm.example.org"),
])  # fmt: skip
def test_a_balancer_is_asked_as_its_clients_do(balancer, url, listens, base):
    (pool,) = bench_pools(POOLS, HOSTS, balancer, url, *listens)
    assert (pool["client"], pool["instance"], pool["model"]) == ("v100-1", "gpu0", "/srv/models/m")
    assert (pool["name"], pool["url"], pool["root"]) == ("m", f"{base}/m", "/srv/kepler")
    assert pool["metrics"] == {name: f"{base}/metrics/{name}" for name in ("v100-1/gpu0", "v100-2/gpu0")}


def test_a_balancer_that_the_client_cannot_reach_is_refused():
    with pytest.raises(AnsibleFilterError, match=r"bench_url: found none, and b listens on 127\.0\.0\.1, which v100-1"):
        bench_pools(POOLS, HOSTS, "b", "", "http", "127.0.0.1", 8080)


def test_a_pool_without_an_instance_of_the_inventory_is_refused():
    with pytest.raises(AnsibleFilterError, match=r"load_balancer_pools\.m: found x/gpu0, which is no instance"):
        bench_pools({"m": [{"name": "x/gpu0"}]}, HOSTS, "b", "", "http", "0.0.0.0", 8080)
