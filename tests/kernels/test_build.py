"""build.py: one message for what cannot be built. Equal bytes of two builds: the scenario `builder`."""

import json
import os
import subprocess
import sys

import pytest

KERNEL = """#include "kepler.h"
#include <cooperative_groups.h>
%s
"""


def refused(result, *messages):
    status, printed = result
    assert status == 1, printed
    assert "Traceback" not in printed
    for message in messages:
        assert message in printed
    return printed


def test_line_numbers_on_request(build, csrc, tmp_path):
    (csrc / "norm.cu").write_text(KERNEL % "__global__ void k(float* x) { x[threadIdx.x] = 1.f; }")
    sizes = []
    for arguments in ([], ["--lineinfo"]):
        assert build(csrc, *arguments)[0] == 0
        sizes.append((tmp_path / "out/libvllm_kepler.so").read_bytes().count(b".debug_line"))
    assert sizes[0] == 0 < sizes[1]


def test_a_barrier_over_the_grid_is_refused(build, csrc, tmp_path):
    """It compiles for sm_37, and only a launch on a K80 would fail."""
    (csrc / "norm.cu").write_text(
        KERNEL % "__global__ void k() {\n  cooperative_groups::this_grid().sync();\n}"
    )
    refused(build(csrc), "norm.cu:4: a barrier over the grid, which sm_37 cannot launch")
    assert not (tmp_path / "out/libvllm_kepler.so").exists()


def test_a_hidden_barrier_over_the_grid_is_found_in_the_ptx(build, csrc):
    (csrc / "norm.cu").write_text(
        KERNEL % "#define WHOLE(x) this_##x\n__global__ void k() { cooperative_groups::WHOLE(grid)().sync(); }"
    )
    refused(build(csrc), "norm.cu (its PTX):", "a barrier over the grid")


SPILLING = """
__global__ void __launch_bounds__(1024, 2) k(float* x, int n) {
  float held[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) held[i] = x[i * n + threadIdx.x];
  for (int r = 0; r < n; ++r)
#pragma unroll
    for (int i = 0; i < 64; ++i) held[i] = held[i] * held[(i + 7) % 64] + x[r];
#pragma unroll
  for (int i = 0; i < 64; ++i) x[i * n + threadIdx.x] = held[i];
}
"""


def test_spills_are_refused_in_norms_and_attention_alone(build, csrc, tmp_path):
    (csrc / "norm.cu").write_text(KERNEL % SPILLING)
    refused(build(csrc), "spills where none may be:", "norm.cu: k(float*, int):", "bytes stored")
    assert not (tmp_path / "out/libvllm_kepler.so").exists()
    (csrc / "norm.cu").rename(csrc / "moe.cu")
    assert build(csrc)[0] == 0
    refused(build(csrc, "--architecture", "sm_70"), "spills where none may be:", "moe.cu: k(float*, int):")


def test_a_compile_error_names_file_and_line(build, csrc):
    (csrc / "norm.cu").write_text(KERNEL % "__global__ void k() { undeclared = 1; }")
    refused(build(csrc), "build.py: nvcc failed", 'norm.cu(3): error: identifier "undeclared" is undefined')


def test_half_arithmetic_of_sm_53_is_refused(build, csrc):
    (csrc / "norm.cu").write_text(
        KERNEL % "#include <cuda_fp16.h>\n__global__ void k(__half2* x) { *x = __hfma2(*x, *x, *x); }"
    )
    refused(build(csrc), "norm.cu", "__hfma2")


def fake_nvcc(directory, release, beside=("ptxas", "fatbinary")):
    directory.mkdir()
    for name in beside:
        (directory / name).write_text("#!/bin/sh\nexit 1\n")
    nvcc = directory / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.99'\n")
    for path in directory.iterdir():
        path.chmod(0o755)
    return nvcc


@pytest.mark.parametrize(
    ("architecture", "release"),
    [("sm_37", "10.2"), ("sm_37", "11.1"), ("sm_37", "12.4"), ("sm_70", "11.1"), ("sm_70", "13.0")],
)
def test_another_release_is_refused(build, csrc, tmp_path, architecture, release):
    nvcc, newest = fake_nvcc(tmp_path / "bin", release), {"sm_37": "11.8", "sm_70": "12.9"}[architecture]
    refused(
        build(csrc, "--architecture", architecture, "--nvcc", nvcc),
        f"{nvcc}: release {release}, expected 11.2 to {newest}, which know {architecture}",
    )


