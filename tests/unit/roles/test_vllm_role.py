"""The role vllm: what it takes for a compiler, what it says of another, and what the kernels' key depends on."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rendered import evaluate, render

ROOT = Path(__file__).resolve().parents[3]
ROLE = ROOT / "roles" / "vllm"
DEFAULTS = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
COMPILERS = {name: evaluate("vllm", DEFAULTS[name]) for name in ("vllm_kernels_nvcc", "vllm_kernels_ccbin")}
RPMS = yaml.safe_load((ROOT / "profiles/k80/lock/rpms.yml").read_text())["rpms"]
LOOK = [
    {"name": "Look", "ansible.builtin.import_tasks": str(ROLE / "tasks/compilers.yml")},
    {"name": "Say", "ansible.builtin.debug": {"msg": "toolchain: {{ vllm_kernels_toolchain | to_json }}"}},
]
GCC = "g++ (GCC) 10.3.1 20210422 (Red Hat 10.3.1-1)"


def nvcc(release):
    """What nvcc of a release answers, as a script."""
    answer = f"nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release {release}, V{release}.9"
    return f"echo '{answer}'"


@pytest.fixture
def look(play, tmp_path):
    """Run the look at the compilers; scripts in place of them: (status, output in one line)."""

    def run(*options, variables=None, **programs):
        given = {"vllm_kernels_nvcc": "nvcc", "vllm_kernels_ccbin": "g++", **(variables or {})}
        directory = tmp_path / "programs"
        paths = {name: str(directory / path) for name, path in given.items()}
        status, output = play(
            LOOK, *options, variables={**DEFAULTS, **paths}, programs={"g++": f"echo '{GCC}'", **programs},
            vars_files=[str(ROLE / "vars/main.yml")], gather_facts=False,
        )
        assert "changed=0" in output, output
        return status, " ".join(output.split())

    return run


@pytest.mark.parametrize("release", ["11.2", "11.4", "11.8"])
def test_compilers_that_are_taken_are_the_toolchain(look, release):
    status, output = look(nvcc=nvcc(release))
    assert status == 0, output
    assert f'Cuda compilation tools, release {release}, V{release}.9", "{GCC}"]' in output.replace("\\", "")


@pytest.mark.parametrize("options", [(), ("--check",)], ids=["run", "check"])
@pytest.mark.parametrize("release", ["10.2", "11.1", "11.9", "12.4", "111.4"])
def test_an_nvcc_of_another_release(look, options, release):
    status, output = look(*options, nvcc=nvcc(release))
    assert status != 0
    assert "vllm_kernels_nvcc: found" in output
    assert f"which answered ''Cuda compilation tools, release {release}" in output
    assert "expected the nvcc of a CUDA 11.2 to 11.8" in output
    assert "Correct the path, or leave the variable out" in output


@pytest.mark.parametrize("options", [(), ("--check",)], ids=["run", "check"])
@pytest.mark.parametrize("variable", ["vllm_kernels_nvcc", "vllm_kernels_ccbin"])
def test_a_compiler_that_is_not_there(look, options, variable):
    status, output = look(*options, variables={variable: "nothing"}, nvcc=nvcc("11.2"))
    assert status != 0
    assert f"{variable}: found" in output
    assert "No such file or directory" in output
    assert "Correct the path, or leave the variable out" in output


@pytest.mark.skipif(
    any(Path(path).exists() for path in COMPILERS.values()),
    reason="the locked compilers are installed on this machine",
)
def test_the_locked_compilers_may_be_missing_in_a_dry_run_alone(look):
    status, output = look("--check", variables=COMPILERS)
    assert status == 0, output
    for rpm in (rpm for rpm in RPMS if "version" in rpm):
        nevra = "{name}-{epoch}:{version}-{release}.{arch}".format(**rpm)
        assert (nevra in output) == (rpm["role"] in ("cuda_toolkit", "compiler"))
    status, output = look(variables=COMPILERS)
    assert status != 0
    assert "vllm_kernels_nvcc: found" in output


def test_the_defaults_are_what_the_roles_below_install():
    assert COMPILERS["vllm_kernels_nvcc"] == evaluate("vllm", "{{ __vllm_locked_nvcc }}")
    assert COMPILERS["vllm_kernels_ccbin"] == evaluate("vllm", "{{ __vllm_locked_ccbin }}")
    assert COMPILERS["vllm_kernels_nvcc"] == evaluate("cuda_toolkit", "{{ __cuda_toolkit_home }}/bin/nvcc")
    assert COMPILERS["vllm_kernels_ccbin"] == evaluate("compiler", "{{ __compiler_bin }}/g++")


def test_kernels_port_and_supervisor_are_packed_apart():
    """A change of one leaves the archives of the others as they are."""
    spec = importlib.util.spec_from_file_location("source_archive", ROOT / "plugins/modules/source_archive.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    (packing,) = yaml.safe_load((ROLE / "tasks/sources.yml").read_text())

    def packed(prefix):
        archives = [task["kepler.vllm.source_archive"] for task in packing["block"]]
        arguments = next(archive for archive in archives if archive["prefix"] == prefix)
        path = arguments["path"].replace("{{ __vllm_port }}", str(ROOT / "vllm_src"))
        return module.members(path, arguments["exclude"])

    port, kernels, supervisor = packed("vllm_kepler"), packed("vllm_kernels"), packed("vllm_serving")
    assert {"vllm_kepler/version.py", "vllm_kepler/checkpoint/quantization.py"} <= set(port)
    assert not [name for name in port if name.startswith(("csrc", "vllm_serving"))]
    assert {"__main__.py", "supervisor.py", "checkpoint/engine.py", "versions/v0_9_2.py"} <= set(supervisor)
    sources = [path.name for path in (ROOT / "vllm_src/csrc").iterdir() if re.search("[.](cuh?|h)$", path.name)]
    assert sorted(kernels) == sorted(["build.py", *sources])


@pytest.fixture
def build(tmp_path):
    """Run the recipe of the kernels over a build.py of the test's own: (status, output, directory of the output)."""

    def run(program, version="1.2"):
        for name in ("src", "work", "python/bin", "out"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "csrc").mkdir()
        (tmp_path / "csrc/build.py").write_text("import shutil, subprocess, sys\nout = sys.argv[-1]\n" + program)
        subprocess.run(["tar", "-cf", tmp_path / "src/vllm_kernels.tar", "-C", tmp_path, "csrc"], check=True)
        (tmp_path / "python/bin/python3.10").symlink_to(sys.executable)
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", render("vllm", "build-kernels.sh")],
            cwd=tmp_path / "work", text=True,
            env={"PATH": "/usr/bin:/bin", "python310": str(tmp_path / "python"), "src": str(tmp_path / "src"),
                 "out": str(tmp_path / "out"), "NVCC": "nvcc", "CCBIN": "g++", "VERSION": version},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )
        assert "Traceback" not in done.stdout
        return done.returncode, done.stdout, tmp_path / "out"

    return run


