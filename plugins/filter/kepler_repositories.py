"""Filters that check whether a host's dnf would install the locked packages, by what the module dnf_facts returned."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ansible_collections.kepler.vllm.plugins.module_utils import rpms
from ansible_collections.kepler.vllm.plugins.module_utils.dnf_settings import DNF_CONF
from ansible_collections.kepler.vllm.plugins.module_utils.findings import finding
from ansible_collections.kepler.vllm.plugins.plugin_utils.profiles import RPMS

BUNDLE = "kepler-offline"
# Parts of dnf's transaction that were not requested.
REMOVALS = ("Removing", "Removing dependent packages")
# The form of this project's messages.
MESSAGE = re.compile(r"(\S+): found (.*?); expected (.*?)\. (.*)", re.DOTALL)


def forms(package: dict) -> set[str]:
    """All texts that a pattern of dnf is compared with for one package."""
    name, arch = package["name"], package["arch"]
    versions = [package["version"], f"{package['version']}-{package['release']}"]
    versions += [f"{package['epoch'] or 0}:{version}" for version in versions]
    plain = [name, *(f"{name}-{version}" for version in versions)]
    return {*plain, *(f"{text}.{arch}" for text in plain)}


def matches(pattern: str, package: dict) -> bool:
    return any(fnmatchcase(form, pattern) for form in forms(package))


def hiding(exclusions: list[dict], package: dict) -> list[dict]:
    """The lines of dnf's settings that hide a package: excludes that match it, lists of includes that do not."""
    found: list[dict] = []
    includes: dict[str, list[dict]] = {}
    for rule in exclusions:
        everywhere = rule["section"] == "main" and rule["file"] == DNF_CONF
        if not everywhere and rule["section"] != package["repo"]:
            continue
        if rule["option"] == "includepkgs":
            includes.setdefault(rule["section"], []).append(rule)
        elif matches(rule["pattern"], package):
            found.append(rule)
    for rules in includes.values():
        if not any(matches(rule["pattern"], package) for rule in rules):
            found.append(rules[0])
    return found


def names_of_lock(pattern: str) -> set[str]:
    """The names that a line of the versionlock list may be about: its last parts are a version, or they are not."""
    without_release = pattern.rpartition("-")[0]
    return {pattern, pattern.rpartition(".")[0], without_release, without_release.rpartition("-")[0]} - {""}


def locking(locks: list[dict], package: dict) -> list[dict]:
    """The lines of the versionlock list that hide a package."""
    banning = [lock for lock in locks if lock["pattern"].startswith("!")]
    banned = [lock for lock in banning if matches(lock["pattern"][1:], package)]
    about = [
        lock for lock in locks
        if lock not in banning and any(fnmatchcase(package["name"], name) for name in names_of_lock(lock["pattern"]))
    ]
    return banned + ([] if any(matches(lock["pattern"], package) for lock in about) else about)


def settings_findings(
    offers: dict[str, list[dict]], rules: list[dict], hidden_by: Callable, what: str, next_step: str
) -> tuple[list[dict[str, str]], set[str]]:
    """One finding for each line that hides all acceptable packages of a name, and these names.

    offers: the acceptable packages on offer by the lock's entry as dnf takes it.
    """
    hit: dict[tuple[str, int], dict[str, Any]] = {}
    names = set()
    for spec, packages in offers.items():
        causes = [hidden_by(rules, package) for package in packages]
        if not all(causes):
            continue
        names.add(spec)
        for rule in (rule for cause in causes for rule in cause):
            line = hit.setdefault((rule["file"], rule["line"]), {"rule": rule, "specs": {}})
            line["specs"][spec] = None
    found = []
    for (path, number), line in hit.items():
        rule = line["rule"]
        text = f"{rule['option']}={rule['pattern']}" if "option" in rule else rule["pattern"]
        section = f" in [{rule['section']}]" if "section" in rule else ""
        found.append(finding(
            "error", "host", f"{path}, line {number}: {text}{section}, which hides {', '.join(line['specs'])} from dnf",
            f"no {what} of a locked package", next_step.format(path=path, line=number),
        ))
    return found, names


