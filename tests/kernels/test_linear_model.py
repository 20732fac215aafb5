"""The K80 model of tests/gpu/k80_model.py counts what the machine code holds."""

import collections
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "gpu"))
from k80_model import KERNELS, UNITS

FORMATS = {"float16": "Half", "int8": "Int8", "int4": "Int4"}


def kernel_of(weights, rows):
    """The file of these weights' kernel, and its name: in the machine code, and in the report."""
    form = FORMATS[weights]
    if rows > 36:
        return "linear_tiled.cu", rf"12tiled_kernelINS0_\d+Tiled{form}ENS0_4TileILi{rows}E", (
            rf"tiled_kernel<.*::Tiled{form}, .*::Tile<{rows},")
    if rows > (4 if weights == "float16" else 8):
        return "linear_tiled.cu", rf"13direct_kernelINS0_\d+Direct{form}ENS0_9DirectCutILi{rows}E", (
            rf"direct_kernel<.*::Direct{form}, .*::DirectCut<{rows},")
    # Whether x stays in registers: linear_resident.cuh. Else the cut comes last: the kernel of experts ends with true.
    name, end = ("linear", r"\w+ELb0E") if weights == "float16" else ("resident", "")
    if weights == "int4" and rows > 4:
        form = "Int4Half"
    return "linear.cu", rf"{name}_kernelINS0_\d{form}ELi{rows}ELb0E{end}EEv", (
        rf"{name}_kernel<.*::{form}, {rows}, false[,>]")


def inner_loop(sass, in_tiles):
    """Instructions of the shortest loop that multiplies, by name; "issue": all of them."""
    code = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?P\d+ )?([A-Z][A-Z0-9.]+)([^;]*);", sass)
    loops = []
    for address, name, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if name == "BRA" and target and int(target.group(1), 16) < int(address, 16):
            body = [other for at, other, _ in code if int(target.group(1), 16) <= int(at, 16) <= int(address, 16)]
            if sum(other.startswith("FFMA") for other in body) > 20:
                loops.append(body)
    body = min(loops, key=len)
    # The loop around it is that of a block's tiles.
    assert not in_tiles or len(loops) == 2
    names = collections.Counter("LDS.128" if name == "LDS.128" else name.split(".")[0] for name in body)
    return {"issue": len(body), **names}


@pytest.fixture(scope="module")
def machine_code(built, cuda_home):
    """Function that gives the SASS of the kernel for these weights and rows of x, groups without zeros."""
    listing = subprocess.run([cuda_home / "bin/cuobjdump", "-sass", built / "libvllm_kepler.so"], check=True,
                             capture_output=True, text=True).stdout
    functions = dict(part.split("\n", 1) for part in listing.split("Function : ")[1:])

    def of(weights, rows):
        wanted = re.compile(kernel_of(weights, rows)[1])
        return next(body for name, body in functions.items() if wanted.search(name))

    return of


@pytest.mark.parametrize(("weights", "rows"), KERNELS)
def test_the_model_counts_what_the_machine_code_holds(machine_code, built, weights, rows):
    file, _, name = kernel_of(weights, rows)
    kernel, counted = KERNELS[weights, rows], inner_loop(machine_code(weights, rows), file == "linear_tiled.cu")
    assert {name: counted.get(name, 0) for name in kernel.loop} == kernel.loop
    scarce = {name for name, unit in UNITS.items() if unit not in ("FFMA", "logic")}
    left_out = {name: counted[name] for name in scarce & counted.keys() - kernel.loop.keys()}
    assert sum(left_out.values()) <= kernel.loop["issue"] // 20, left_out
    resources = json.loads((built / "resources.json").read_text())["kernels"]
    own = next(entry for entry in resources if entry["file"] == file and re.search(name, entry["kernel"]))
    assert (own["registers"], own["shared"]) == (kernel.registers, kernel.shared)
