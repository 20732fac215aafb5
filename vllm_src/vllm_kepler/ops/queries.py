"""Threads of the CPU."""

from __future__ import annotations

from .registry import Operator


def init_cpu_threads_env(cpu_ids: str) -> str:
    """Upstream binds the process to `cpu_ids` here; the port leaves that to systemd and says so."""
    return f"CPU threads are not bound to {cpu_ids}: the unit decides where a server runs."


OPERATORS = [Operator("_C_utils", "init_cpu_threads_env(str cpu_ids) -> str", init_cpu_threads_env)]
