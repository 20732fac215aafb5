"""The stand-in of the fleet `update`."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT / "molecule" / "shared"))

from standin.settings import UPDATE  # noqa: E402
from standin.testing import player, pytest_runtest_makereport, reach  # noqa: E402, F401


@pytest.fixture(scope="session")
def k80():
    """The host."""
    return reach(UPDATE)


@pytest.fixture(scope="session")
def lock():
    return yaml.safe_load((PROJECT / "profiles" / "k80" / "lock" / "rpms.yml").read_text())


@pytest.fixture
def play():
    """Function that runs playbooks/host.yml with further arguments: (exit status, what it printed)."""
    return functools.partial(player(UPDATE, "kernel_update"), "playbooks/host.yml")
