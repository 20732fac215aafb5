"""The stand-ins of the fleet `builder`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import testinfra

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT / "molecule" / "shared"))

from standin import engine  # noqa: E402
from standin import hosts as standins  # noqa: E402
from standin.settings import BUILDER  # noqa: E402

INVENTORY = PROJECT / "molecule" / "builder" / "inventory"


@pytest.fixture(scope="session")
def fleet():
    """The hosts by their names; testinfra finds the engine by DOCKER_HOST."""
    engine.ensure()
    return {host.name: testinfra.get_host(f"docker://{BUILDER.container(host.name)}") for host in BUILDER.hosts}


@pytest.fixture
def build():
    """Function that runs playbooks/build.yml with further arguments: (exit status, what it printed)."""

    def run(*arguments: str, project: Path = PROJECT) -> tuple[int, str]:
        return standins.play(BUILDER, "-i", str(INVENTORY), "playbooks/build.yml", *arguments, project=project)

    return run
