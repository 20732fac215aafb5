"""What the tests of a scenario reach its stand-ins with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import testinfra

from . import engine, hosts
from .settings import PROJECT, Fleet


def reach(fleet: Fleet, name: str = "k80-standin") -> Any:
    """One stand-in as a host of testinfra, which finds the engine by DOCKER_HOST."""
    engine.ensure()
    return testinfra.get_host(f"docker://{fleet.container(name)}")


def inventory_of(scenario: str) -> Path:
    return PROJECT / "molecule" / scenario / "inventory"


def player(fleet: Fleet, scenario: str) -> Callable[..., tuple[int, str]]:
    """Function that runs a playbook with further arguments: (exit status, what it printed)."""

    def play(playbook: str, *arguments: str, project: Path = PROJECT) -> tuple[int, str]:
        return hosts.play(fleet, "-i", str(inventory_of(scenario)), playbook, *arguments, project=project)

    return play


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Add the ends of the servers' journals, of every stand-in that a test has as a fixture, to its failure."""
    outcome = yield
    report = outcome.get_result()
    if not report.failed:
        return
    for fixture in getattr(item, "funcargs", {}).values():
        for host in fixture.values() if isinstance(fixture, dict) else (fixture,):
            if isinstance(host, testinfra.host.Host):
                log = host.run("journalctl --unit 'vllm*@*' --lines 80 --no-pager --output short").stdout
                report.sections.append((f"servers of {host.backend.get_hostname()}", log))
