"""The stand-in of the fleet `volta`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT / "molecule" / "shared"))

from standin import hosts  # noqa: E402
from standin.settings import VOLTA  # noqa: E402
from standin.testing import reach  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def v100():
    """The host. What it has unpacked is kept for the next run."""
    host = reach(VOLTA, "v100-standin")
    hosts.keep_outputs(VOLTA)
    return host


@pytest.fixture(scope="session")
def key() -> str:
    return (VOLTA.directory / "api-key").read_text()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Add the end of the server's log to a failure."""
    outcome = yield
    report = outcome.get_result()
    host = item.funcargs.get("v100")
    if report.failed and host:
        log = host.run("journalctl --unit vllm@demo --lines 40 --no-pager --output cat").stdout
        report.sections.append(("journal of vllm@demo", log))
