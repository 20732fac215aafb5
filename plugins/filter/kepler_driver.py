"""Filters that check the drivers, kernels and signatures of a host against the locked driver."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.kepler.vllm.plugins.module_utils import rpms
from ansible_collections.kepler.vllm.plugins.module_utils.findings import finding
from ansible_collections.kepler.vllm.plugins.plugin_utils.findings import shown
from ansible_collections.kepler.vllm.plugins.plugin_utils.profiles import RPMS

# Packages of the same driver from elsewhere, by the start of their names.
FOREIGN_DRIVERS = {
    "akmod-nvidia": "RPM Fusion",
    "xorg-x11-drv-nvidia": "RPM Fusion",
    "nvidia-x11-drv": "ELRepo",
    "kmod-nvidia-open-dkms": "NVIDIA's open kernel modules, which need a newer board",
    "dkms-nvidia": "negativo17",
}
# Packages of the module stream, where the driver is to come from NVIDIA's own installer.
STREAM_DRIVERS = ("nvidia-driver", "kmod-nvidia", "nvidia-kmod", "nvidia-modprobe", "nvidia-persistenced")
# DKMS's own pair of signing keys, used if nobody configures another.
DKMS_KEY, DKMS_CERTIFICATE = "/var/lib/dkms/mok.key", "/var/lib/dkms/mok.pub"
KEY_VARIABLE, CERTIFICATE_VARIABLE = "nvidia_driver_signing_key", "nvidia_driver_signing_certificate"


def installation_findings(host: dict, locked: dict, provider: str) -> list[dict[str, str]]:
    """Findings about drivers that came from elsewhere than from `provider`."""
    found = []
    stream = host["streams"].get("nvidia-driver")
    if stream and stream != locked["stream"]:
        found.append(finding(
            "error", "host", f"the module stream nvidia-driver:{stream}", f"nvidia-driver:{locked['stream']}, or none",
            "Remove that driver (dnf module remove nvidia-driver; dnf module reset nvidia-driver), then run again.",
        ))
    for name in host["packages"]:
        origin = next((value for prefix, value in FOREIGN_DRIVERS.items() if name.startswith(prefix)), None)
        if origin:
            found.append(finding(
                "error", "host", f"the package {name} ({origin})", "no other NVIDIA driver",
                f"Remove it (dnf remove {name}), reboot, then run again.",
            ))
    streamed = [name for name in host["packages"] if name.startswith(STREAM_DRIVERS)
                and not name.startswith(tuple(FOREIGN_DRIVERS))]
    if provider == "runfile" and streamed:
        found.append(finding(
            "error", "nvidia_driver_provider", f"runfile, and the packages {', '.join(streamed)}",
            "no package of NVIDIA's module stream beside NVIDIA's own installer",
            f"Keep them with nvidia_driver_provider: module_stream. Or remove them (dnf remove {' '.join(streamed)}; "
            "dnf module reset nvidia-driver), reboot, then run again.",
        ))
    if host["runfile"] and provider != "runfile":
        found.append(finding(
            "error", "host", "/usr/bin/nvidia-uninstall, which NVIDIA's own installer leaves", "no other NVIDIA driver",
            "Run nvidia-uninstall, reboot, then run again.",
        ))
    return found


def enrollment_steps(key: str, certificate: str, make: bool) -> str:
    """Commands with which an administrator makes the firmware trust the modules that DKMS signs."""
    steps = [
        f"mokutil --import {certificate}   # asks for a password that is needed once, at the next boot",
        "reboot; at the console, in the blue screen \"Perform MOK management\": Enroll MOK, Continue, Yes, the "
        "password, Reboot",
        f"mokutil --test-key {certificate}   # says \"is already enrolled\"",
        "run the playbook again",
    ]
    if make:
        steps.insert(0, (
            f"umask 077; mkdir -p {Path(key).parent}; openssl req -new -x509 -newkey rsa:2048 -nodes -days 36500 "
            f"-subj '/CN=DKMS module signing key' -outform DER -keyout {key} -out {certificate}"
        ))
    lines = "\n".join(f"    {number}. {step}" for number, step in enumerate(steps, 1))
    return f"Turn Secure Boot off in the firmware, or enroll the certificate:\n{lines}"


def signing_pair_findings(signing_key: Any, signing_certificate: Any) -> list[dict[str, str]]:
    """Findings about a key without its certificate, or the other way round; no host is needed for that."""
    if bool(signing_key) == bool(signing_certificate):
        return []
    given, other = (KEY_VARIABLE, CERTIFICATE_VARIABLE) if signing_key else (CERTIFICATE_VARIABLE, KEY_VARIABLE)
    return [finding(
        "error", other, shown(signing_certificate if signing_key else signing_key), f"a path, since {given} has one",
        f"Set both, or leave {given} out.",
    )]


def signing_findings(
    host: dict, locked: dict, signing_key: str, signing_certificate: str
) -> list[dict[str, str]]:
    """Findings about Secure Boot, and about the key that modules are signed with where the operator gives one.

    A locked driver that is loaded already has proven its signature.
    """
    found = []
    if signing_key:
        mode = host["signing_key"]
        if mode is None:
            found.append(finding(
                "error", KEY_VARIABLE, f"{signing_key}: nothing is there", "a private key on the host",
                "Correct the path, or copy the key to the host first.",
            ))
        elif mode["owner"] != 0 or mode["mode"] not in ("0400", "0600"):
            found.append(finding(
                "error", KEY_VARIABLE, f"{signing_key} of mode {mode['mode']} and user {mode['owner']}",
                "mode 0400 or 0600 and user 0: who reads the key can sign any module",
                f"chown root {signing_key}; chmod 0400 {signing_key}",
            ))
        if host["enrollment"] == "missing":
            found.append(finding(
                "error", CERTIFICATE_VARIABLE, f"{signing_certificate}: nothing is there",
                "the key's certificate on the host, in DER", "Correct the path, or copy the certificate first.",
            ))
    trusted = host["enrollment"] == "enrolled" or host["nvidia_version"] == locked["driver"]
    if not host["secure_boot"] or found or trusted:
        return found
    key, certificate = signing_key or DKMS_KEY, signing_certificate or DKMS_CERTIFICATE
    expected = "Secure Boot off, or a certificate that the firmware has enrolled: DKMS's modules are not the vendor's"
    if host["enrollment"] is None:
        return [finding(
            "error", "host", f"Secure Boot is on, and mokutil does not say whether {certificate} is enrolled", expected,
            "Install mokutil (dnf install mokutil), then run again.",
        )]
    if host["enrollment"] == "pending":
        return [finding(
            "error", "host", f"Secure Boot is on, and {certificate} waits to be enrolled", expected,
            "Reboot; at the console, in the blue screen \"Perform MOK management\": Enroll MOK, Continue, Yes, the "
            "password, Reboot. Then run again.",
        )]
    missing = host["enrollment"] == "missing"
    return [finding(
        "error", "host",
        f"Secure Boot is on, and {certificate} " + ("does not exist yet" if missing else "is not enrolled"), expected,
        enrollment_steps(key, certificate, make=missing),
    )]


def kernel_findings(host: dict, locked: dict, move: bool) -> list[dict[str, str]]:
    """Findings about a running kernel that the driver is not built for, or was not yet."""
    kernel, tested = host["kernel"], locked["kernels"]["tested"]
    wanted = f"{locked['kernels']['range']}.x86_64"
    if rpms.is_of_range(locked["kernels"]["range"], kernel):
        if kernel.removesuffix(".x86_64") in tested:
            return []
        return [finding(
            "warning", "host", f"the running kernel {kernel}", f"one that driver {locked['driver']} is known to build "
            f"for: {', '.join(tested) or 'none yet'}",
            "Nothing now: DKMS builds the module for it, and the run stops if that fails. Once it serves, add it to "
            f"kernels.tested in {RPMS}.",
        )]
    if move:
        return [finding(
            "warning", "host", f"the running kernel {kernel}", wanted,
            "Nothing now: nvidia_driver installs the newest one on offer and makes it boot once the driver is built "
            "for it; a reboot will be due.",
        )]
    there = rpms.newest_kernel(locked["kernels"]["range"], host["kernels"])
    steps = "Run playbooks/upgrade.yml, which installs the newest one on offer with the driver and makes it boot"
    if there:
        steps += f"; or boot {there}, which is installed (grubby --set-default=/boot/vmlinuz-{there})"
    return [finding(
        "error", "host", f"the running kernel {kernel}", f"{wanted}, which driver {locked['driver']} is built for",
        f"{steps}. Reboot, then run again.",
    )]


def driver_findings(
    host: dict,
    locked: dict,
    container: bool,
    provider: str = "module_stream",
    signing_key: str = "",
    signing_certificate: str = "",
    move: bool = False,
) -> list[dict[str, str]]:
    """Findings about drivers and kernels that the locked driver cannot live with.

    locked: the lock's `driver` version, `stream` and `kernels`. move: whether the run may move the driver to that and
    take a newer kernel. A container has its machine's kernel and drivers, so these are not checked there.
    """
    found = installation_findings(host, locked, provider)
    if host["driver_package"] not in (None, locked["driver"]) and not move:
        found.append(finding(
            "error", "nvidia_driver_move", f"driver {host['driver_package']} installed, and {locked['driver']} locked",
            "the locked one: no other playbook replaces a driver that servers may be using",
            "Run playbooks/upgrade.yml: it moves kernel and driver as one.",
        ))
    if container:
        return found
    found += kernel_findings(host, locked, move)
    found += signing_findings(host, locked, signing_key, signing_certificate)
    if "nouveau" in host["modules"]:
        found.append(finding(
            "warning", "host", "nouveau is loaded", "nouveau off",
            "Nothing now: nvidia_driver turns it off, and a reboot will be due.",
        ))
    if host["nvidia_version"] not in (None, locked["driver"]):
        found.append(finding(
            "warning", "host", f"the NVIDIA module {host['nvidia_version']} is loaded", locked["driver"],
            "Nothing now: nvidia_driver installs the locked one, and a reboot will be due.",
        ))
    return found


def dkms_states(status: str) -> dict[str, str]:
    """{kernel: state} of the lines that `dkms status -m nvidia -v VERSION` prints; the kernel is "" where it has none.

    A line is `nvidia/VERSION, KERNEL, ARCH: STATE`, with `nvidia, VERSION` in dkms before 3; remarks may follow.
    """
    found = {}
    for line in status.splitlines():
        name, colon, state = line.partition(": ")
        fields = name.replace("/", ", ", 1).split(", ")
        if colon and fields[0] == "nvidia":
            found[fields[2] if len(fields) > 2 else ""] = (state.split() or ["unknown"])[0]
    return found


def dkms_fault(status: str, driver: str, kernel: str) -> str:
    """Fault in DKMS's state of the driver's module for `kernel`; empty if the module is installed."""
    states = dkms_states(status)
    if states.get(kernel) == "installed":
        return ""
    if not states:
        return f"DKMS does not know nvidia/{driver}"
    if kernel in states:
        return f"the module is {states[kernel]} for this kernel, and not installed"
    others = sorted(name for name in states if name)
    return "no module for this kernel" + (f"; there is one for {', '.join(others)}" if others else "")


def module_fault(
    status: str, driver: str, *, kernel: str, version: str, signer: str, secure_boot: bool, headers: bool, log: dict
) -> str:
    """Message about the kernel's module that DKMS should have built and installed; empty where all is well.

    status: of dkms. version, signer: what modinfo says. headers: whether the kernel's headers are there. log: `path`
    and `tail` of the build's make.log.
    """
    fault = dkms_fault(status, driver, kernel)
    if not fault and version != driver:
        fault = f"DKMS calls it installed, and modinfo says version {version or 'nothing'}"
    elif not fault and secure_boot and not signer:
        fault = "it carries no signature, and Secure Boot is on"
    if not fault:
        return ""
    message = f"The nvidia module for kernel {kernel}: found: {fault}; expected version {driver}, installed by DKMS. "
    if not headers:
        return message + f"The headers of the kernel are missing: install kernel-devel-{kernel}, then run again."
    if not log["tail"]:
        return message + f"Look at dkms install -m nvidia -v {driver} -k {kernel} on the host, then run again."
    return message + f"Correct what the end of {log['path']} says, then run again:\n{log['tail']}"


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {
            "driver_findings": driver_findings,
            "signing_pair_findings": signing_pair_findings,
            "dkms_fault": dkms_fault,
            "module_fault": module_fault,
        }
