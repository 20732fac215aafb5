"""Filters for the acceptance test of servers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

COLUMNS = ("name", "size", "check", "result", "found")
KEPT = ("result", "found", "figures", "model", "seconds")


def at_size(instances: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """The instances on the first `size` of their GPUs; those that have fewer as they are."""
    return [
        {**instance, "gpus": instance["gpus"][:size], "tensor_parallel_size": min(size, len(instance["gpus"]))}
        for instance in instances
    ]


def golden_file(instance: dict[str, Any], directory: str) -> str:
    """File of the answers that were recorded for an instance's model."""
    return f"{directory}/{re.sub('[^A-Za-z0-9._-]+', '-', instance['model'].rstrip('/').rpartition('/')[2])}.json"


def acceptance_results(checked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of the task's loop over (instance, check), without what Ansible adds."""
    return [
        {
            "name": item["item"][0]["name"], "size": item["item"][0]["tensor_parallel_size"], "check": item["item"][1],
            **{name: item[name] for name in KEPT},
        }
        for item in checked
    ]


def acceptance_table(results: list[dict[str, Any]]) -> list[str]:
    """One line for each result, in columns."""
    rows = [[f"TP {row[name]}" if name == "size" else str(row[name]) for name in COLUMNS] for row in results]
    widths = [max((len(row[place]) for row in rows), default=0) for place in range(len(COLUMNS) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {
            "acceptance_results": acceptance_results,
            "acceptance_table": acceptance_table,
            "at_size": at_size,
            "golden_file": golden_file,
        }
