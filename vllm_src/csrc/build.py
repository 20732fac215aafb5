#!/usr/bin/env python3
"""Builds libvllm_kepler.so for one architecture, sm_37 by default: its machine code, and its PTX for newer GPUs.

Takes an nvcc that knows it by --nvcc, else $CUDA_HOME/bin/nvcc. Writes into --out: the library, and resources.json and
resources.txt with registers, shared memory, stack and spills of each kernel. Equal sources and compilers give equal
bytes, whatever the directory. Runs on Python 3.6 and later.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
PORT_VERSION = os.path.join(HERE, os.pardir, "vllm_kepler", "version.py")
# Architecture -> the oldest and the newest nvcc for it. common.cuh chooses numbers by KEPLER_SM.
NVCC = {"sm_37": ((11, 2), (11, 8)), "sm_70": ((11, 2), (12, 9))}
# Files whose spills are refused, since they cost bandwidth on every step of the engine; of others all.
NO_SPILLS = {
    "sm_37": ("norm.cu", "attention_decode.cu", "attention_prefill.cu", "linear.cu", "linear_experts.cu",
              "linear_tiled.cu"),
}
# A barrier over the grid compiles for sm_37 and cannot be launched there: it needs sm_60.
GRID_SYNC_SOURCE = re.compile(r"this_grid\s*\(|this_multi_grid\s*\(|cudaLaunchCooperativeKernel|grid_group")
GRID_SYNC_PTX = re.compile(r"cudaCGGetIntrinsicHandle|cudaCGSynchronize|%envreg")
FLAGS = [
    "-std=c++14", "-O3", "-Wno-deprecated-gpu-targets", "-cudart", "static", "-Xptxas", "-v",
    "-Xcompiler", "-fPIC,-Wall",
]


class Refused(Exception):
    """One message for the user; nothing was built."""


def run(argv, environment, **options):
    """The output of a command that succeeded."""
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, env=environment, **options
    )
    text = process.communicate()[0]
    if process.returncode:
        raise Refused("%s failed (%d):\n%s" % (os.path.basename(argv[0]), process.returncode, text.rstrip()))
    return text


def flags_of(architecture, version):
    """Flags for an architecture such as sm_37: machine code and PTX, and what the library says of itself."""
    virtual = architecture.replace("sm", "compute")
    flags = FLAGS + ['-DKEPLER_VERSION="%s"' % version, '-DKEPLER_ARCHITECTURES="%s %s"' % (architecture, virtual)]
    for code in (architecture, virtual):
        flags += ["-gencode", "arch=%s,code=%s" % (virtual, code)]
    return flags + ["-DKEPLER_SM=" + architecture[3:]]


def find_nvcc(given, architecture):
    """(nvcc, its release, an environment in which it calls the tools that lie beside it)."""
    oldest, newest = NVCC[architecture]
    releases = "%d.%d to %d.%d" % (oldest + newest)
    home = os.environ.get("CUDA_HOME")
    path = given or (os.path.join(home, "bin", "nvcc") if home else None)
    if not path or not os.path.isfile(path):
        raise Refused("nvcc: found %s, expected a file; give --nvcc or set CUDA_HOME to a CUDA %s" % (path, releases))
    path = os.path.abspath(path)
    tools = os.path.dirname(path)
    for tool in ("ptxas", "fatbinary"):
        if not os.path.isfile(os.path.join(tools, tool)):
            raise Refused("%s: not beside nvcc in %s; use a complete CUDA tree" % (tool, tools))
    # nvcc takes its tools from PATH: another CUDA there may not know the architecture. Flags of the user's would change
    # the bytes.
    environment = dict(os.environ, PATH=tools + os.pathsep + os.environ.get("PATH", "/usr/bin:/bin"))
    for name in ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"):
        environment.pop(name, None)
    found = re.search(r"release (\d+)\.(\d+)", run([path, "--version"], environment))
    release = tuple(int(part) for part in found.groups()) if found else (0, 0)
    if not oldest <= release <= newest:
        raise Refused("%s: release %d.%d, expected %s, which know %s" % ((path,) + release + (releases, architecture)))
    return path, release, environment


def port_version():
    """The version that the port beside this directory has."""
    if not os.path.isfile(PORT_VERSION):
        raise Refused("--version: left out, and there is no ../vllm_kepler/version.py to read it from; give it")
    with open(PORT_VERSION) as stream:
        return re.search(r'__version__ = "([^"]+)"', stream.read()).group(1)


def refuse_grid_sync(source, text, pattern):
    """Name the first line of a source or of its PTX that holds a barrier over the grid."""
    for number, line in enumerate(text.splitlines(), 1):
        if pattern.search(line):
            raise Refused(
                "%s:%d: a barrier over the grid, which sm_37 cannot launch: %s" % (source, number, line.strip())
            )


def parse_resources(text):
    """[{kernel, registers, shared, stack, spill_stores, spill_loads}] from what ptxas -v prints."""
    patterns = {
        "registers": r"Used (\d+) registers",
        "shared": r"(\d+) bytes smem",
        "stack": r"(\d+) bytes stack frame",
        "spill_stores": r"(\d+) bytes spill stores",
        "spill_loads": r"(\d+) bytes spill loads",
    }
    entries = []
    for block in text.split("Compiling entry function ")[1:]:
        entry = {"kernel": re.match(r"'([^']+)'", block).group(1)}
        for name, pattern in patterns.items():
            match = re.search(pattern, block)
            entry[name] = int(match.group(1)) if match else 0
        entries.append(entry)
    return entries


def compile_file(source, flags, nvcc, environment, work):
    """(object file, resources of its kernels). In `work` every file has a name that depends on the source alone."""
    started = time.time()
    with open(os.path.join(HERE, source)) as stream:
        refuse_grid_sync(source, stream.read(), GRID_SYNC_SOURCE)
    # nvcc names its intermediate files by its process id otherwise, and those names end up in symbols.
    keep = os.path.join(work, "keep-" + source)
    os.mkdir(keep)
    target = os.path.join(work, source[:-3] + ".o")
    log = run([nvcc] + flags + ["-keep", "-keep-dir", keep, "-c", source, "-o", target], environment, cwd=HERE)
    with open(os.path.join(keep, source[:-3] + ".ptx")) as stream:
        refuse_grid_sync(source + " (its PTX)", stream.read(), GRID_SYNC_PTX)
    print("%s: %.0f s" % (source, time.time() - started), flush=True)
    return target, [dict(entry, file=source) for entry in parse_resources(log)]


def report(entries, directory, release, version, environment, architecture):
    """Write what each kernel takes; refuse spills where none may be."""
    demangler = shutil.which("c++filt")
    if demangler:
        names = run([demangler] + [entry["kernel"] for entry in entries], environment).splitlines()
        for entry, name in zip(entries, names):
            entry["kernel"] = name
    with open(os.path.join(directory, "resources.json"), "w") as stream:
        content = {"nvcc": "%d.%d" % release, "version": version, "architecture": architecture, "kernels": entries}
        json.dump(content, stream, indent=1, sort_keys=True)
    columns = ("registers", "shared", "stack", "spill_stores", "spill_loads", "file", "kernel")
    with open(os.path.join(directory, "resources.txt"), "w") as stream:
        for row in [dict(zip(columns, columns))] + entries:
            stream.write("%9s %7s %6s %12s %11s  %-20s  %s\n" % tuple(row[column] for column in columns))
    closed = NO_SPILLS.get(architecture)
    spilled = [e for e in entries if closed is None or e["file"] in closed]
    spilled = [e for e in spilled if e["spill_stores"] or e["spill_loads"]]
    if spilled:
        lines = ["  %(file)s: %(kernel)s: %(spill_stores)d bytes stored, %(spill_loads)d loaded" % e for e in spilled]
        raise Refused("spills where none may be:\n" + "\n".join(lines))


def build(args):
    nvcc, release, environment = find_nvcc(args.nvcc, args.architecture)
    version = args.version or port_version()
    flags = flags_of(args.architecture, version)
    flags += ["-ccbin", args.ccbin] if args.ccbin else []
    flags += ["-lineinfo"] if args.lineinfo else []
    sources = sorted(name for name in os.listdir(HERE) if name.endswith(".cu"))
    os.makedirs(args.out, exist_ok=True)
    out = os.path.abspath(args.out)
    work = tempfile.mkdtemp(dir=out)
    try:
        with ThreadPoolExecutor(args.jobs) as pool:
            done = list(pool.map(lambda source: compile_file(source, flags, nvcc, environment, work), sources))
        kernels = [entry for _, entries in done for entry in entries]
        report(kernels, work, release, version, environment, args.architecture)
        objects = [os.path.basename(target) for target, _ in done]
        run([nvcc] + flags + ["-shared", "-o", "libvllm_kepler.so"] + objects, environment, cwd=work)
        for name in ("libvllm_kepler.so", "resources.json", "resources.txt"):
            os.rename(os.path.join(work, name), os.path.join(out, name))
    finally:
        shutil.rmtree(work)
    return os.path.join(out, "libvllm_kepler.so")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=sorted(NVCC), default="sm_37", help="of the GPUs")
    parser.add_argument("--nvcc", help="its ptxas and fatbinary are those that lie beside it")
    parser.add_argument("--ccbin", help="host compiler that this nvcc takes, such as g++-10")
    parser.add_argument("--version", help="what the library says of itself; the port's where left out")
    parser.add_argument("--out", default=os.path.join(HERE, "build"))
    parser.add_argument("--lineinfo", action="store_true", help="source lines for profilers and sanitizers")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    try:
        print(build(parser.parse_args()))
    except Refused as problem:
        sys.stderr.write("build.py: %s\n" % problem)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
