"""The form of all that checks find.

A finding is a mapping of five strings: severity (`error` or `warning`), variable (what to look at: a variable, or
`host` if no variable has a say), found, expected and next_step. A check returns all findings, never the first alone.
"""

import re

# Begin of a template.
MARK = re.compile("{(?=[{%#])")
SEVERITIES = ("error", "warning")


def finding(severity, variable, found, expected, next_step):
    """One finding. What it quotes is no template any more: Ansible would render it with the message."""
    parts = {"severity": severity, "variable": variable, "found": found, "expected": expected, "next_step": next_step}
    return {name: MARK.sub("{ ", part) for name, part in parts.items()}


def errors(findings):
    """Those that forbid to go on."""
    return [item for item in findings if item["severity"] == "error"]
