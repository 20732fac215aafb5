"""The stand-ins of the fleet `builder`."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT / "molecule" / "shared"))

from standin.settings import BUILDER  # noqa: E402
from standin.testing import inventory_of, player, pytest_runtest_makereport, reach  # noqa: E402, F401

INVENTORY = inventory_of("builder")
play = player(BUILDER, "builder")


@pytest.fixture(scope="session")
def fleet():
    """The hosts by their names."""
    return {host.name: reach(BUILDER, host.name) for host in BUILDER.hosts}


@pytest.fixture(scope="session")
def build():
    """Function that runs playbooks/build.yml with further arguments: (exit status, what it printed)."""
    return functools.partial(play, "playbooks/build.yml")
