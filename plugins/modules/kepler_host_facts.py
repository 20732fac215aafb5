#!/usr/bin/python
"""Read what the roles decide on: release, boards, drivers, ports, paths, disk. Changes nothing."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

import os
import platform

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.host import facts

DOCUMENTATION = r"""
module: kepler_host_facts
short_description: What an EL8 host with Kepler boards says about itself
description:
  - Reads the release, the NVIDIA functions on the PCI bus, loaded drivers, enabled module streams, listening
    ports with the unit that holds them, paths and free disk space.
  - Reads only. It judges nothing; the filter P(host_findings#filter) does.
options:
  pci_root:
    description: Directory of the PCI functions in sysfs.
    type: path
    default: /sys/bus/pci/devices
  paths:
    description: Paths of which to say whether they exist.
    type: list
    elements: str
    default: []
  ports:
    description: TCP ports of which to say who listens there.
    type: list
    elements: int
    default: []
  disks:
    description: Paths of which to say how much space is free; the nearest directory above counts where one is missing.
    type: list
    elements: path
    default: []
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: Read the host
  kepler_host_facts:
    ports: [8000]
    disks: [/opt/kepler]
  register: host
"""

RETURN = r"""
host:
  description:
    - >-
      C(os) (id, version_id, pretty_name), C(architecture), C(kernel), C(init) (name of process 1),
      C(secure_boot), C(pci) (list of address, vendor, device, driver), C(modules) (names of loaded ones),
      C(nvidia_version) (of the loaded module, or none), C(streams) (enabled dnf module streams by module),
      C(packages) (names of the installed RPMs), C(runfile) (whether NVIDIA's own installer was used),
      C(paths) (path to directory, file or none), C(ports) (list of port, address, pid, command, unit) and
      C(free) (path to bytes).
  type: dict
  returned: success
"""

EFI_SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def secure_boot():
    """Whether the firmware enforces signatures. The variable is four bytes of attributes and one of value."""
    try:
        with open(EFI_SECURE_BOOT, "rb") as stream:
            return stream.read()[4:5] == b"\x01"
    except OSError:  # no UEFI, or a container
        return False


def kind(path):
    """`directory`, `file`, or None where `path` does not exist."""
    if os.path.isdir(path):
        return "directory"
    return "file" if os.path.exists(path) else None


def ports(wanted):
    """Who listens on the ports `wanted`: [{port, address, pid, command, unit}]."""
    sockets = [
        entry
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for entry in facts.listeners(facts.read(table))
        if entry["port"] in wanted
    ]
    held = facts.holders([entry["inode"] for entry in sockets]) if sockets else {}
    nobody = {"pid": None, "command": None, "unit": None}
    return [dict(held.get(entry["inode"], nobody), port=entry["port"], address=entry["address"]) for entry in sockets]


def main():
    module = AnsibleModule(
        argument_spec={
            "pci_root": {"type": "path", "default": "/sys/bus/pci/devices"},
            "paths": {"type": "list", "elements": "str", "default": []},
            "ports": {"type": "list", "elements": "int", "default": []},
            "disks": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    release = facts.os_release(facts.read("/etc/os-release"))
    packages = ""
    if module.get_bin_path("rpm"):  # a host that is not EL8 is judged, not a reason to break off
        _, packages, _ = module.run_command(["rpm", "-qa", "--qf", "%{NAME}\n"], check_rc=True)
    module.exit_json(changed=False, host={
        "os": {key: release.get(key.upper(), "") for key in ("id", "version_id", "pretty_name")},
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "init": facts.read("/proc/1/comm"),
        "secure_boot": secure_boot(),
        "pci": facts.nvidia_devices(module.params["pci_root"]),
        "modules": facts.modules(facts.read("/proc/modules")),
        "nvidia_version": facts.read("/sys/module/nvidia/version"),
        "streams": facts.dnf_module_streams("/etc/dnf/modules.d"),
        "packages": sorted(set(packages.split())),
        "runfile": os.path.exists("/usr/bin/nvidia-uninstall"),
        "paths": {path: kind(path) for path in module.params["paths"]},
        "ports": ports(set(module.params["ports"])),
        "free": {path: facts.free_bytes(path) for path in module.params["disks"]},
    })


if __name__ == "__main__":
    main()
