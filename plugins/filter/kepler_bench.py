"""Filters for measurements of servers: what is kept, a table, a page with plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.kepler.vllm.plugins.filter.kepler_balancer import is_any
from ansible_collections.kepler.vllm.plugins.filter.kepler_instances import instances_with_defaults
from ansible_collections.kepler.vllm.plugins.module_utils.server.addresses import authority, is_loopback
from ansible_collections.kepler.vllm.plugins.plugin_utils import page
from ansible_collections.kepler.vllm.plugins.plugin_utils.addresses import address_of

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
# What two points of a comparison have in common.
SAME = ("model", "input_tokens", "output_tokens", "turns", "concurrency")


def turns_of(lengths: list[int]) -> int:
    """Requests of a conversation; 1 where there are none."""
    return lengths[2] if len(lengths) > 2 else 1


def described(input_tokens: int, output_tokens: int, turns: int, concurrency: int) -> str:
    """A measurement in words."""
    return (
        f"{input_tokens} in, {output_tokens} out, " + (f"{turns} turns, " if turns > 1 else "")
        + f"{concurrency} at a time"
    )


def bench_label(item: tuple[dict[str, Any], list[int], int]) -> str:
    """A round of the task's loop over (target, lengths, concurrency) in words."""
    _, lengths, concurrency = item
    return described(lengths[0], lengths[1], turns_of(lengths), concurrency)


def bench_longest(lengths: list[list[int]]) -> list[int]:
    """Those of bench_lengths whose conversation has the most tokens."""
    return max(lengths, key=lambda one: (one[0] + one[1]) * turns_of(one))


def client_of(pool: str, server: str, hosts: Mapping[str, Mapping]) -> tuple[str, dict[str, Any]]:
    """Host of a server HOST/INSTANCE, which asks the balancer, and the instance. Raises AnsibleFilterError."""
    host, _, name = server.partition("/")
    # Ansible's mapping has an undefined value for a host that it does not know.
    known = [hosts[host]] if host in hosts else []
    for values in known:
        instances = instances_with_defaults(
            values.get("vllm_service_instances") or [], values.get("vllm_service_instance_defaults")
        )
        for instance in instances:
            if instance["name"] == name:
                return host, instance
    raise AnsibleFilterError(
        f"load_balancer_pools.{pool}: found {server}, which is no instance of the inventory; expected one as the "
        "pool's first server: its host measures. Put it first, or add it."
    )


def balancer_url(hosts: Mapping[str, Mapping], balancer: str, client: str, scheme: str, host: str, port: int) -> str:
    """Address at which the host `client` reaches a balancer that listens on `host`. Raises AnsibleFilterError."""
    if is_any(host):
        return f"{scheme}://{authority(address_of(balancer, hosts[balancer], client), port)}"
    if is_loopback(host) and client != balancer:
        raise AnsibleFilterError(
            f"bench_url: found none, and {balancer} listens on {host}, which {client} does not reach; expected an "
            "address. Name the one that clients use in bench_url."
        )
    return f"{scheme}://{authority(host, port)}"


def bench_pools(
    pools: Mapping[str, list[dict]], hosts: Mapping[str, Mapping], balancer: str, url: str, scheme: str, host: str,
    port: int,
) -> list[dict[str, Any]]:
    """What is measured of a balancer: each pool, asked by the host of its first server.

    url: the address that clients use; empty for that of a balancer which listens on `host` and `port`.
    """
    found = []
    for pool, servers in pools.items():
        client, instance = client_of(pool, servers[0]["name"], hosts)
        base = url.rstrip("/") or balancer_url(hosts, balancer, client, scheme, host, port)
        found.append({
            "name": pool, "client": client, "instance": instance["name"], "model": instance["model"],
            "tensor_parallel_size": instance.get("tensor_parallel_size"), "url": f"{base}/{pool}",
            "metrics": {server["name"]: f"{base}/metrics/{server['name']}" for server in servers},
            **({"root": hosts[client]["store_root"]} if "store_root" in hosts[client] else {}),
        })
    return found


