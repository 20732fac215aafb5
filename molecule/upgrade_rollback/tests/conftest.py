"""The stand-in of the fleet `upgrade`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import testinfra

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT / "molecule" / "shared"))

from standin import engine  # noqa: E402
from standin import hosts as standins  # noqa: E402
from standin.settings import UPGRADE  # noqa: E402

INVENTORY = PROJECT / "molecule" / "upgrade_rollback" / "inventory"


@pytest.fixture(scope="session")
def k80():
    """The host; testinfra finds the engine by DOCKER_HOST."""
    engine.ensure()
    return testinfra.get_host(f"docker://{UPGRADE.container('k80-standin')}")


@pytest.fixture
def play():
    """Function that runs a playbook with further variables: (exit status, what it printed)."""

    def run(playbook: str, *variables: str) -> tuple[int, str]:
        arguments = [part for variable in variables for part in ("-e", variable)]
        return standins.play(UPGRADE, "-i", str(INVENTORY), playbook, *arguments)

    return run