def failure_findings(dnf: dict) -> list[dict[str, str]]:
    """Findings about repositories that do not answer, or whose index is not complete."""
    found = []
    defined = {item["id"]: item for item in dnf["repositories"]}
    for name, reason in sorted(dnf["failures"].items()):
        home = defined.get(name)
        where = f"{home['file']}, line {home['line']}" if home else "a variable of the role repos"
        found.append(finding(
            "warning" if home and home["skip"] else "error", "host", f"the repository {name} ({where}): {reason}",
            "repositories that answer with a complete index: dnf installs nothing without",
            f"Look at `dnf --repo {name} makecache` on the host; correct the address, the proxy (proxy_env) or the "
            "mirror, or disable the repository.",
        ))
    if dnf["error"] and not dnf["failures"]:
        found.append(finding(
            "error", "host", f"dnf does not answer: {' '.join(dnf['error'].split())}", "a dnf that lists packages",
            "Correct what it says (`dnf repolist` on the host), then run again. A host without repositories: set "
            "preflight_repositories: false, or offline_bundle.",
        ))
    return found


def on_offer(entry: dict, offers: list[dict]) -> str:
    """The versions on offer of a locked name, newest first, each with its repository."""
    same = [package for package in offers if package["name"] == entry["name"]]
    described = []
    while same:
        newest = rpms.newest(same)
        text = f"{rpms.evr_text(newest)}.{newest['arch']} in {newest['repo']}"
        described += [text] if text not in described else []
        same.remove(newest)
    return ", ".join(described) or "nothing"


def missing_finding(missing: list[dict], offers: list[dict], host: str, bundle: bool, failed: bool) -> dict[str, str]:
    """The finding about all locked versions that are not on offer."""
    listed = "; ".join(f"{rpms.spec(entry)} (on offer: {on_offer(entry, offers)})" for entry in missing)
    if bundle:
        source = "the bundle"
        next_step = (
            "Make the bundle anew (`make bundle`) with the lock and the inventory of this checkout: CUDA is in it if a "
            "host that compiles has an instance of the port."
        )
    else:
        source = "no repository of the host"
        next_step = (
            f"Run `make lock-rpms HOST={host}` on the controller, which writes what this host's repositories offer "
            f"into {RPMS}; look at the difference, then run again."
        )
        if failed:
            next_step = f"Correct the repositories first. If they do not have it then: {next_step}"
    lacks = "does not hold" if bundle else "offers"
    found = f"{len(missing)} locked package(s) that {source} {lacks}: {listed}"
    return finding("error", RPMS, found, "every locked version on offer", next_step)


def newer_packages(entries: list[dict], installed: list[dict]) -> dict[str, str]:
    """Packages that are newer than the version which the lock names, as {name: both versions}.

    Kernels stand side by side.
    """
    return {
        entry["name"]: f"{entry['name']}-{rpms.evr_text(package)} (the lock names {rpms.evr_text(entry)})"
        for entry in filter(rpms.is_exact, entries) if entry.get("unit") != "kernel"
        for package in installed
        if package["name"] == entry["name"] and rpms.compare_evr(rpms.evr_of(package), rpms.evr_of(entry)) > 0
    }


def newer_findings(newer: dict[str, str]) -> list[dict[str, str]]:
    """The finding about packages that are newer than the lock's."""
    return [finding(
        "error", "host", f"{len(newer)} package(s) that are newer than the lock's: {', '.join(newer.values())}",
        "the locked versions, or none: no run downgrades a package",
        f"Remove them (dnf remove NAME) if nothing else needs them, or use a {RPMS} that names them. Then run again.",
    )] if newer else []


