#!/usr/bin/env python3
"""Unpacks nvcc 11.2 and its g++-10 from Debian's packages into a private directory; installs nothing.

usage: nvcc_tree.py CACHE [--pins FILE]     -> CACHE/bin/nvcc, CACHE/gcc10/usr/bin/g++-10

The mirror is the machine's own apt source. Hashes of the packages are written to CACHE/packages.json; with --pins, a
file of that form, they must be equal. Needs the non-free component of Debian 11 on that mirror.
"""

import argparse
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

TOOLKIT = {
    "nvidia-cuda-toolkit": "11.2.2-3+deb11u3",
    "nvidia-cuda-dev": "11.2.2-3+deb11u3",
    "libthrust-dev": "1.11.0-1",
    "libcub-dev": "1.11.0-1",
}
COMPILER = ["gcc-10", "g++-10", "cpp-10", "libgcc-10-dev", "libstdc++-10-dev", "libisl23=0.23-1"]
# Of nvidia-cuda-dev's gigabyte, what a library with a static runtime needs.
DEV_PARTS = ["./usr/include/*", "*/libcudart_static.a", "*/libcudadevrt.a"]
PROFILE = """TOP              = $(_HERE_)/..
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
PATH            += $(TOP)/nvvm/bin:$(_HERE_):
INCLUDES        += "-I$(TOP)/include" $(_SPACE_)
LIBRARIES       =+ $(_SPACE_) "-L$(TOP)/lib64"
"""


def mirror():
    """The first Debian archive in apt's own sources."""
    for path in ["/etc/apt/sources.list"] + sorted(glob.glob("/etc/apt/sources.list.d/*")):
        if os.path.isfile(path):
            with open(path) as stream:
                found = re.search(r"^(?:URIs:|deb\s+(?:\[.*?\]\s+)?)\s*(\S+/debian)/?(?:\s|$)", stream.read(), re.M)
            if found:
                return found.group(1)
    raise SystemExit("nvcc_tree.py: no Debian archive in apt's sources; add one (its URI ends in /debian)")


def digest(path):
    sha = hashlib.sha256()
    with open(path, "rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            sha.update(chunk)
    return sha.hexdigest()


def download(work):
    """Downloads the packages into work; {file: sha256}."""
    for name in ("lists/partial", "cache/archives/partial"):
        os.makedirs(os.path.join(work, "apt", name))
    sources = os.path.join(work, "apt", "sources.list")
    with open(sources, "w") as stream:
        stream.write(
            "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s bullseye main non-free\n" % mirror()
        )
    apt = [
        "apt-get",
        "-q",
        "-oDir::Etc::sourcelist=" + sources,
        "-oDir::Etc::sourceparts=/dev/null",
        "-oDir::State::Lists=%s/apt/lists" % work,
        "-oDir::Cache=%s/apt/cache" % work,
        "-oAPT::Sandbox::User=root",
    ]
    for command in (["update"], ["download"] + ["%s=%s" % item for item in sorted(TOOLKIT.items())] + COMPILER):
        subprocess.check_call(apt + command, cwd=work, stdout=subprocess.DEVNULL)
    return {os.path.basename(path): digest(path) for path in sorted(glob.glob(os.path.join(work, "*.deb")))}


def unpack(work, tree):
    """Lays the packages out as nvcc expects its own directory: bin, nvvm, include, lib64."""
    plain = os.path.join(work, "x")
    os.makedirs(os.path.join(tree, "gcc10"))
    for path in glob.glob(os.path.join(work, "*.deb")):
        package = os.path.basename(path).split("_")[0]
        if package == "nvidia-cuda-dev":
            os.makedirs(plain, exist_ok=True)
            reader = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE)
            subprocess.check_call(["tar", "x", "-C", plain, "--wildcards"] + DEV_PARTS, stdin=reader.stdout)
            reader.stdout.close()
            if reader.wait():
                raise SystemExit("nvcc_tree.py: %s cannot be unpacked" % path)
        else:
            subprocess.check_call(["dpkg", "-x", path, plain if package in TOOLKIT else os.path.join(tree, "gcc10")])
    for name in ("bin", "lib64", "nvvm/bin", "nvvm/libdevice"):
        os.makedirs(os.path.join(tree, name))
    tools = os.path.join(plain, "usr/lib/nvidia-cuda-toolkit")
    for name in (
        "nvcc",
        "ptxas",
        "fatbinary",
        "cudafe++",
        "cuobjdump",
        "nvdisasm",
        "nvlink",
        "bin2c",
        "cu++filt",
        "crt",
    ):
        found = [
            p for p in (os.path.join(tools, "bin", name), os.path.join(plain, "usr/bin", name)) if os.path.exists(p)
        ]
        if found:
            target = os.path.join(tree, "bin", name)
            (shutil.copytree if os.path.isdir(found[0]) else shutil.copy)(found[0], target)
    shutil.copy(
        glob.glob(os.path.join(plain, "usr/lib/nvidia-cuda-toolkit/bin/cicc"))[0], os.path.join(tree, "nvvm/bin")
    )
    for path in glob.glob(os.path.join(tools, "libdevice", "*.bc")):
        shutil.copy(path, os.path.join(tree, "nvvm/libdevice"))
    shutil.copytree(os.path.join(plain, "usr/include"), os.path.join(tree, "include"))
    for path in glob.glob(os.path.join(plain, "usr/lib/x86_64-linux-gnu/*.a")):
        shutil.copy(path, os.path.join(tree, "lib64"))
    with open(os.path.join(tree, "bin", "nvcc.profile"), "w") as stream:
        stream.write(PROFILE)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache")
    parser.add_argument("--pins")
    args = parser.parse_args()
    if os.path.isfile(os.path.join(args.cache, "packages.json")):
        return
    parent = os.path.dirname(os.path.abspath(args.cache))
    os.makedirs(parent, exist_ok=True)
    work = tempfile.mkdtemp(dir=parent)
    try:
        hashes = download(work)
        if args.pins:
            with open(args.pins) as stream:
                pins = json.load(stream)
            if pins != hashes:
                raise SystemExit(
                    "nvcc_tree.py: other packages than %s pins: %s"
                    % (args.pins, sorted(set(pins.items()) ^ set(hashes.items())))
                )
        tree = os.path.join(work, "tree")
        unpack(work, tree)
        with open(os.path.join(tree, "packages.json"), "w") as stream:
            json.dump(hashes, stream, indent=1, sort_keys=True)
        os.rename(tree, args.cache)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(main())
