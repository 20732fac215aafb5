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


def resident(weights, rows):
    """Whether x stays in registers: linear_resident.cuh."""
    return weights != "float16" and rows <= 4


def inner_loop(sass):
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
    names = collections.Counter("LDS.128" if name == "LDS.128" else name.split(".")[0] for name in body)
    return {"issue": len(body), **names}


@pytest.fixture(scope="module")
def machine_code(built, cuda_home):
    """Function that gives the SASS of the kernel for these weights and rows of x, groups without zeros."""
    listing = subprocess.run([cuda_home / "bin/cuobjdump", "-sass", built / "libvllm_kepler.so"], check=True,
                             capture_output=True, text=True).stdout
    functions = dict(part.split("\n", 1) for part in listing.split("Function : ")[1:])

    def of(weights, rows):
        # Of linear.cu: the kernel of experts ends with true.
        name = "15resident_kernel" if resident(weights, rows) else "13linear_kernel"
        end = "" if resident(weights, rows) else r"\w+ELb0E"
        wanted = re.compile(rf"{name}INS0_4{FORMATS[weights]}ELi{rows}ELb0E{end}EEv")
        return next(body for name, body in functions.items() if wanted.search(name))

    return of


@pytest.mark.parametrize(("weights", "rows"), KERNELS)
def test_the_model_counts_what_the_machine_code_holds(machine_code, built, weights, rows):
    kernel, counted = KERNELS[weights, rows], inner_loop(machine_code(weights, rows))
    assert {name: counted.get(name, 0) for name in kernel.loop} == kernel.loop
    scarce = {name for name, unit in UNITS.items() if unit not in ("FFMA", "logic")}
    left_out = {name: counted[name] for name in scarce & counted.keys() - kernel.loop.keys()}
    assert sum(left_out.values()) <= kernel.loop["issue"] // 20, left_out
    resources = json.loads((built / "resources.json").read_text())["kernels"]
    name = "resident" if resident(weights, rows) else "linear"
    own = next(entry for entry in resources
               if entry["file"] == "linear.cu"
               and re.search(rf"{name}_kernel<.*::{FORMATS[weights]}, {rows}, false[,>]", entry["kernel"]))
    assert (own["registers"], own["shared"]) == (kernel.registers, kernel.shared)
