"""The stand-ins of the fleet `offline`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import testinfra

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT / "molecule" / "shared"))

from standin import engine  # noqa: E402
from standin import hosts as standins  # noqa: E402
from standin.settings import OFFLINE  # noqa: E402

INVENTORY = PROJECT / "molecule" / "offline" / "inventory"
BUNDLE = OFFLINE.directory / "kepler-bundle.tar"


@pytest.fixture(scope="session")
def k80():
    """The host without a network; testinfra finds the engine by DOCKER_HOST."""
    engine.ensure()
    return testinfra.get_host(f"docker://{OFFLINE.container('k80-standin')}")


@pytest.fixture
def play():
    """Function that runs a playbook with further arguments: (exit status, what it printed)."""

    def run(playbook: str, *arguments: str) -> tuple[int, str]:
        return standins.play(OFFLINE, "-i", str(INVENTORY), playbook, *arguments)

    return run