RESOURCES = "for name in ('json', 'txt'): open(out + '/resources.' + name, 'w').close()\n"
LIBRARY = RESOURCES + """
code = 'const char *kepler_version(void) { return "1.2"; } const char *kepler_architectures(void) { return "sm"; }'
command = ['cc', '-shared', '-fPIC', '-xc', '-', '-o', out + '/libvllm_kepler.so']
subprocess.run(command, input=code.encode(), check=True)
"""
NEEDS_CC = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler on this machine")


@NEEDS_CC
def test_the_recipe_leaves_the_library_and_its_resources(build):
    status, output, out = build(LIBRARY)
    assert status == 0, output
    assert sorted(path.name for path in (out / "lib").iterdir()) == [
        "libvllm_kepler.so", "resources.json", "resources.txt"
    ]


@NEEDS_CC
def test_a_library_of_another_version_ends_the_recipe(build):
    status, output, _ = build(LIBRARY, version="1.3")
    assert status != 0
    assert "libvllm_kepler.so: found version 1.2, expected 1.3" in output


def test_a_library_that_does_not_load_ends_the_recipe(build):
    status, output, _ = build(RESOURCES + "open(out + '/libvllm_kepler.so', 'w').close()\n")
    assert status != 0
    assert "libvllm_kepler.so: file too short" in output


