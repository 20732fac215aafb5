#!/usr/bin/python
"""Read what the roles decide on: release, boards, drivers, ports, paths, disk. Changes nothing."""

DOCUMENTATION = r"""
module: kepler_host_facts
short_description: What a host with GPUs says about itself
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Reads the release, the NVIDIA functions on the PCI bus, loaded drivers, enabled module streams, listening
    ports with the unit that holds them, paths and free disk space.
  - Reads only. It checks nothing; the filter P(kepler.vllm.host_findings#filter) does.
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
  readable:
    description: Files and directories of which to say what keeps O(user) from reading them, and all below them.
    type: list
    elements: str
    default: []
  user:
    description: Who is to read these; a user that does not exist yet counts by the modes for everybody else.
    type: str
    default: vllm
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
  programs:
    description: Paths of which to say whether their file system lets programs run.
    type: list
    elements: path
    default: []
  health:
    description:
      - Whether to read the kernel's journal for Xids and lost GPUs and, where the driver is loaded, ECC counts and the
        processes on the GPUs.
    type: bool
    default: false
  signing_key:
    description: Private key that DKMS signs modules with, of which to say who may read it.
    type: path
  signing_certificate:
    description: Certificate of that key, of which to say whether the firmware has it enrolled.
    type: path
"""

EXAMPLES = r"""
- name: Read the host
  kepler.vllm.kepler_host_facts:
    ports: [8000]
    disks: [/opt/kepler]
  register: host
"""

RETURN = r"""
host:
  description:
    - >-
      C(os) (id, version_id, pretty_name), C(architecture), C(glibc) (its version), C(kernel) (the running one),
      C(kernels) (the installed ones), C(init) (name of process 1), C(cpu_flags), C(memory) (bytes), C(secure_boot),
      C(pci) (list of address, vendor, device, class, driver, bar1, width, max_width, bridges, slot, iommu),
      C(nvidia_gpus) (addresses that the
      loaded driver holds, or none), C(iommu) (groups, passthrough), C(modules) (names of loaded ones),
      C(nvidia_version) (of the loaded module, or none), C(streams) (enabled dnf module streams by module),
      C(packages) (names of the installed RPMs), C(driver_package) (version of nvidia-driver, or none),
      C(runfile) (whether NVIDIA's own installer was used),
      C(paths) (path to directory, file or none), C(unreadable) (path to path and found of what keeps the user from
      it, or none), C(ports) (list of port, address, pid, command, unit),
      C(free) (path to mount and bytes), C(programs) (list of path, mount, noexec), C(dkms) (the same of the directory
      that DKMS builds in), C(fapolicyd) (directories that its rules open to everybody, or none if it does not keep
      anything from running), C(xids) (list of address, xid, count, last, text),
      C(driver_faults) (list of address, count, last, text), C(ecc) (list of address, mode, volatile, aggregate, or of
      address and fault), C(gpu_processes) (list of address, pid, command, unit), C(signing_key) (mode and owner, or
      none) and C(enrollment) (of the certificate).
  type: dict
  returned: success
"""

import glob
import os
import platform
import stat

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils import access, facts
from ansible_collections.kepler.vllm.plugins.module_utils.gpu import pci, smi, xid

EFI_SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
DKMS_SETTINGS = "/etc/dkms/framework.conf"
FAPOLICYD = "/etc/fapolicyd"
NVIDIA_VERSION = "/sys/module/nvidia/version"
NVIDIA_GPUS = "/proc/driver/nvidia/gpus"
SMI_TIMEOUT = 60  # seconds: the first question after a boot initializes the GPUs
PACKAGE_FORMAT = "%{NAME} %{VERSION} %{RELEASE} %{ARCH}\n"


def secure_boot():
    """Return whether the firmware enforces signatures. The variable is four bytes of attributes and one of value."""
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
    """Listeners on the ports `wanted`: [{port, address, pid, command, unit}]."""
    sockets = [
        entry
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for entry in facts.listeners(facts.read(table))
        if entry["port"] in wanted
    ]
    held = facts.holders([entry["inode"] for entry in sockets]) if sockets else {}
    nobody = {"pid": None, "command": None, "unit": None}
    return [dict(held.get(entry["inode"], nobody), port=entry["port"], address=entry["address"]) for entry in sockets]


def driver_journal(module):
    """Lines of the kernel's journal, of all boots that it holds, that name an Xid or a lost GPU."""
    if not module.get_bin_path("journalctl"):
        return ""
    _, lines, _ = module.run_command([
        "journalctl", "--quiet", "--no-pager", "--output=short-iso",
        "--grep=" + xid.GREP, "_TRANSPORT=kernel",
    ])
    return lines


def loaded_smi(module):
    """Path of nvidia-smi, or None: a driver is not asked before it is loaded."""
    return module.get_bin_path("nvidia-smi") if facts.read(NVIDIA_VERSION) is not None else None


def gpu_processes(module):
    """Processes that compute on GPUs: [{address, pid, command, unit}]. What nvidia-smi cannot tell, `ecc` reports."""
    program = loaded_smi(module)
    fine, text = smi.query(program, ("gpu_bus_id", "pid"), SMI_TIMEOUT, "compute-apps") if program else (False, "")
    return [
        dict(facts.process(pid), address=bus) for bus, pid in smi.rows(text, 2) if pid.isdigit()
    ] if fine else []


