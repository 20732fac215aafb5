#!/usr/bin/python
"""Download packages with all that they need, whatever is installed."""

DOCUMENTATION = r"""
module: rpm_download
short_description: Download packages with all that they need, whatever is installed
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Resolves the packages with the host's repositories as if nothing were installed, downloads every package of the
    solution, verifies its signature, and writes one tar with the packages below C(Packages/), the public keys that
    signed them (C(keys.json)), and the module metadata of the repositories as they have it (below C(modules/)).
  - The tar is written anew where the solution is another one than it holds.
options:
  packages:
    description: The packages, as name-epoch:version-release.arch.
    type: list
    elements: str
    required: true
  streams:
    description: Module streams to enable for the solution, as name:stream. Nothing is enabled on the host.
    type: list
    elements: str
    default: []
  dest:
    description: The tar to write.
    type: path
    required: true
attributes:
  check_mode:
    support: full
    description: Resolves, and downloads nothing.
"""

EXAMPLES = r"""
- name: Download the driver and all that it needs
  kepler.vllm.rpm_download:
    packages: "{{ kepler_lock | locked_rpms('nvidia_driver') }}"
    streams: "{{ kepler_lock | kepler.vllm.locked_streams }}"
    dest: /var/tmp/kepler-rpms.tar
"""

RETURN = r"""
packages:
  description: The solution, as file names.
  type: list
  elements: str
  returned: success
bytes:
  description: Bytes of the packages together.
  type: int
  returned: success
"""

import hashlib
import io
import json
import os
import re
import tarfile
import traceback

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.kepler.vllm.plugins.module_utils.openpgp import fingerprints

try:
    import dnf
    import dnf.exceptions
    import dnf.module.module_base
except ImportError:
    DNF_FAULT = traceback.format_exc()
else:
    DNF_FAULT = ""

KEY_ID = re.compile(r"Key ID ([0-9a-f]{16})", re.IGNORECASE)
IDENTITY = "identity.json"


def resolve(base, packages, streams):
    """The packages that `packages` need together, as if nothing were installed, in the order of their names."""
    base.conf.best = True
    base.read_all_repos()
    base.fill_sack(load_system_repo=False)
    if streams:
        dnf.module.module_base.ModuleBase(base).enable(streams)
    for name in packages:
        base.install(name, strict=True)
    base.resolve()
    return sorted(base.transaction.install_set, key=str)


def check_signatures(base, solution):
    """Raise ValueError for a package that no known key has signed; imports the keys of its repository, as dnf does."""
    for package in solution:
        status, message = base.package_signature_check(package)
        if status == 1:
            base.package_import_key(package, askcb=lambda *arguments: True)
            status, message = base.package_signature_check(package)
        if status:
            raise ValueError("%s: %s" % (package, message))


def signing_keys(module, solution):
    """The keys that signed the packages, as {fingerprint: armored key}."""
    found = set()
    for package in solution:
        query = "%{RSAHEADER:pgpsig} %{DSAHEADER:pgpsig} %{SIGPGP:pgpsig} %{SIGGPG:pgpsig}\n"
        _, printed, _ = module.run_command(
            ["rpm", "-qp", "--nosignature", "--qf", query, package.localPkg()], check_rc=True
        )
        found.update(KEY_ID.findall(printed)[:1])
    keys = {}
    for key in found:
        # The database knows a key by the last eight digits.
        _, text, _ = module.run_command(
            ["rpm", "-q", "gpg-pubkey-%s" % key[-8:].lower(), "--qf", "%{DESCRIPTION}\n"], check_rc=True
        )
        keys[fingerprints(text)[0]] = text
    return keys


def module_metadata(base):
    """Paths of the module metadata of the enabled repositories, by repository; compressed as the repository has it."""
    found = {one.id: one.get_metadata_path("modules") for one in base.repos.iter_enabled()}
    return {identity: path for identity, path in found.items() if path}


def identity(solution, metadata):
    """Key that distinguishes two solutions."""
    digests = {}
    for name, path in metadata.items():
        with open(path, "rb") as stream:
            digests[name] = hashlib.sha256(stream.read()).hexdigest()
    return {"packages": ["%s %s" % (one, one.chksum[1].hex()) for one in solution], "modules": digests}


def read_identity(path):
    """Return the identity of the solution in the tar `path`; None without a whole one."""
    try:
        with tarfile.open(path) as tar:
            return json.loads(tar.extractfile(IDENTITY).read().decode("utf-8"))
    except (OSError, KeyError, ValueError, tarfile.TarError):
        return None


def write(path, solution, keys, metadata):
    """Write the tar. Its last member is the identity: a tar that broke off has none."""
    part = path + ".part"
    with tarfile.open(part, "w") as tar:

        def add(name, value):
            data = json.dumps(value, sort_keys=True).encode("utf-8")
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        for package in solution:
            tar.add(package.localPkg(), "Packages/" + os.path.basename(package.localPkg()))
        for name, where in sorted(metadata.items()):
            tar.add(where, "modules/%s-%s" % (name, os.path.basename(where)))
        add("keys.json", keys)
        add(IDENTITY, identity(solution, metadata))
    os.chmod(part, 0o644)
    os.rename(part, path)


def run(module, base):
    """Do it; (changed, solution). Raises dnf.exceptions.Error and ValueError."""
    dest = module.params["dest"]
    solution = resolve(base, module.params["packages"], module.params["streams"])
    metadata = module_metadata(base)
    if read_identity(dest) == identity(solution, metadata):
        return False, solution
    if not module.check_mode:
        base.download_packages(solution)
        check_signatures(base, solution)
        write(dest, solution, signing_keys(module, solution), metadata)
    return True, solution


def main():
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "str", "required": True},
            "streams": {"type": "list", "elements": "str", "default": []},
            "dest": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    if DNF_FAULT:
        module.fail_json(msg=missing_required_lib("dnf"), exception=DNF_FAULT)
    try:
        with dnf.Base() as base:
            base.conf.read()
            base.conf.substitutions.update_from_etc(base.conf.installroot)
            changed, solution = run(module, base)
            size = sum(one.downloadsize for one in solution)
            names = [os.path.basename(one.location) for one in solution]
    except (dnf.exceptions.Error, ValueError, OSError) as error:
        module.fail_json(
            msg="The packages of the lock cannot be downloaded on this host: %s. Expected repositories that "
                "offer every one of them (`dnf repolist`) and a network." % error
        )
    module.exit_json(changed=changed, packages=names, bytes=size)


if __name__ == "__main__":
    main()
