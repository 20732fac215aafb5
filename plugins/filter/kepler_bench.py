"""Filters for measurements of servers: what is kept, a table, a page with plots."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

from ansible_collections.kepler.vllm.plugins.plugin_utils import page

# Figures, their titles and units; the first is what a comparison is made of.
COLUMNS = (
    ("output_throughput", "Tokens of answers", "tok/s"),
    ("request_throughput", "Requests", "1/s"),
    ("median_ttft_ms", "First token, median", "ms"),
    ("p99_ttft_ms", "First token, 99 %", "ms"),
    ("median_tpot_ms", "Each further token, median", "ms"),
    ("p99_tpot_ms", "Each further token, 99 %", "ms"),
    ("median_e2el_ms", "Whole answer, median", "ms"),
)
PLOTTED = ("output_throughput", "median_ttft_ms", "median_tpot_ms")
KEY = ("name", "model", "tensor_parallel_size", "input_tokens", "output_tokens", "concurrency")


def bench_points(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of the task's loop over (instance, lengths, concurrency): what was measured, and its figures."""
    found = []
    for item in measured:
        instance, lengths, concurrency = item["item"]
        found.append({
            "name": instance["name"], "model": instance["model"],
            "tensor_parallel_size": instance.get("tensor_parallel_size"), "input_tokens": lengths[0],
            "output_tokens": lengths[1], "concurrency": concurrency, **item["figures"],
        })
    return found


def ratio(point: dict[str, Any], before: list[dict[str, Any]], key: str) -> str:
    """A figure as a multiple of the same one of an earlier run, whatever the instance was called there."""
    place = KEY[3:]
    for other in before:
        if all(other[name] == point[name] for name in place) and other["model"] == point["model"]:
            return f"{point[key] / other[key]:.2f} x" if other[key] else ""
    return ""


def cell(point: dict[str, Any], key: str) -> str:
    """A figure as text; empty for the further tokens of an answer that has one."""
    return "" if "tpot" in key and point["output_tokens"] == 1 else f"{point[key]:.1f}"


def rows(run: dict[str, Any]) -> list[list[str]]:
    """One row of cells for each point."""
    before = (run.get("before") or {}).get("points", [])
    return [
        [
            point["name"], str(point["input_tokens"]), str(point["output_tokens"]), str(point["concurrency"]),
            *(cell(point, key) for key, _, _ in COLUMNS),
            *([ratio(point, before, COLUMNS[0][0])] if before else []),
        ]
        for point in run["points"]
    ]


def heads(run: dict[str, Any]) -> list[str]:
    """Titles of the columns of `rows`."""
    titles = ["server", "in", "out", "at a time", *(f"{title} ({unit})" for _, title, unit in COLUMNS)]
    before = run.get("before")
    if before:
        titles.append(f"tok/s to {before['host']}, generation {before['generation']}")
    return titles


def bench_table(run: dict[str, Any]) -> list[str]:
    """Lines for a terminal: tokens or answers of one token a second, and medians in milliseconds."""
    lines = []
    for point in run["points"]:
        further = cell(point, "median_tpot_ms")
        lines.append(
            f"{point['name']}: {point['input_tokens']} in, {point['output_tokens']} out, {point['concurrency']} at a "
            f"time: {point['output_throughput']:.1f} {'tok' if further else 'answers'}/s, first token "
            f"{point['median_ttft_ms']:.0f} ms" + (f", each further {further} ms" if further else "")
        )
    return lines


def plot(series: dict[str, list[tuple[int, float]]], title: str) -> str:
    """One SVG: a line for each series with points over the requests at a time, each of these as far from the next."""
    places = sorted({concurrency for line in series.values() for concurrency, _ in line})
    drawn = page.Plot(
        f"{title} over requests at a time", max(value for line in series.values() for _, value in line) or 1
    )
    width = (page.WIDTH - page.LEFT - page.RIGHT) / max(len(places) - 1, 1)

    def x(concurrency: int) -> str:
        return f"{page.LEFT + width * places.index(concurrency):.1f}"

    drawn.grid()
    for concurrency in places:
        drawn.tick(x(concurrency), str(concurrency))
    for number, (name, line) in enumerate(series.items()):
        if line:
            drawn.line(number, [(x(concurrency), value) for concurrency, value in sorted(line)], name)
    return drawn.svg()


def bench_page(run: dict[str, Any]) -> str:
    """A page that needs nothing but itself: plots of each figure, and the table."""
    series: dict[str, dict[str, list[tuple[int, float]]]] = {key: {} for key in PLOTTED}
    for point in run["points"]:
        name = f"{point['name']}, {point['input_tokens']} in, {point['output_tokens']} out"
        for key in PLOTTED:
            line = series[key].setdefault(name, [])
            if cell(point, key):
                line.append((point["concurrency"], point[key]))
    figures = "".join(
        f"<h2>{escape(title)} ({escape(unit)}), over requests at a time</h2><figure>{plot(series[key], title)}</figure>"
        for key, title, unit in COLUMNS if any(series.get(key, {}).values())
    )
    models = ", ".join(sorted({
        f"{point['name']}: {point['model']}, TP = {point['tensor_parallel_size']}" for point in run["points"]
    }))
    return page.document(
        f"Servers of {run['host']}",
        f"<p class='soft'>{escape(run['time'])}, generation {escape(run['generation'])}. {escape(models)}</p>"
        f"<p>{page.legend(series[PLOTTED[0]])}</p>{figures}<h2>All figures</h2>{page.table(heads(run), rows(run))}",
    )


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {"bench_page": bench_page, "bench_points": bench_points, "bench_table": bench_table}