def ecc(module):
    """ECC counts of the GPUs, or the error of nvidia-smi."""
    program = loaded_smi(module)
    if not program:
        return []
    fine, text = smi.query(program, smi.ECC_FIELDS, SMI_TIMEOUT)
    found = smi.ecc(text)
    if not fine and not any("fault" in die for die in found):
        found.append({"address": None, "fault": "nvidia-smi failed after its answer"})
    return found


def dkms_tree():
    """Directory that DKMS builds in."""
    settings = [DKMS_SETTINGS] + sorted(glob.glob(DKMS_SETTINGS + ".d/*.conf"))
    return facts.dkms_tree(facts.read(path) for path in settings)


def fapolicyd():
    """Directories that fapolicyd's rules open to everybody; None if it does not run, or refuses nothing."""
    if not facts.runs("fapolicyd") or facts.is_permissive(facts.read(FAPOLICYD + "/fapolicyd.conf")):
        return None
    return facts.allowed_directories(facts.read(path) for path in glob.glob(FAPOLICYD + "/rules.d/*.rules"))


def key_mode(path):
    """{mode, owner} of a private key, or None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return {"mode": "%04o" % stat.S_IMODE(status.st_mode), "owner": status.st_uid}


def enrollment(module, certificate):
    """Return whether the firmware has `certificate`: see facts.enrollment; `missing` where there is no such file."""
    if not certificate or not os.path.exists(certificate):
        return "missing"
    if not module.get_bin_path("mokutil"):
        return None
    _, out, err = module.run_command(["mokutil", "--test-key", certificate])
    return facts.enrollment(out + err)


def main():
    module = AnsibleModule(
        argument_spec={
            "pci_root": {"type": "path", "default": "/sys/bus/pci/devices"},
            "paths": {"type": "list", "elements": "str", "default": []},
            "readable": {"type": "list", "elements": "str", "default": []},
            "user": {"type": "str", "default": "vllm"},
            "ports": {"type": "list", "elements": "int", "default": []},
            "disks": {"type": "list", "elements": "path", "default": []},
            "programs": {"type": "list", "elements": "path", "default": []},
            "health": {"type": "bool", "default": False},
            "signing_key": {"type": "path", "no_log": False},  # a path, not the key
            "signing_certificate": {"type": "path"},
        },
        supports_check_mode=True,
    )
    release = facts.os_release(facts.read("/etc/os-release"))
    packages = ""
    if module.get_bin_path("rpm"):  # no such host: the controller reports that with its other findings
        _, packages, _ = module.run_command(["rpm", "-qa", "--qf", PACKAGE_FORMAT], check_rc=True)
    journal = driver_journal(module) if module.params["health"] else ""
    installed = [fields for fields in map(str.split, packages.splitlines()) if len(fields) == 4]
    versions = {fields[0]: fields[1] for fields in installed}
    module.exit_json(changed=False, host={
        "os": {key: release.get(key.upper(), "") for key in ("id", "version_id", "pretty_name")},
        "architecture": platform.machine(),
        "glibc": facts.glibc(),
        "kernel": platform.release(),
        "kernels": ["{1}-{2}.{3}".format(*fields) for fields in installed if fields[0] == "kernel-core"],
        "init": facts.read("/proc/1/comm"),
        "cpu_flags": facts.cpu_flags(facts.read("/proc/cpuinfo")),
        "memory": facts.memory_bytes(facts.read("/proc/meminfo")),
        "secure_boot": secure_boot(),
        "pci": pci.nvidia_devices(module.params["pci_root"]),
        "nvidia_gpus": pci.driver_gpus(NVIDIA_GPUS),
        "iommu": pci.iommu("/sys/kernel/iommu_groups", facts.read("/proc/cmdline")),
        "modules": facts.modules(facts.read("/proc/modules")),
        "nvidia_version": facts.read(NVIDIA_VERSION),
        "streams": facts.dnf_module_streams("/etc/dnf/modules.d"),
        "packages": sorted(versions),
        "driver_package": versions.get("nvidia-driver"),
        "runfile": os.path.exists("/usr/bin/nvidia-uninstall"),
        "paths": {path: kind(path) for path in module.params["paths"]},
        "unreadable": {path: access.unreadable(path, module.params["user"]) for path in module.params["readable"]},
        "ports": ports(set(module.params["ports"])),
        "free": {path: facts.free_space(path) for path in module.params["disks"]},
        "programs": [facts.executability(path) for path in module.params["programs"]],
        "dkms": facts.executability(dkms_tree()),
        "fapolicyd": fapolicyd(),
        "xids": xid.xids(journal),
        "driver_faults": xid.losses(journal),
        "ecc": ecc(module) if module.params["health"] else [],
        "gpu_processes": gpu_processes(module) if module.params["health"] else [],
        "signing_key": key_mode(module.params["signing_key"]) if module.params["signing_key"] else None,
        "enrollment": enrollment(module, module.params["signing_certificate"]),
    })


if __name__ == "__main__":
    main()
