"""Filters that turn files/lock/rpms.yml into what dnf, rpm and versionlock take."""

from __future__ import annotations

from ansible.errors import AnsibleFilterError


def nevra(entry: dict) -> str:
    """`name-epoch:version-release.arch` of one lock entry: dnf takes it, and `rpm -q` prints it with EPOCHNUM."""
    return f"{entry['name']}-{entry['epoch']}:{entry['version']}-{entry['release']}.{entry['arch']}"


def locked_rpms(lock: dict, role: str | None = None) -> list[str]:
    """NEVRAs of what `role` installs, or every role, in the order of the lock."""
    found = [nevra(entry) for entry in lock["rpms"] if role in (None, entry["role"])]
    if not found:
        roles = ", ".join(sorted({entry["role"] for entry in lock["rpms"]}))
        raise AnsibleFilterError(
            f"files/lock/rpms.yml: found no package of the role {role!r}; expected one of {roles}. Add it there."
        )
    return found


def locked_rpm(lock: dict, name: str) -> dict:
    """The lock's entry of the package `name`."""
    for entry in lock["rpms"]:
        if entry["name"] == name:
            return entry
    raise AnsibleFilterError(f"files/lock/rpms.yml: found no package {name!r}; expected one. Add it there.")


def locked_version(lock: dict, name: str) -> str:
    """Version of the package `name`, without epoch and release."""
    return locked_rpm(lock, name)["version"]


def locked_kernel(lock: dict) -> str:
    """The locked kernel as `uname -r` prints it."""
    entry = locked_rpm(lock, "kernel")
    return f"{entry['version']}-{entry['release']}.{entry['arch']}"


def locked_driver(lock: dict) -> dict[str, str]:
    """The driver's version and module stream and the kernel that it is locked with."""
    entry = locked_rpm(lock, "nvidia-driver")
    return {"driver": entry["version"], "stream": entry["stream"], "kernel": locked_kernel(lock)}


def installed_locks(wanted: list[str], installed: list[str]) -> list[str]:
    """What the versionlock list of dnf holds for `wanted`, in the form that the plugin writes itself.

    wanted: packages as dnf takes them. installed: NEVRAs. If a package is there in another version than the wanted one,
    that version is locked: a run that failed must not free what it found.
    """
    there = set(installed)
    found = []
    for text in wanted:
        name = package_name(text)
        found += [text] if text in there else [other for other in installed if package_name(other) == name]
    return [f"{text.rpartition('.')[0]}.*" for text in found]


def host_rpms(lock: dict, provider: str, python: bool) -> list[dict]:
    """Entries of the packages that a host gets from dnf.

    provider: where the driver comes from; NVIDIA's installer brings its own. python: whether CPython is built there.
    """
    return [
        entry for entry in lock["rpms"]
        if (python or entry["role"] != "python310") and (provider != "runfile" or "module" not in entry)
        and entry["role"] != "load_balancer"
    ]


def locked_names(lock: dict) -> list[str]:
    """Names of every package of the lock."""
    return sorted({entry["name"] for entry in lock["rpms"]})


def locked_streams(lock: dict) -> list[str]:
    """Module streams that the lock's packages come from, as dnf takes them."""
    return [f"{module['name']}:{module['stream']}" for module in lock["modules"]]


def bundle_keys(fingerprints: list[str], directory: str) -> list[dict[str, str]]:
    """The keys of the unpacked bundle `directory` in the form that rpm_signing_keys takes."""
    return [
        {"key": f"{directory}/keys/{fingerprint}.asc", "fingerprint": fingerprint, "variable": "offline_bundle"}
        for fingerprint in fingerprints
    ]


def package_name(text: str) -> str:
    """Package name of a NEVRA, or of a name with a condition such as `dkms >= 3.0`."""
    name, space, _ = text.partition(" ")
    return name if space or ":" not in text else text.rsplit("-", 2)[0]


def rpms_to_install(wanted: list[str], installed: list[str], exact: bool) -> list[str]:
    """NEVRAs of `wanted` that have to be installed where `installed` are there.

    With `exact` false a package that is there in another version stays as it is.
    """
    names = {package_name(text) for text in installed}
    there = set(installed)
    return [text for text in wanted if text not in there and (exact or package_name(text) not in names)]


class FilterModule:
    def filters(self) -> dict:
        return {
            "bundle_keys": bundle_keys,
            "host_rpms": host_rpms,
            "installed_locks": installed_locks,
            "locked_names": locked_names,
            "locked_rpms": locked_rpms,
            "locked_streams": locked_streams,
            "locked_version": locked_version,
            "locked_driver": locked_driver,
            "rpms_to_install": rpms_to_install,
        }
