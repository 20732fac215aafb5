"""What is run, what is kept of it, and the report."""

import json
import re
from pathlib import Path

import module_run
import pytest
from ansible_collections.kepler.vllm.plugins.filter.kepler_bench import bench_page, bench_points, bench_table

ROOT = Path(__file__).resolve().parents[3]


bench_module = module_run.load("vllm_bench")

PARAMS = {
    "name": "main", "model": "/srv/models/m", "concurrency": 4, "input_tokens": 64, "output_tokens": 16, "requests": 12,
    "host": "0.0.0.0", "port": 8001, "api_key_file": "/etc/key.env", "root": "/opt/kepler", "user": "vllm",
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
    assert "EnvironmentFile" not in " ".join(
        part for part in bench_module.command_of({**PARAMS, "api_key_file": None}, "m") if "key.env" in part
    )


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
    """Run the module, where the benchmark prints this and ends with this status; its answer."""

    def run(printed, status=1):
        api = type("Api", (), {"__init__": lambda self, *_: None, "model": lambda self: ("served", 2048)})
        monkeypatch.setattr(bench_module, "Api", api)
        monkeypatch.setattr(
            bench_module.AnsibleModule, "run_command", lambda module, command: (status, printed, "its log")
        )
        return module_run.run(bench_module, monkeypatch, capsys, **{**PARAMS, "api_key_file": None})

    return run


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
