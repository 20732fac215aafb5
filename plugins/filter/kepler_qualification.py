"""Filters for what a qualification says: which servers may start how, and a report for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from typing import Any

from ansible_collections.kepler.vllm.plugins.module_utils.gpu.qualification import read_trace
from ansible_collections.kepler.vllm.plugins.plugin_utils import page

# Plots: what of a reading, its title and its unit.
PLOTS = (
    ("temperature", "Temperature", "°C"),
    ("power", "Power", "W"),
    ("clock", "SM clock", "MHz"),
)
RESULTS = {
    "passed": "Passed",
    "failed": "Stopped at a bad sign",
    "halted": "The machine stopped",
    "skipped": "Skipped",
}


def begin_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The first record of a trace; empty where it is missing."""
    return next((record for record in records if record["event"] == "begin"), {})


def numbers(gpus: Iterable[int]) -> str:
    return ", ".join(str(gpu) for gpu in gpus)


def gpus_text(gpus: list[int]) -> str:
    """`GPU 0` or `GPUs 0, 1`."""
    return f"{'GPU' if len(gpus) == 1 else 'GPUs'} {numbers(gpus)}"


def summary(host_record: dict[str, Any]) -> str:
    """Describe in one sentence which GPUs servers may use."""
    if host_record["result"] == "skipped":
        return "Nobody qualified this host; servers start as the inventory asks."
    largest = host_record["stages"][-1]["size"] if host_record["stages"] else 0
    if host_record["size"] == 0:
        return "Not even one GPU passed: no server may start."
    if host_record["size"] < largest:
        return f"Servers get {gpus_text(host_record['dies'])} alone, of {largest} that were to pass."
    return f"Servers may use {gpus_text(host_record['dies'])}."


def qualification_conclusion(host_record: dict[str, Any], report: str) -> list[str]:
    """Lines for the operator: the result, each finding, and the path of the report."""
    return [
        f"qualification: {RESULTS[host_record['result']].lower()}. {summary(host_record)}",
        *(
            "{severity}: {variable}: found {found}; expected {expected}. {next_step}".format(**item)
            for item in sorted(host_record["findings"], key=lambda item: item["severity"] != "error")
        ),
        f"The report, on the controller: {report}",
    ]


def qualified_instances(instances: list[dict[str, Any]], dies: list[int] | None) -> list[dict[str, Any]]:
    """The servers as they may start on a host whose `dies` have passed together; as they are where nobody knows (None).

    instances: with their defaults filled in. In their order each gets the GPUs that it asks for where they have passed;
    else as many of those that are left as its tensor_parallel_size can be halved to. One that nothing is left for is
    left out.
    """
    if dies is None:
        return instances
    free, found = list(dies), []
    for instance in instances:
        wanted = instance["gpus"]
        ranks = instance["tensor_parallel_size"]
        if instance.get("hosts") and not set(wanted) <= set(free):
            # Every host of it must have as many.
            continue
        if not set(wanted) <= set(free):
            while ranks > max(len(free), 1):
                ranks //= 2
            wanted = free[:ranks]
        if len(wanted) < ranks:
            continue
        free = [die for die in free if die not in wanted]
        found.append({**instance, "gpus": wanted, "tensor_parallel_size": ranks})
    return found


def qualified_changes(instances: list[dict[str, Any]], started: list[dict[str, Any]]) -> list[str]:
    """Differences from the inventory, one line for each server; `started`: the result of qualified_instances."""
    gpus = {instance["name"]: instance["gpus"] for instance in started}
    found = []
    for instance in instances:
        name, asked = instance["name"], gpus_text(instance["gpus"])
        if name not in gpus:
            found.append(f"{name}: not started; it asks for {asked}")
        elif gpus[name] != instance["gpus"]:
            found.append(f"{name}: on {gpus_text(gpus[name])} instead of {asked}")
    return found


