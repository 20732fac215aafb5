"""The stand-in of the fleet `update`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import testinfra
import yaml

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT / "molecule" / "shared"))

from standin import engine  # noqa: E402
from standin import hosts as standins  # noqa: E402
from standin.settings import UPDATE  # noqa: E402

INVENTORY = PROJECT / "molecule" / "kernel_update" / "inventory"


@pytest.fixture(scope="session")
def k80():
    """The host; testinfra finds the engine by DOCKER_HOST."""
    engine.ensure()
    return testinfra.get_host(f"docker://{UPDATE.container('k80-standin')}")


@pytest.fixture(scope="session")
def lock():
    return yaml.safe_load((PROJECT / "files" / "lock" / "rpms.yml").read_text())


@pytest.fixture
def play():
    """Function that runs playbooks/host.yml with further arguments: (exit status, what it printed)."""

    def run(*arguments: str) -> tuple[int, str]:
        return standins.play(UPDATE, "-i", str(INVENTORY), "playbooks/host.yml", *arguments)

    return run
