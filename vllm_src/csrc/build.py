#!/usr/bin/env python3
"""Builds libvllm_kepler.so for sm_37: machine code, and compute_37 PTX for newer GPUs.

Finds nvcc (11.2 to 11.8) by --nvcc, else $CUDA_HOME/bin/nvcc. Writes into --out: the library, and resources.json and
resources.txt with registers, shared memory, stack and spills of each kernel. Runs on Python 3.6 and later.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
VERSION = "0.1.0"
OLDEST, NEWEST = (11, 2), (11, 8)
# Spills in these cost bandwidth on every step of the engine.
NO_SPILLS = ("norm.cu", "attention_decode.cu", "attention_prefill.cu")
# They compile for sm_37 and cannot be launched there: a barrier over the grid needs sm_60.
GRID_SYNC_SOURCE = re.compile(r"this_grid\s*\(|this_multi_grid\s*\(|cudaLaunchCooperativeKernel|grid_group")
GRID_SYNC_PTX = re.compile(r"cudaCGGetIntrinsicHandle|cudaCGSynchronize|%envreg")


class Refused(Exception):
    pass


def run(argv, environment):
    done = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, env=environment
    )
    text = done.communicate()[0]
    if done.returncode:
        raise Refused("%s failed (%d):\n%s" % (os.path.basename(argv[0]), done.returncode, text))
    return text


def find_nvcc(given):
    """The path of nvcc and an environment in which it calls the ptxas and fatbinary that lie beside it."""
    path = given or (os.path.join(os.environ["CUDA_HOME"], "bin", "nvcc") if os.environ.get("CUDA_HOME") else None)
    if not path or not os.path.isfile(path):
        raise Refused("nvcc: found %s, expected a file; give --nvcc or set CUDA_HOME to a CUDA 11.2 to 11.8" % path)
    tools = os.path.dirname(os.path.abspath(path))
    for tool in ("ptxas", "fatbinary", "cuobjdump"):
        if not os.path.isfile(os.path.join(tools, tool)):
            raise Refused("%s: not beside nvcc in %s; use a complete CUDA tree" % (tool, tools))
    # nvcc takes its tools from PATH: a newer CUDA there knows no sm_37.
    environment = dict(os.environ, PATH=tools + os.pathsep + os.environ.get("PATH", "/usr/bin:/bin"))
    for name in ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"):
        environment.pop(name, None)
    path = os.path.join(tools, os.path.basename(path))
    found = re.search(r"release (\d+)\.(\d+)", run([path, "--version"], environment))
    version = tuple(int(part) for part in found.groups()) if found else (0, 0)
    if not OLDEST <= version <= NEWEST:
        raise Refused("%s: release %d.%d, expected 11.2 to 11.8; later ones lack sm_37" % ((path,) + version))
    if "sm_37" not in run([os.path.join(tools, "ptxas"), "--help"], environment):
        raise Refused("%s/ptxas does not know sm_37; use the ptxas of CUDA 11.2 to 11.8" % tools)
    return path, version, environment


def parse_resources(text):
    """[{kernel, registers, shared, stack, spill_stores, spill_loads}] from the output of ptxas -v."""
    found = []
    for block in re.split(r"Compiling entry function ", text)[1:]:
        numbers = {
            "registers": r"Used (\d+) registers",
            "shared": r"(\d+) bytes smem",
            "stack": r"(\d+) bytes stack frame",
            "spill_stores": r"(\d+) bytes spill stores",
            "spill_loads": r"(\d+) bytes spill loads",
        }
        entry = {"kernel": re.match(r"'([^']+)'", block).group(1)}
        for name, pattern in numbers.items():
            match = re.search(pattern, block)
            entry[name] = int(match.group(1)) if match else 0
        found.append(entry)
    return found


def demangle(names, tools, environment):
    tool = os.path.join(tools, "cu++filt")
    if not names or not os.path.isfile(tool):
        return names
    return run([tool] + names, environment).rstrip("\n").split("\n")


def compile_file(source, args, nvcc, environment):
    path, target = os.path.join(HERE, source), os.path.join(args.out, source[:-3] + ".o")
    with open(path) as stream:
        for number, line in enumerate(stream, 1):
            if GRID_SYNC_SOURCE.search(line):
                raise Refused(
                    "%s:%d: a barrier over the grid, which sm_37 cannot launch: %s" % (source, number, line.strip())
                )
    flags = [
        "-std=c++14",
        "-O3",
        "-Wno-deprecated-gpu-targets",
        "-Xcompiler",
        "-fPIC,-Wall",
        "-Xptxas",
        "-v",
        '-DKEPLER_VERSION="%s"' % VERSION,
        '-DKEPLER_ARCHITECTURES="sm_37 compute_37"',
        "-gencode",
        "arch=compute_37,code=sm_37",
        "-gencode",
        "arch=compute_37,code=compute_37",
    ]
    flags += ["-ccbin", args.ccbin] if args.ccbin else []
    flags += ["-lineinfo"] if args.lineinfo else []
    log = run([nvcc] + flags + ["-c", path, "-o", target], environment)
    ptx = run([os.path.join(os.path.dirname(nvcc), "cuobjdump"), "-ptx", target], environment)
    if GRID_SYNC_PTX.search(ptx):
        raise Refused("%s: its PTX holds a barrier over the grid, which sm_37 cannot launch" % source)
    return target, [dict(entry, file=source) for entry in parse_resources(log)]


def report(entries, out, nvcc, version, environment):
    names = demangle([e["kernel"] for e in entries], os.path.dirname(nvcc), environment)
    for entry, name in zip(entries, names):
        entry["kernel"] = name
    with open(os.path.join(out, "resources.json"), "w") as stream:
        json.dump({"nvcc": "%d.%d" % version, "version": VERSION, "kernels": entries}, stream, indent=1)
    columns = ("registers", "shared", "stack", "spill_stores", "spill_loads", "file", "kernel")
    with open(os.path.join(out, "resources.txt"), "w") as stream:
        for row in [{c: c for c in columns}] + entries:
            stream.write("%9s %7s %6s %12s %11s  %-20s  %s\n" % tuple(row[c] for c in columns))
    spilled = [e for e in entries if e["file"] in NO_SPILLS and (e["spill_stores"] or e["spill_loads"])]
    if spilled:
        raise Refused(
            "spills where none may be:\n"
            + "\n".join("  %(file)s: %(kernel)s: %(spill_stores)d bytes stored" % e for e in spilled)
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nvcc")
    parser.add_argument("--ccbin", help="host compiler, g++-10 or another that this nvcc takes")
    parser.add_argument("--out", default=os.path.join(HERE, "build"))
    parser.add_argument("--lineinfo", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    try:
        nvcc, version, environment = find_nvcc(args.nvcc)
        os.makedirs(args.out, exist_ok=True)
        sources = sorted(name for name in os.listdir(HERE) if name.endswith(".cu"))
        with ThreadPoolExecutor(args.jobs) as pool:
            done = list(pool.map(lambda source: compile_file(source, args, nvcc, environment), sources))
        library = os.path.join(args.out, "libvllm_kepler.so")
        host = ["-ccbin", args.ccbin] if args.ccbin else []
        run(
            [nvcc]
            + host
            + ["-shared", "-cudart", "static", "-Wno-deprecated-gpu-targets", "-o", library]
            + [t for t, _ in done],
            environment,
        )
        report([entry for _, entries in done for entry in entries], args.out, nvcc, version, environment)
    except Refused as problem:
        sys.stderr.write("build.py: %s\n" % problem)
        return 1
    print(library)
    return 0


if __name__ == "__main__":
    sys.exit(main())