def test_the_compilers_message_ends_the_recipe(build):
    status, output, _ = build("sys.exit('build.py: nvcc failed (1): error: no such thing')\n")
    assert status != 0
    assert output.rstrip().endswith("error: no such thing")


PARTS = {"cuDNN": True, "NCCL": True, "torch.distributed": True, "code for sm_37": True}
# A PyTorch as far as the proof asks it.
TORCH = """
import sys, types
torch, parts = types.ModuleType("torch"), {parts}
torch._C = types.SimpleNamespace()
if parts["code for sm_37"] is not None:
    torch._C._cuda_getArchFlags = lambda: "sm_37 sm_50" if parts["code for sm_37"] else "sm_370 sm_50"
torch.backends = types.SimpleNamespace(cudnn=types.SimpleNamespace(is_available=lambda: parts["cuDNN"]))
torch.distributed = types.SimpleNamespace(is_available=lambda: parts["torch.distributed"])
if parts["torch.distributed"]:
    torch.distributed.is_nccl_available = lambda: parts["NCCL"]
sys.modules["torch"] = torch
"""


@pytest.fixture
def verify(play, tmp_path):
    """Run the verification with such a PyTorch: (status, output in one line)."""

    def run(text, *options):
        (tmp_path / "site").mkdir()
        (tmp_path / "site/torch.py").write_text(text)
        (tmp_path / "serving/bin").mkdir(parents=True)
        python = tmp_path / "serving/bin/python"
        python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/site exec "{sys.executable}" "$@"\n')
        if text:
            python.chmod(0o755)
        else:
            python.unlink()
        outputs = {"serving": str(tmp_path / "serving"), "pytorch": "/store/pytorch"}
        tasks = [{"name": "Run", "ansible.builtin.import_role": {"name": "kepler.vllm.vllm", "tasks_from": "verify"}}]
        known = {"store_outputs": outputs, "__store_installed": True}
        status, output = play(tasks, *options, variables=known, gather_facts=False)
        assert "changed=0" in output, output
        return status, " ".join(output.split())

    return run


def test_a_whole_pytorch_is_taken(verify):
    status, output = verify(TORCH.format(parts=PARTS))
    assert status == 0, output


@pytest.mark.parametrize(("lacking", "missing"), [
    ({}, []),
    ({"cuDNN": False}, ["cuDNN"]),
    ({"NCCL": False}, ["NCCL"]),
    ({"torch.distributed": False}, ["NCCL", "torch.distributed"]),
    ({"code for sm_37": False}, ["code for sm_37"]),
    ({"code for sm_37": None}, ["code for sm_37"]),
])
def test_what_pytorch_is_asked(tmp_path, lacking, missing):
    (tmp_path / "torch.py").write_text(TORCH.format(parts={**PARTS, **lacking}))
    shown = subprocess.run(
        [sys.executable, ROLE / "files/pytorch-parts.py", "sm_37"], env={"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=True,
    ).stdout
    assert [part for part, there in json.loads(shown).items() if not there] == missing


def test_a_pytorch_that_lacks_parts_is_refused_by_their_names(verify):
    status, output = verify(TORCH.format(parts={**PARTS, "cuDNN": False, "code for sm_37": False}))
    assert status != 0
    found = "found a PyTorch without cuDNN, code for sm_37; expected one with cuDNN, NCCL"
    assert f"/store/pytorch: {found}" in output
    assert "pytorch_provider: wheel" in output


def test_a_dry_run_judges_what_is_there(verify):
    status, output = verify(TORCH.format(parts={**PARTS, "NCCL": False}), "--check")
    assert status != 0
    assert "found a PyTorch without NCCL" in output


def test_a_dry_run_on_an_empty_host_goes_on(verify):
    status, output = verify("", "--check")
    assert status == 0, output


def test_a_serving_environment_that_is_not_there_is_told(verify):
    status, output = verify("")
    assert status != 0
    assert "No such file or directory" in output


def test_a_pytorch_that_does_not_import_says_why(verify):
    status, output = verify("raise OSError('libcublas.so.11: cannot open shared object file')\n")
    assert status != 0
    assert "found OSError: libcublas.so.11: cannot open shared object file; expected" in output
