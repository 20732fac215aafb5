"""Shared libraries of the host that programs and libraries in outputs load."""

import os
import re
import subprocess

from . import address
from .errors import StoreError
from .fetch import sha256_of
from .references import References

ELF = b"\x7fELF"
RESOLVED = re.compile(r"^\s+(\S+) => (/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
# Those of the C library belong to the base, and those of the driver to the host that serves.
OTHERS = re.compile(
    r"(ld-linux.*|libc|libm|libdl|libpthread|librt|libutil|libresolv|libnsl|libanl|libnss_.*|libcuda|libnvidia-.*)\.so"
)
BATCH = 50


def is_elf(path):
    try:
        with open(path, "rb") as stream:
            return stream.read(len(ELF)) == ELF
    except OSError:
        return False


def programs_of(path):
    """Paths of the programs and libraries in an output."""
    for entry in address.manifest(path)["files"]:
        name = os.path.join(path, entry["path"])
        if entry["type"] == "file" and (entry["executable"] or ".so" in os.path.basename(name)) and is_elf(name):
            yield name


def resolve(programs):
    """{name: path} of the libraries that the loader of this host finds for these programs."""
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    try:
        done = subprocess.Popen(
            ["ldd"] + programs, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, universal_newlines=True,
        )
    except OSError as error:
        raise StoreError("ldd: %s; expected it on the host. Install glibc-common." % error.strerror)
    # It fails for a file that is linked statically, and goes on.
    return dict(RESOLVED.findall(done.communicate()[0]))


def needed(root, outputs, within=()):
    """Libraries outside of the store that `outputs` and all below them load: [{name, path, sha256}], sorted by name.

    within: further directories that need no copy.
    """
    references = References(root)
    names = references.closure({address.name_of(path) for path in outputs})
    programs = [program for name in sorted(names) for program in programs_of(references.path(name))]
    found = {}
    for start in range(0, len(programs), BATCH):
        found.update(resolve(programs[start : start + BATCH]))
    inside = tuple(os.path.realpath(place) + "/" for place in (os.path.join(root, "store"),) + tuple(within))
    return [
        {"name": name, "path": os.path.realpath(path), "sha256": sha256_of(os.path.realpath(path))}
        for name, path in sorted(found.items())
        if not OTHERS.match(name) and not os.path.realpath(path).startswith(inside)
    ]
