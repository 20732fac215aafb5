"""Filters that turn rpms.yml of the lock into what dnf, rpm and versionlock take."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from ansible.errors import AnsibleFilterError
from ansible_collections.kepler.vllm.plugins.module_utils import dnf_settings, rpms
from ansible_collections.kepler.vllm.plugins.plugin_utils.profiles import RPMS

NEVRA = re.compile(r"(?P<name>.+)-(?P<epoch>\d+):(?P<version>[^-]+)-(?P<release>[^-]+)\.(?P<arch>[^.]+)")
# The role whose packages a host may go without.
TOOLKIT = "cuda_toolkit"
# Packages that an installed kernel needs for the driver; the other packages of its unit come with one that is not.
OF_INSTALLED_KERNEL = ("kernel-core", "kernel-devel")


def parse(nevra: str) -> dict:
    """The package that `rpm -q` prints with EPOCHNUM as `name-epoch:version-release.arch`."""
    parts = NEVRA.fullmatch(nevra)
    if not parts:
        raise AnsibleFilterError(f"rpm: found '{nevra}'; expected name-epoch:version-release.arch.")
    return {**parts.groupdict(), "epoch": int(parts["epoch"])}


def locked_entries(lock: dict, role: str | None = None, kernel: str = "") -> list[dict]:
    """Entries of what `role` installs, or every role, in the order of the lock.

    kernel: the one, as `uname -r` prints it, that the packages of its unit are to have the version of; else any of the
    lock's range.
    """
    found = [
        rpms.of_kernel(entry, lock["kernels"]["range"], kernel)
        for entry in lock["rpms"] if role in (None, entry["role"])
    ]
    if not found:
        roles = ", ".join(sorted({entry["role"] for entry in lock["rpms"]}))
        raise AnsibleFilterError(
            f"{RPMS}: found no package of the role {role!r}; expected one of {roles}. Add it there."
        )
    return found


def locked_rpms(lock: dict, role: str | None = None, toolkit: bool = True) -> list[str]:
    """Packages of `role`, or of all roles, as dnf takes them, in the order of the lock; CUDA's only with `toolkit`."""
    return [rpms.spec(entry) for entry in locked_entries(lock, role) if toolkit or entry["role"] != TOOLKIT]


def locked_rpm(lock: dict, name: str) -> dict:
    """The lock's entry of the package `name`, which names one version."""
    for entry in lock["rpms"]:
        if entry["name"] == name and rpms.is_exact(entry):
            return entry
    raise AnsibleFilterError(
        f"{RPMS}: found no package {name!r} with a version; expected one. Add it there."
    )


def locked_version(lock: dict, name: str) -> str:
    """Version of the package `name`, without epoch and release."""
    return locked_rpm(lock, name)["version"]


def locked_driver(lock: dict) -> dict:
    """The driver's version and module stream, and the kernels that it is built for."""
    entry = locked_rpm(lock, "nvidia-driver")
    return {"driver": entry["version"], "stream": entry["stream"], "kernels": lock["kernels"]}


def newest_kernel(
    lock: dict, kernels: list[str], offered: Iterable[str] = (), installed: Iterable[str] = ()
) -> str:
    """The newest kernel of the lock's range, as `uname -r` prints it; empty if there is none.

    kernels: such names. offered, installed: NEVRAs of packages; a kernel counts that is whole there.
    """
    there = list(map(parse, installed))
    unit = [entry for entry in lock["rpms"] if entry.get("unit") == "kernel" and rpms.is_wanted(entry, there)]
    whole = rpms.whole_kernels(unit, [*map(parse, offered), *there])
    return rpms.newest_kernel(lock["kernels"]["range"], [*kernels, *whole])


def host_rpms(
    lock: dict, provider: str, python: bool, kernel: str = "", kernels: Collection[str] = (), toolkit: bool = True,
) -> list[dict]:
    """Entries of the packages that a host gets from dnf.

    provider: where the driver comes from; NVIDIA's installer brings its own. python: whether CPython is built there.
    kernel: see locked_entries. kernels: those that are installed. toolkit: whether it gets CUDA's.
    """
    return [
        entry for entry in locked_entries(lock, kernel=kernel)
        if (python or entry["role"] != "python") and (provider != "runfile" or "module" not in entry)
        and entry["role"] != "load_balancer" and (toolkit or entry["role"] != TOOLKIT)
        and (entry.get("unit") != "kernel" or kernel not in kernels or entry["name"] in OF_INSTALLED_KERNEL)
    ]


def installed_locks(entries: list[dict], installed: list[str]) -> list[str]:
    """Lines of dnf's versionlock list for `entries`, in the form that the plugin writes itself.

    installed: NEVRAs. Only entries that name one version are locked. If a package is there in another version, that one
    is locked: a run that failed must not free what it found.
    """
    packages, found = [parse(text) for text in installed], []
    for entry in filter(rpms.is_exact, entries):
        there = [package for package in packages if package["name"] == entry["name"]]
        found += [package for package in there if rpms.accepts(entry, package)] or there
    return [f"{package['name']}-{rpms.evr_text(package)}.*" for package in found]


def installed_of(entries: list[dict], installed: list[str]) -> list[str]:
    """Those of `installed` that have the name of an entry."""
    names = {entry["name"] for entry in entries}
    return [text for text in installed if parse(text)["name"] in names]


def rpms_to_install(entries: list[dict], installed: list[str]) -> list[str]:
    """Packages, as dnf takes them, that a host with `installed` (NEVRAs) lacks of `entries`."""
    there = [parse(text) for text in installed_of(entries, installed)]
    return [
        rpms.spec(entry) for entry in entries
        if rpms.is_wanted(entry, there) and not any(rpms.accepts(entry, package) for package in there)
    ]


def installed_instead(entries: list[dict], installed: list[str]) -> list[str]:
    """Those of `installed` that have the name of an entry which no package there fits."""
    lacking = [entry for entry in entries if rpms_to_install([entry], installed)]
    return installed_of(lacking, installed)


def downgrades(printed: str) -> list[str]:
    """Names of the packages that dnf would replace by older ones, by what `dnf --assumeno` printed."""
    return dnf_settings.transaction(printed).get("Downgrading", [])


def held_names(lock: dict) -> list[str]:
    """Names of the packages that no automatic update may move: those of one version, and the kernel's."""
    return sorted({
        entry["name"] for entry in lock["rpms"] if rpms.is_exact(entry) or entry.get("unit") == "kernel"
    })


def locked_streams(lock: dict) -> list[str]:
    """Module streams that the lock's packages come from, as dnf takes them."""
    return [f"{module['name']}:{module['stream']}" for module in lock["modules"]]


def bundle_keys(fingerprints: list[str], directory: str) -> list[dict[str, str]]:
    """The keys of the unpacked bundle `directory` in the form that rpm_signing_keys takes."""
    return [
        {"key": f"{directory}/keys/{fingerprint}.asc", "fingerprint": fingerprint, "variable": "offline_bundle"}
        for fingerprint in fingerprints
    ]


class FilterModule:
    def filters(self) -> dict:
        return {
            "bundle_keys": bundle_keys,
            "downgrades": downgrades,
            "held_names": held_names,
            "host_rpms": host_rpms,
            "installed_locks": installed_locks,
            "installed_instead": installed_instead,
            "locked_driver": locked_driver,
            "locked_entries": locked_entries,
            "locked_rpms": locked_rpms,
            "locked_streams": locked_streams,
            "locked_version": locked_version,
            "newest_kernel": newest_kernel,
            "rpms_to_install": rpms_to_install,
        }