# What CUDA 12.8's nvcc says of itself, and of the options in FLAGS and flags_of: those that it takes, and the oldest
# architecture; it has none of Kepler any more.
BANNER = """nvcc: NVIDIA (R) Cuda compiler driver
Copyright (c) 2005-2025 NVIDIA Corporation
Built on Fri_Feb_21_20:23:50_PST_2025
Cuda compilation tools, release 12.8, V12.8.93
Build cuda_12.8.r12.8/compiler.35583870_0
"""
STUB = r"""#!/bin/sh
for word in "$@"; do
    case $word in
    --version) cat "${0%/*}/banner"; exit ;;
    arch=compute_[5-9]?,code=sm_[5-9]? | arch=compute_[5-9]?,code=compute_[5-9]?) ;;
    arch=*) echo "nvcc fatal   : Unsupported gpu architecture '$word'" >&2; exit 1 ;;
    -std=c++1[47] | -std=c++20 | -O3 | -Wno-deprecated-gpu-targets | -cudart | -Xptxas | -v | -Xcompiler | -gencode) ;;
    -ccbin | -lineinfo | -keep | -keep-dir | -c | -o | -shared | -D* | -fPIC,-Wall) ;;
    -*) echo "nvcc fatal   : Unknown option '$word'" >&2; exit 1 ;;
    esac
done
exec NVCC "$@"
"""


@pytest.mark.parametrize(("architecture", "spoil", "message"), [
    ("sm_70", "", ""), ("sm_70", "compute_37", "Unsupported gpu architecture"),
    ("sm_37", "", "release 12.8, expected 11.2 to 11.8, which know sm_37"),
])  # fmt: skip
def test_release_12_8_builds_for_sm_70(build, csrc, tmp_path, cuda_home, ptxas, architecture, spoil, message):
    """A stub of its nvcc, with its own ptxas beside it: the rest of that release is not to be had."""
    tools = tmp_path / "cuda-12.8" / "bin"
    tools.mkdir(parents=True)
    for path in (cuda_home / "bin").iterdir():
        (tools / path.name).symlink_to(path)
    for name, text in (("nvcc", STUB.replace("NVCC", str(cuda_home / "bin/nvcc"))), ("banner", BANNER)):
        (tools / name).unlink(missing_ok=True)
        (tools / name).write_text(text)
    (tools / "nvcc").chmod(0o755)
    (tools / "ptxas").unlink()
    (tools / "ptxas").symlink_to(ptxas)
    (csrc / "norm.cu").write_text(KERNEL % "__global__ void k(float* x) { x[threadIdx.x] = 1.f; }")
    if spoil:
        program = csrc / "build.py"
        program.write_text(program.read_text().replace('architecture.replace("sm", "compute")', f'"{spoil}"'))
    result = build(csrc, "--architecture", architecture, "--nvcc", tools / "nvcc")
    if message:
        refused(result, message)
        return
    assert result[0] == 0, result[1]
    resources = json.loads((tmp_path / "out/resources.json").read_text())
    assert resources["nvcc"] == "12.8"
    (kernel,) = resources["kernels"]
    assert kernel["registers"] > 0


def test_an_incomplete_tree_is_refused(build, csrc, tmp_path):
    nvcc = fake_nvcc(tmp_path / "bin", "11.4", beside=["fatbinary"])
    refused(build(csrc, "--nvcc", nvcc), f"ptxas: not beside nvcc in {tmp_path}/bin")


def test_a_missing_nvcc_is_refused(build, csrc, tmp_path):
    refused(build(csrc, "--nvcc", tmp_path / "nvcc"), f"nvcc: found {tmp_path}/nvcc, expected a file")
    refused(build(csrc, environment={"CUDA_HOME": ""}), "nvcc: found None, expected a file; give --nvcc or set")


def test_a_missing_version_is_refused(csrc):
    """csrc alone, as a host gets it, does not know the port's version."""
    done = subprocess.run([sys.executable, csrc / "build.py"], env={"CUDA_HOME": os.environ["CUDA_HOME"]},
                          capture_output=True, text=True)
    assert done.returncode == 1
    assert "--version: left out" in done.stderr


def test_a_newer_cuda_on_path_changes_nothing(build, csrc, tmp_path):
    """Its tools know no sm_37; nvcc takes them from PATH unless its own come first."""
    newer = tmp_path / "cuda-13" / "bin"
    newer.mkdir(parents=True)
    for name in ("ptxas", "fatbinary", "cicc", "cudafe++", "nvcc", "nvlink"):
        (newer / name).write_text("#!/bin/sh\necho \"$0: Value 'sm_37' is not defined\" >&2\nexit 1\n")
        (newer / name).chmod(0o755)
    (csrc / "norm.cu").write_text(KERNEL % "__global__ void k(float* x) { *x = 1.f; }")
    status, printed = build(csrc, environment={"PATH": f"{newer}:/usr/bin:/bin", "NVCC_APPEND_FLAGS": "-arch=sm_90"})
    assert status == 0, printed


def test_tools_beside_nvcc_come_first_on_its_path(build, csrc, tmp_path):
    """Not every nvcc has a profile that says so."""
    nvcc, newer = fake_nvcc(tmp_path / "bin", "11.4"), tmp_path / "newer"
    nvcc.write_text(
        "#!/bin/sh\ncase $* in *--version*) echo release 11.4, V11.4.99;; *) command -v ptxas; exit 1;; esac\n"
    )
    newer.mkdir()
    (newer / "ptxas").symlink_to("/bin/true")
    refused(
        build(csrc, "--nvcc", nvcc, environment={"PATH": f"{newer}:/usr/bin:/bin"}),
        f"nvcc failed (1):\n{tmp_path}/bin/ptxas",
    )
