#!/usr/bin/python
"""Check that a server answers."""

DOCUMENTATION = r"""
module: vllm_ready
short_description: Wait until the server of a unit answers
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment:
  - kepler.vllm.attributes
  - kepler.vllm.server
description:
  - Looks at the unit C(vllm@NAME.service) and asks its C(/health). The action plugin of this name asks again until the
    server answers, the unit fails or the time is over, and shows what the unit is at meanwhile.
options:
  timeout:
    description: Longest time in seconds that the action plugin waits.
    type: int
    default: 1800
  late:
    description: The time is over; the action plugin sets it.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Only looks.
"""

EXAMPLES = r"""
- name: Wait for the first answer
  kepler.vllm.vllm_ready:
    name: main
    port: 8000
"""

RETURN = r"""
running:
  description: Whether the server does not answer yet.
  type: bool
  returned: success
progress:
  description: What the unit is at.
  type: str
  returned: success
"""

import urllib.request

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils.server.api import (
    SERVER_OPTIONS,
    UNANSWERED,
    base_url,
    open_url,
    quarantine_headers,
)

# Starts within the unit's limit of restarts; more than these are a loop.
RESTARTS = 3
LOG_LINES = 15


def show_unit(module, unit):
    """Properties of the unit as systemd shows them."""
    properties = ["ActiveState", "SubState", "NRestarts", "StatusText", "Job", "LoadState"]
    command = ["systemctl", "show", unit, "--property", ",".join(properties)]
    listed = module.run_command(command, check_rc=True)[1]
    return dict(line.partition("=")[::2] for line in listed.splitlines())


def journal(module, unit, lines):
    """Last lines of the unit's log since its last start."""
    command = ["journalctl", "--unit", unit, "--lines", str(lines), "--output", "cat", "--no-pager", "--quiet"]
    return module.run_command(command)[1].strip()


def is_healthy(name, host, port):
    """Return whether /health answers 200; it needs no key."""
    try:
        request = urllib.request.Request(base_url(host, port) + "/health", headers=quarantine_headers(name))
        return open_url(request, 5).getcode() == 200
    except UNANSWERED + (ValueError,):
        return False


def main():
    module = AnsibleModule(
        argument_spec={
            **SERVER_OPTIONS,
            "timeout": {"type": "int", "default": 1800},
            "late": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    unit = "vllm@%s.service" % module.params["name"]
    state = show_unit(module, unit)
    address = base_url(module.params["host"], module.params["port"])
    if state.get("LoadState") == "not-found":
        module.fail_json(msg="%s: found no such unit; expected an answer of %s. Run site.yml for this host first."
                         % (unit, address))
    status = state.get("StatusText")
    found = "%s (%s), %s restarts" % (state["ActiveState"], state["SubState"], state.get("NRestarts", "0"))
    found += " (%s)" % status if status else ""
    # While a unit starts, its job stays. In other states a pending job means that systemd has not acted yet.
    pending = bool(state.get("Job")) and state["ActiveState"] != "activating"
    if state["ActiveState"] == "active" and not pending and is_healthy(
        module.params["name"], module.params["host"], module.params["port"]
    ):
        module.exit_json(changed=False, running=False, progress=found)
    gave_up = not pending and (
        state["ActiveState"] in ("failed", "inactive") or int(state.get("NRestarts") or 0) >= RESTARTS
    )
    if gave_up or module.params["late"]:
        module.fail_json(
            msg="%s: found %s after %s; expected an answer of %s/health. Correct the cause that the log names, then "
            "run the play again. Last lines of `journalctl -u %s`:\n%s"
            % (unit, found, "its last start" if gave_up else "%d s" % module.params["timeout"], address, unit,
               journal(module, unit, LOG_LINES))
        )
    module.exit_json(changed=False, running=True, progress=status or found)


if __name__ == "__main__":
    main()