def bands(records: list[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """Stages as (name, first second, last second)."""
    stages = begin_of(records).get("stages", [])
    begun = [record for record in records if record["event"] == "stage"]
    ends = [record["t"] for record in begun[1:]] + [records[-1]["t"]] if begun else []
    names = [gpus_text(stages[record["stage"]]["dies"]) for record in begun]
    return [(name, record["t"], end) for name, record, end in zip(names, begun, ends, strict=True)]


def plot(records: list[dict[str, Any]], key: str, title: str, unit: str, limit: float | None) -> str:
    """One SVG: a line for each GPU over the seconds, the stages behind it."""
    samples = [record for record in records if record["event"] == "sample"]
    lines: dict[int, list[tuple[float, float]]] = {}
    for sample in samples:
        for number, reading in sample["dies"].items():
            if reading.get(key) is not None:
                lines.setdefault(int(number), []).append((sample["t"], reading[key]))
    if not lines:
        return f"<p class='soft'>{escape(title)}: no reading.</p>"
    values = [value for line in lines.values() for _, value in line] + ([limit] if limit is not None else [])
    seconds = max(samples[-1]["t"], 1)
    drawn = page.Plot(f"{title} of each GPU over time", max(values))

    def x(second: float) -> str:
        return f"{page.LEFT + (page.WIDTH - page.LEFT - page.RIGHT) * second / seconds:.1f}"

    for place, (name, begin, end) in enumerate(bands(records)):
        if place % 2 == 0:
            width = float(x(end)) - float(x(begin))
            drawn.parts.append(f"<rect class='band' x='{x(begin)}' y='{page.TOP}' width='{max(width, 0):.1f}' "
                               f"height='{page.HEIGHT - page.TOP - page.BOTTOM}'/>")
        drawn.parts.append(f"<text x='{float(x(begin)) + 4:.1f}' y='{page.TOP - 8}'>{escape(name)}</text>")
    drawn.grid()
    tick = page.step_of(seconds, 8)
    for place in range(int(seconds / tick) + 1):
        drawn.tick(x(place * tick), f"{place * tick:g} s")
    if limit is not None:
        drawn.parts.append(f"{drawn.rule('limit', limit)}><title>limit: {limit:g} {escape(unit)}</title></line>")
    places = {die["index"]: place for place, die in enumerate(begin_of(records).get("dies", []))}
    for number, line in sorted(lines.items()):
        most = max(value for _, value in line)
        drawn.line(
            places.get(number, 0), [(x(second), value) for second, value in line],
            f"GPU {number}: at most {most:g} {unit}",
        )
    return drawn.svg()


def die_rows(host_record: dict[str, Any], records: list[dict[str, Any]]) -> list[list[Any]]:
    """For each GPU what it is and the extremes of its readings."""
    rows = []
    for die in host_record["boards"]:
        readings = [
            record["dies"][str(die["index"])]
            for record in records
            if record["event"] == "sample" and str(die["index"]) in record["dies"]
        ]

        def of(key: str, which: Callable[..., Any], readings: list[dict[str, Any]] = readings) -> Any:
            values = [reading[key] for reading in readings if reading.get(key) is not None]
            return which(values) if values else None

        rows.append([
            die["index"], die["name"], die["bus"], die["serial"], of("temperature", max), of("power", max),
            of("clock", max), of("uncorrected", max), of("corrected", max),
            of("replays", lambda values: values[-1] - values[0]), of("gen", max), of("width", min),
        ])
    return rows


def step_rows(records: list[dict[str, Any]]) -> list[list[Any]]:
    """For each step how it went."""
    rows: list[list[Any]] = []
    for record in records:
        if record["event"] == "step":
            dies = numbers(record["dies"])
            rows.append([record["stage"] + 1, record["step"], dies, record["t"], None, "not ended", ""])
        elif record["event"] == "step end" and rows:
            speeds = [result["gflops"] for result in record["results"] if "gflops" in result]
            direct = [result["peer"] for result in record["results"] if result.get("peer") is not None]
            measured = [f"{min(speeds):g} to {max(speeds):g} GFLOPS a GPU"] if speeds else []
            measured += ["direct access" if all(direct) else "no direct access"] if direct else []
            result = "ok" if record["ok"] else record["trouble"]
            rows[-1][4:] = [round(record["t"] - rows[-1][3], 1), result, ", ".join(measured)]
    return rows


def findings_html(findings: list[dict[str, str]]) -> str:
    """Each finding as a block, errors first."""
    return "".join(
        f"<div class='finding {'error' if item['severity'] == 'error' else 'warning'}'>"
        f"<strong>{escape(item['severity'])}: {escape(item['variable'])}</strong>"
        f"<p>Found: {escape(item['found'])}. Expected: {escape(item['expected'])}.</p>"
        f"<p class='soft'>{escape(item['next_step'])}</p></div>"
        for item in sorted(findings, key=lambda item: item["severity"] != "error")
    )


def qualification_report(host_record: dict[str, Any], trace: str, host: str, mark: str) -> str:
    """A page that needs nothing but itself: findings, plots, GPUs and steps.

    trace: text of the trace, empty where there is none. mark: tells this report from that of another run.
    """
    records = read_trace(trace)
    limits = begin_of(records).get("limits", {})
    keys = page.legend(f"GPU {die['index']}" for die in host_record["boards"])
    figures = "".join(
        f"<h2>{escape(title)} ({escape(unit)})</h2><figure>"
        f"{plot(records, key, title, unit, limits.get('temperature') if key == 'temperature' else None)}</figure>"
        for key, title, unit in PLOTS
    )
    facts = (
        f"kernel {host_record['kernel']}, driver {host_record['driver']}, "
        f"generation {host_record['generation'] or 'none'}, device {host_record['device']}, "
        f"{host_record['seconds']} s of load in each stage"
    )
    dies = page.table(
        ("GPU", "name", "address", "board", "max °C", "max W", "max MHz", "ECC, uncorrectable", "ECC, corrected",
         "replays", "PCIe gen", "lanes"),
        die_rows(host_record, records),
    )
    steps = page.table(("stage", "step", "GPUs", "from s", "took s", "result", "measured"), step_rows(records))
    return page.document(
        f"Qualification of {host}",
        f"<p class='soft'>{escape(mark)}</p>"
        f"<p class='result {escape(host_record['result'])}'>{escape(RESULTS[host_record['result']])}</p>"
        f"<p>{escape(summary(host_record))}</p>{findings_html(host_record['findings'])}"
        + (f"<p>{keys}</p>{figures}<h2>GPUs</h2>{dies}<h2>Steps</h2>{steps}" if records else "")
        + f"<p class='soft'>{escape(facts)}</p>",
    )


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {
            "qualification_report": qualification_report,
            "qualification_conclusion": qualification_conclusion,
            "qualified_changes": qualified_changes,
            "qualified_instances": qualified_instances,
        }
