"""Filters that report findings; see module_utils/findings.py for their form."""

from __future__ import annotations

from collections.abc import Callable

from ansible_collections.kepler.vllm.plugins.module_utils.findings import SEVERITIES, errors


def worst_first(findings: list[dict[str, str]]) -> list[dict[str, str]]:
    return sorted(findings, key=lambda item: SEVERITIES.index(item["severity"]))


def findings_report(findings: list[dict[str, str]]) -> list[str]:
    """One line for each finding, worst first."""
    return [
        "{severity}: {variable}: found {found}; expected {expected}. {next_step}".format(**item)
        for item in worst_first(findings)
    ]


def findings_errors(findings: list[dict[str, str]]) -> int:
    """Return how many of the findings are errors."""
    return len(errors(findings))


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {
            "worst_first": worst_first,
            "findings_report": findings_report,
            "findings_errors": findings_errors,
        }