def bench_points(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of the task's loop over (target, lengths, concurrency): what was measured, and its figures."""
    found = []
    for item in measured:
        target, lengths, concurrency = item["item"]
        found.append({
            "name": target["name"], "model": target["model"],
            "tensor_parallel_size": target.get("tensor_parallel_size"), "input_tokens": lengths[0],
            "output_tokens": lengths[1], "turns": turns_of(lengths), "concurrency": concurrency, **item["figures"],
        })
    return found


def ratio(point: dict[str, Any], before: list[dict[str, Any]], key: str) -> str:
    """A figure as a multiple of the same one of an earlier run, whatever the instance was called there."""
    for other in before:
        # Runs of before have no turns.
        if all({"turns": 1, **other}[name] == point[name] for name in SAME):
            return f"{point[key] / other[key]:.2f} x" if other[key] else ""
    return ""


def cell(point: dict[str, Any], key: str) -> str:
    """A figure as text; empty for the further tokens of an answer that has one."""
    return "" if "tpot" in key and point["output_tokens"] == 1 else f"{point[key]:.1f}"


def shares(point: dict[str, Any]) -> str:
    """The requests that each server behind a balancer has had; empty for a server alone."""
    servers = point.get("servers") or {}
    return ", ".join(f"{name} {share:.0%}" for name, share in servers.items()) if len(servers) > 1 else ""


def cached(point: dict[str, Any]) -> str:
    """What of the conversations so far was in a prefix cache; empty where that is unknown."""
    return f"{point['history_cached']:.0%}" if "history_cached" in point else ""


# Columns of what only conversations, or only a balancer, have: a title, and how it is shown.
FURTHER: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("turns", lambda point: str(point["turns"]) if point["turns"] > 1 else ""),
    ("said before, found in a prefix cache", cached), ("requests of each server", shares),
)


def further(run: dict[str, Any]) -> list[tuple[str, Callable[[dict[str, Any]], str]]]:
    """Those of FURTHER that a run has something for."""
    return [(title, text) for title, text in FURTHER if any(map(text, run["points"]))]


def rows(run: dict[str, Any]) -> list[list[str]]:
    """One row of cells for each point."""
    before = (run.get("before") or {}).get("points", [])
    return [
        [
            point["name"], str(point["input_tokens"]), str(point["output_tokens"]), str(point["concurrency"]),
            *(cell(point, key) for key, _, _ in COLUMNS), *(text(point) for _, text in further(run)),
            *([ratio(point, before, COLUMNS[0][0])] if before else []),
        ]
        for point in run["points"]
    ]


def heads(run: dict[str, Any]) -> list[str]:
    """Titles of the columns of `rows`."""
    titles = ["server", "in", "out", "at a time", *(f"{title} ({unit})" for _, title, unit in COLUMNS)]
    titles += [title for title, _ in further(run)]
    before = run.get("before")
    if before:
        titles.append(f"tok/s to {before['host']}, generation {before['generation']}")
    return titles


def bench_table(run: dict[str, Any]) -> list[str]:
    """Lines for a terminal: tokens or answers of one token a second, and medians in milliseconds."""
    lines = []
    for point in run["points"]:
        token = cell(point, "median_tpot_ms")
        what = described(*(point[key] for key in ("input_tokens", "output_tokens", "turns", "concurrency")))
        lines.append(
            f"{point['name']}: {what}: {point['output_throughput']:.1f} {'tok' if token else 'answers'}/s, first token "
            f"{point['median_ttft_ms']:.0f} ms" + (f", each further {token} ms" if token else "")
            + (f"; {cached(point)} of what was said before in a prefix cache" if cached(point) else "")
            + (f"; {shares(point)} of the requests" if shares(point) else "")
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
        name += f", {point['turns']} turns" if point["turns"] > 1 else ""
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
        f"{'Balancer on' if run.get('target') == 'balancer' else 'Servers of'} {run['host']}",
        f"<p class='soft'>{escape(run['time'])}, generation {escape(run['generation'])}. {escape(models)}</p>"
        f"<p>{page.legend(series[PLOTTED[0]])}</p>{figures}<h2>All figures</h2>{page.table(heads(run), rows(run))}",
    )


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {
            "bench_label": bench_label, "bench_longest": bench_longest, "bench_page": bench_page,
            "bench_points": bench_points, "bench_pools": bench_pools, "bench_table": bench_table,
        }
