"""Run in the container: the packages of the released engine load, and Triton compiles with the image's own gcc."""

import shutil

import torch
import torchaudio  # noqa: F401
import torchvision  # noqa: F401
import triton
import triton.language as tl
import vllm
from triton.backends.compiler import GPUTarget
from triton.runtime.build import compile_module_from_src

MODULE = """
#include <Python.h>
static struct PyModuleDef probe = {PyModuleDef_HEAD_INIT, "probe", 0, -1, 0};
PyMODINIT_FUNC PyInit_probe(void) { return PyModule_Create(&probe); }
"""


@triton.jit
def add_one(x, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < n) + 1, mask=at < n)


print(shutil.which("gcc"), shutil.which("g++"))
# As Triton makes the launcher of each kernel.
print(compile_module_from_src(MODULE, "probe").__file__)
source = triton.compiler.ASTSource(add_one, {"x": "*fp16", "y": "*fp16", "n": "i32"}, {"BLOCK": 128})
kernel = triton.compile(source, target=GPUTarget("cuda", 70, 32))
assert ".target sm_70" in kernel.asm["ptx"]
assert kernel.asm["cubin"]
print("loaded", torch.__version__, triton.__version__, vllm.__version__)
