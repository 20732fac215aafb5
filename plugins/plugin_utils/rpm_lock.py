"""Renew rpms.yml of a lock by the packages that a host's repositories offer. Comments and order stay."""

from __future__ import annotations

import io
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from ..module_utils import rpms

PROVEN = "cuda-"  # how the name of the repository of driver and CUDA begins


def is_pinned(entry: dict) -> bool:
    """Return whether an entry keeps its version: a driver or a CUDA that something was proven with."""
    return rpms.is_exact(entry) and (entry["repo"].startswith(PROVEN) or "unit" in entry)


def put_last(entry: Any, old: str, new: str, value: str) -> None:
    """Replace the key `old` of a YAML mapping by `new`; a comment after it, which is about the next entry, stays."""
    comment = entry.ca.items.pop(old, None)
    entry.pop(old, None)
    entry[new] = value
    if comment:
        entry.ca.items[new] = comment


def renew_entry(entry: Any, kernels: str, offers: list[dict], today: str) -> str | None:
    """Renew one entry; what changed, or None. A version that is not on offer is no longer called verified.

    kernels: the lock's range of kernels.
    """
    before = rpms.spec(rpms.of_kernel(entry, kernels))
    arches = (entry["arch"],) if "arch" in entry else rpms.ARCHES
    same = [package for package in offers if package["name"] == entry["name"] and package["arch"] in arches]
    if rpms.is_exact(entry) and not is_pinned(entry) and same:
        best = rpms.newest(same)
        entry["epoch"] = best["epoch"]
        for name in ("version", "release"):
            if entry[name] != best[name]:
                entry[name] = DoubleQuotedScalarString(best[name])
    asked = rpms.of_kernel(entry, kernels)
    fitting = [package for package in same if rpms.accepts(asked, package)]
    moved = rpms.spec(asked) != before
    if fitting and (moved or not entry["verified"]):
        entry["verified"] = True
        where = ", ".join(sorted({package["repo"] for package in fitting}))
        old = "provenance" if "provenance" in entry else "reason"
        put_last(entry, old, "provenance", f"repository {where}, {today}")
        return f"{before}: {'now ' + rpms.spec(asked) if moved else 'verified'} ({where})"
    if not fitting and entry["verified"]:
        entry["verified"] = False
        put_last(entry, "provenance", "reason", f"no repository offered it on {today}")
        return f"{before}: no longer verified"
    return None


def renew(text: str, offers: list[dict], today: str) -> tuple[str, list[str], list[dict]]:
    """The lock's text renewed by `offers`, what changed, and the entries that nobody offers.

    today: the date that is written where an entry changes. Raises ValueError if the text is no lock.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.explicit_start = True
    try:
        lock = yaml.load(text)
        entries, kernels = lock["rpms"], lock["kernels"]["range"]
    except (YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"no lock of packages ({error})") from error
    changes = [change for entry in entries if (change := renew_entry(entry, kernels, offers, today))]
    absent = [
        entry for entry in entries
        if not any(rpms.accepts(rpms.of_kernel(entry, kernels), package) for package in offers)
    ]
    stream = io.StringIO()
    yaml.dump(lock, stream)
    return (stream.getvalue() if changes else text), changes, absent
