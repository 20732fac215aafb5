"""Ranges of the roles' numbers: zero and below only if they have a meaning."""

from __future__ import annotations

from typing import Any

from ..module_utils.findings import finding
from .findings import is_integer, shown

DAY = 24 * 60 * 60
PORT = (1, 65535)
# Lowest and highest value of every integer variable of the roles, and of the integers in lists.
RANGES: dict[str, tuple[int, int]] = {
    "acceptance_concurrency": (1, 1024),
    "acceptance_long_tokens": (1, 1_000_000),
    "acceptance_requests": (1, 1_000_000),
    "acceptance_sizes": (1, 64),
    "bench_concurrency": (1, 1024),
    "bench_lengths": (1, 1_000_000),
    "bench_requests": (1, 1_000_000),
    "bench_rounds": (1, 1_000_000),
    "compose_balancer_port": PORT,
    "load_balancer_fail_timeout": (1, DAY),
    # For nginx 0 is no limit: bodies would go to a disk, and a server that fails would never be left out.
    "load_balancer_max_body_mib": (1, 1024),
    "load_balancer_max_fails": (1, 1000),
    "load_balancer_port": PORT,
    "load_balancer_read_timeout": (1, 7 * DAY),
    "monitoring_gpu_exporter_port": PORT,
    "monitoring_interval": (1, DAY),
    "monitoring_node_exporter_port": PORT,
    "nvidia_driver_reboot_timeout": (1, DAY),
    "preflight_memory_gib": (1, 1_000_000),
    "preflight_model_cache_gib": (1, 1_000_000),
    "preflight_store_gib": (1, 1_000_000),
    # 0: one for each core.
    "pytorch_jobs": (0, 1024),
    "qualification_pair_timeout": (1, DAY),
    "qualification_seconds": (1, DAY),
    "qualification_temperature": (1, 150),
    "store_keep": (1, 1000),
    "store_share_port": PORT,
    "store_share_seconds": (1, 7 * DAY),
    # 0: running requests get no time at all.
    "vllm_service_drain": (0, 7 * DAY),
    # The unit's own questions have a body.
    "vllm_service_max_body": (1, 1024),
    "vllm_service_max_sequences": (1, 1_000_000),
    # For systemd 0 is no limit.
    "vllm_service_start_stall": (1, DAY),
    "vllm_service_start_timeout": (1, 7 * DAY),
    # 0: no watchdog.
    "vllm_service_watchdog": (0, DAY),
}


def as_integer(value: Any) -> Any:
    """The integer that a text of the command line reads as; any other value as it is."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


def number_findings(name: str, value: Any) -> list[dict[str, str]]:
    """Findings about the value of the variable `name`, or about the members of the list that it is."""
    lowest, highest = RANGES[name]
    if isinstance(value, list):
        return [item for member in value for item in number_findings(name, member)]
    if is_integer(value) and lowest <= value <= highest:
        return []
    return [finding("error", name, shown(value), f"an integer of {lowest} to {highest}", "Correct the number.")]