def kernel_finding(entries: list[dict], dnf: dict, packages: list[dict], bundle: bool) -> dict[str, str]:
    """The finding about packages of the host's kernel that are not on offer, with the ways out."""
    kernel, pattern = rpms.kernel_of(entries[0]), entries[0]["range"]
    there = [rpms.kernel_of(package) for package in dnf["installed"] if package["name"] == "kernel-core"]
    newer = [
        rpms.kernel_of(package) for package in packages + dnf["installed"]
        if package["name"] == "kernel-devel" and rpms.compare(rpms.kernel_of(package), kernel) > 0
    ]
    bootable = rpms.newest_kernel(pattern, [other for other in there if other in newer])
    newest = rpms.newest_kernel(pattern, newer)
    steps = []
    if bootable:
        steps.append(f"boot {bootable}, which is installed (grubby --set-default=/boot/vmlinuz-{bootable}; reboot)")
    if newest:
        steps.append(f"run playbooks/upgrade.yml, which takes {newest} and makes it boot")
    if bundle:
        steps.append(f"make the bundle anew: `ansible-playbook playbooks/bundle.yml -e bundle_kernels={kernel}`")
    else:
        steps.append(f"install {rpms.spec(entries[-1])} from the distribution's archive of old packages (vault)")
    text = "; or ".join(steps)
    listed = ", ".join(map(rpms.spec, entries))
    where = "the bundle lacks" if bundle else "is not on offer"
    return finding(
        "error", "host",
        f"the kernel {kernel}, and {listed}, which {where} (on offer: {on_offer(entries[-1], packages)})",
        "the headers of the kernel that runs: DKMS builds the driver's module with them",
        f"{text[0].upper()}{text[1:]}. Then run again.",
    )


def half_kernel_finding(entries: list[dict], packages: list[dict], bundle: bool) -> dict[str, str]:
    """The finding about kernels of the range, none of which is there with all its packages."""
    listed = "; ".join(
        f"{entry['name']} ({on_offer(entry, [package for package in packages if rpms.accepts(entry, package)])})"
        for entry in entries
    )
    next_step = (
        "Make the bundle anew (`make bundle`)." if bundle
        else "Wait until the mirror is in step, or use another one (`dnf --showduplicates list kernel-devel` shows what"
        " it has); then run again. The kernel that runs stays meanwhile."
    )
    return finding(
        "error", "host", f"no kernel of {entries[0]['range']} whose packages are all there: {listed}",
        "all of them in one version", next_step,
    )


def stream_findings(dnf: dict, streams: list[str]) -> list[dict[str, str]]:
    """Findings about module streams that nobody offers, or that the host has disabled."""
    found = [
        finding(
            "error", RPMS, f"the module stream {stream}, which no repository of the host offers",
            f"{stream} in the repositories' module metadata",
            "Use a repository or mirror that has its modules.yaml, or nvidia_driver_provider: runfile.",
        )
        for stream in dnf["missing_streams"]
    ]
    for stream in streams:
        name = stream.partition(":")[0]
        if dnf["modules"].get(name, {}).get("state") == "disabled":
            found.append(finding(
                "warning", "host", f"/etc/dnf/modules.d/{name}.module: the module {name} is disabled",
                f"{stream}, or none", f"Nothing now: the run enables {stream}. To keep it off, stop here.",
            ))
    return found


def added_findings(dnf: dict, added: list[str]) -> list[dict[str, str]]:
    """Findings about repositories of the host that have the name of one which the role repos adds, in another file."""
    return [
        finding(
            "error", "host", f"{item['file']}, line {item['line']}: a repository [{item['id']}] of the host's own",
            f"[{item['id']}] in {item['id']}.repo alone, which the role repos writes: dnf takes one of the two",
            f"Remove it there, or rename it and set enabled=0; its address can be repos_{item['id'].split('-')[0]}"
            "_baseurl.",
        )
        for item in dnf["repositories"] if item["id"] in added and Path(item["file"]).name != f"{item['id']}.repo"
    ]


def dry_run_findings(
    dnf: dict, explained: set[str], missing: bool, entries: list[dict], newer: dict[str, str]
) -> list[dict[str, str]]:
    """Findings of dnf itself about the installation.

    explained, newer: what other findings name already. missing: whether some packages are not on offer, and so not part
    of it.
    """
    found = []
    refused = {spec: reason for spec, reason in dnf["refusals"].items() if spec not in explained}
    if refused:
        listed = "; ".join(f"{spec} ({reason})" for spec, reason in refused.items())
        found.append(finding(
            "error", "host", f"dnf refuses locked packages that are on offer: {listed}",
            "a dnf that takes them",
            "Look for modules (`dnf module list --enabled`), priorities and plugins of dnf that hide them.",
        ))
    if dnf["problem"] and not missing:
        found.append(finding(
            "error", "host", f"dnf cannot install the locked packages: {' '.join(dnf['problem'].split())}",
            "a transaction that dnf resolves",
            "Enable the repositories that offer what is missing, or take back the setting that hides it.",
        ))
    downgraded = [name for name in dnf["transaction"].get("Downgrading", []) if name not in newer]
    if downgraded:
        found.append(finding(
            "error", "host", f"dnf would downgrade {', '.join(downgraded)} for the locked packages",
            "repositories that are as new as the host: no run takes fixes back",
            "Enable the repositories that these packages came from, or a mirror that is complete (`dnf "
            "--showduplicates list NAME`), then run again.",
        ))
    locked = {entry["name"] for entry in entries}
    removed = [name for title in REMOVALS for name in dnf["transaction"].get(title, []) if name not in locked]
    if removed:
        found.append(finding(
            "warning", RPMS, f"dnf would remove {', '.join(removed)} for the locked packages",
            "an installation that leaves them", "Look whether the host needs them. If not, go on.",
        ))
    return found


