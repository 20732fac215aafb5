"""The stand-ins of the fleet `volta_hosts`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT / "molecule" / "shared"))

from standin import hosts  # noqa: E402
from standin.settings import VOLTA_HOSTS  # noqa: E402
from standin.testing import inventory_of, pytest_runtest_makereport, reach  # noqa: E402, F401

INVENTORY = inventory_of("volta_hosts")


@pytest.fixture(scope="session")
def fleet():
    """The hosts by their names. What the builder has unpacked is kept for the next run."""
    hosts.keep_outputs(VOLTA_HOSTS)
    return {host.name: reach(VOLTA_HOSTS, host.name) for host in VOLTA_HOSTS.hosts}
