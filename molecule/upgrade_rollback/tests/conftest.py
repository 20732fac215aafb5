"""The stand-in of the fleet `upgrade`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT / "molecule" / "shared"))

from standin.settings import UPGRADE  # noqa: E402
from standin.testing import player, pytest_runtest_makereport, reach  # noqa: E402, F401


@pytest.fixture(scope="session")
def k80():
    """The host."""
    return reach(UPGRADE)


@pytest.fixture
def play():
    """Function that runs a playbook with further arguments: (exit status, what it printed)."""
    return player(UPGRADE, "upgrade_rollback")