def repository_findings(
    dnf: dict, entries: list[dict], *, streams: list[str], added: list[str], host: str, bundle: list[dict] | None = None
) -> list[dict[str, str]]:
    """All findings about the installation of `entries` of the lock on a host.

    dnf: what the module dnf_facts returned. streams: module streams of the lock. added: names of the repositories that
    the role repos adds. bundle: the packages of the offline bundle, which stands for all repositories.
    """
    packages = dnf["offers"] if bundle is None else bundle
    entries = [entry for entry in entries if rpms.is_wanted(entry, dnf["installed"])]
    missing, offers = [], {}
    newer = newer_packages(entries, dnf["installed"])
    for entry in entries:
        if any(rpms.accepts(entry, package) for package in dnf["installed"]):
            continue
        fitting = [package for package in packages if rpms.accepts(entry, package)]
        if fitting:
            offers[rpms.spec(entry)] = fitting
        else:
            missing.append(entry)
    found = failure_findings(dnf) + newer_findings(newer)
    headers = [entry for entry in missing if entry.get("unit") == "kernel" and rpms.is_exact(entry)]
    others = [entry for entry in missing if entry not in headers]
    moving = [entry for entry in entries if "range" in entry and not rpms.is_exact(entry)]
    fitting = [one for one in packages + dnf["installed"] if any(rpms.accepts(entry, one) for entry in moving)]
    if moving and not missing and not rpms.whole_kernels(moving, fitting):
        found.append(half_kernel_finding(moving, fitting, bundle is not None))
    # If dnf gave no answer, the available packages are unknown.
    if headers and not dnf["error"]:
        found.append(kernel_finding(headers, dnf, packages, bundle is not None))
    if others and not dnf["error"]:
        found.append(missing_finding(others, packages, host, bundle is not None, bool(dnf["failures"])))
    excluded, explained = settings_findings(
        offers, dnf["exclusions"], hiding, "exclude or list of includes",
        "Take it out of {path}, line {line}, at least until the roles have run; dnf-automatic leaves locked packages "
        "alone by itself.",
    )
    locked, also = settings_findings(
        offers, dnf["locks"], locking, "version lock of somebody else's", "Take the line out: sed -i {line}d {path}",
    )
    if bundle is None:
        found += added_findings(dnf, added)
    return (
        found + excluded + locked + stream_findings(dnf, streams if offers or missing else [])
        + dry_run_findings(dnf, explained | also, bool(missing), entries, newer)
    )


def bundle_packages(files: list[str]) -> list[dict[str, Any]]:
    """The packages of an offline bundle, by their file names, which leave the epoch out."""
    found = []
    for file in files:
        text, _, arch = file.removesuffix(".rpm").rpartition(".")
        name, version, release = text.rsplit("-", 2)
        found.append({
            "name": name, "epoch": None, "version": version, "release": release, "arch": arch, "repo": BUNDLE,
        })
    return found


def message_findings(messages: list[str]) -> list[dict[str, str]]:
    """The messages of modules that did not pass, as errors."""
    found = []
    for message in filter(None, messages):
        parts = MESSAGE.fullmatch(message)
        what = parts.groups() if parts else ("host", message, "no such message", "Correct that, then run again.")
        found.append(finding("error", *what))
    return found


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {
            "bundle_packages": bundle_packages,
            "failure_findings": failure_findings,
            "message_findings": message_findings,
            "repository_findings": repository_findings,
        }
