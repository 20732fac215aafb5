"""What was built: machine code, PTX, resources, interface."""

import ctypes
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from conftest import CSRC, directory

sys.path.insert(0, str(CSRC))

from build import parse_resources

INVALID_VALUE = 1


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def declared():
    """Functions of kepler.h."""
    return set(re.findall(r"\b(kepler_\w+)\(", re.sub(r"/\*.*?\*/", "", (CSRC / "kepler.h").read_text(), flags=re.S)))


def test_machine_code_and_ptx_that_drivers_take(each_built, architecture, cuda_home):
    """Driver 470 takes PTX up to 7.4."""
    built = each_built
    listing = output(cuda_home / "bin/cuobjdump", "-lelf", "-lptx", built / "libvllm_kepler.so")
    assert set(re.findall(r"\.(sm_\d+)\.(?:cubin|ptx)", listing)) == {architecture}
    ptx = output(cuda_home / "bin/cuobjdump", "-ptx", built / "libvllm_kepler.so")
    assert set(re.findall(r"^\.target (\w+)", ptx, re.M)) == {architecture}
    assert set(re.findall(r"^\.version (\S+)", ptx, re.M)) == {"7.2"}


def test_it_needs_no_cuda_runtime(built):
    needed = re.findall(r"NEEDED\s+(\S+)", output("objdump", "-p", built / "libvllm_kepler.so"))
    assert needed
    assert not [name for name in needed if "cuda" in name or "nvidia" in name]


def test_it_exports_the_interface_and_nothing_else_of_ours(each_built):
    symbols = output("nm", "-D", "--defined-only", "--format=posix", each_built / "libvllm_kepler.so")
    exported = {line.split()[0] for line in symbols.splitlines()}
    assert {name for name in exported if name.startswith("kepler_")} == declared()


def test_no_spills_in_attention_norms_and_linear(each_built, architecture):
    """The report holds every kernel; both have 255 registers a thread and 48 KiB of shared memory a block."""
    resources = json.loads((each_built / "resources.json").read_text())
    assert resources["architecture"] == architecture
    files = {kernel["file"] for kernel in resources["kernels"]}
    assert files == {path.name for path in CSRC.glob("*.cu")} - {"library.cu"}
    for kernel in resources["kernels"]:
        assert kernel["registers"] <= 255
        assert kernel["shared"] <= 48 << 10
        if architecture != "sm_37" or kernel["file"] in ("norm.cu", "attention_decode.cu", "attention_prefill.cu",
                                                         "linear.cu", "linear_experts.cu", "linear_tiled.cu"):
            assert kernel["spill_stores"] == kernel["spill_loads"] == 0, kernel
    for name in sorted(files):
        own = [kernel for kernel in resources["kernels"] if kernel["file"] == name]
        print(f"{name}: {len(own)} kernels, up to {max(k['registers'] for k in own)} registers, "
              f"{max(k['shared'] for k in own)} bytes of shared memory, {sum(k['spill_stores'] for k in own)} spilled")


def test_ptxas_of_cuda_12_8_spills_nothing_either(ptxas, cuda_home, tmp_path):
    """It assembles what nvcc 11.2 made for sm_70: no other compiler of the CUDA that volta's lock names can be had."""
    assert "release 12.8, V12.8.93" in output(ptxas, "--version")
    library = directory("sm_70") / "libvllm_kepler.so"
    extract = [cuda_home / "bin/cuobjdump", "-xptx", "all", library]
    subprocess.run(extract, check=True, cwd=tmp_path, capture_output=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        logs = pool.map(lambda path: subprocess.run(
            [ptxas, "-v", "-arch", "sm_70", path, "-o", path.with_suffix(".cubin")], check=True, capture_output=True,
            text=True,
        ).stderr, tmp_path.glob("*.ptx"))  # fmt: skip
    kernels = [kernel for log in logs for kernel in parse_resources(log)]
    assert len(kernels) == len(json.loads((directory("sm_70") / "resources.json").read_text())["kernels"])
    for kernel in kernels:
        assert 0 < kernel["registers"] <= 255
        assert kernel["stack"] == kernel["spill_stores"] == kernel["spill_loads"] == 0, kernel


def test_it_says_what_it_is(each_built, architecture):
    library = ctypes.CDLL(str(each_built / "libvllm_kepler.so"))
    for name in ("kepler_version", "kepler_architectures", "kepler_error_text"):
        getattr(library, name).restype = ctypes.c_char_p
    version = re.search(r'__version__ = "(.+)"', (CSRC.parent / "vllm_kepler" / "version.py").read_text()).group(1)
    assert library.kepler_version().decode() == version
    assert library.kepler_architectures() == f"{architecture} {architecture.replace('sm', 'compute')}".encode()
    assert b"invalid argument" in library.kepler_error_text(INVALID_VALUE)


def attention(library, head_size=64, block_size=16, cache_dtype=0, num_heads=8, num_kv_heads=2):
    """What the decode launcher says to a batch of no sequences: it looks at the sizes, and starts nothing."""
    nothing = ctypes.c_void_p()
    return library.kepler_attention_decode(
        nothing, nothing, ctypes.c_longlong(512), ctypes.c_longlong(512), 0, nothing, nothing, cache_dtype, nothing, 1,
        nothing, 0, num_heads, num_kv_heads, head_size, block_size, 16, ctypes.c_float(1), ctypes.c_float(0), 0,
        nothing, nothing, ctypes.c_size_t(0), nothing,
    )


def test_launchers_refuse_what_they_do_not_take(each_built):
    """Needs no GPU."""
    library = ctypes.CDLL(str(each_built / "libvllm_kepler.so"))
    for wrong in ({"head_size": 12}, {"head_size": 520}, {"block_size": 7}, {"block_size": 64}, {"cache_dtype": 9},
                  {"num_heads": 7}):
        assert attention(library, **wrong) == INVALID_VALUE, wrong
    assert attention(library) == 0
    assert library.kepler_moe_sort(None, None, None, None, 8, 4, 129, None) == INVALID_VALUE
    assert library.kepler_copy_blocks(None, 1, None, 1, ctypes.c_size_t(24), None) == INVALID_VALUE
