"""A second run finds nothing to do; first of the tests, since others change the hosts."""

from __future__ import annotations

import re

from conftest import play
from standin.settings import BUILDER


def test_a_second_run_changes_nothing():
    """Of the host's parts those that the builder has; the scenario `default` repeats the others."""
    status, printed = play("site.yml", "--skip-tags", "preflight,nvidia_driver")
    assert status == 0, printed[-3000:]
    changes = dict(re.findall(r" (\S+) : ok=\d+ changed=(\d+) ", printed))
    assert changes == {host.name: "0" for host in BUILDER.hosts}, printed[-3000:]
