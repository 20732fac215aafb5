"""PyTorch from source: every variable of the recipe, and its whole way on a small tree of the same shape.

Nobody has built the real tree in full with this recipe yet.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pip
import pytest
import yaml
from ansible_collections.kepler.vllm.plugins.module_utils.store import address, build
from ansible_collections.kepler.vllm.plugins.module_utils.store.errors import StoreError
from ansible_collections.kepler.vllm.plugins.module_utils.store.fetch import sha256_of
from recipes import needs_namespaces
from rendered import evaluate, render

ROOT = Path(__file__).resolve().parents[3]
ROLE = ROOT / "roles" / "pytorch"

VERSION = yaml.safe_load((ROOT / "profiles/k80/lock/sources.yml").read_text())["sources"]["pytorch"]["version"]
RPMS = yaml.safe_load((ROOT / "profiles/k80/lock/rpms.yml").read_text())["rpms"]
GCC = "/opt/rh/gcc-toolset-10/root/usr/bin"
CUDA = "/usr/local/cuda-11.4"
ENVIRONMENT = {
    "PATH": f"{GCC}:{CUDA}/bin:/usr/bin:/bin",
    "CUDA_HOME": CUDA,
    "CC": f"{GCC}/gcc",
    "CXX": f"{GCC}/g++",
    "CUDAHOSTCXX": f"{GCC}/g++",
    "TORCH_CUDA_ARCH_LIST": "3.7",
    "PYTORCH_BUILD_VERSION": VERSION,
    "PYTORCH_BUILD_NUMBER": "1",
    "USE_CUDA": "1",
    "USE_CUDNN": "1",
    "USE_NCCL": "1",
    "USE_SYSTEM_NCCL": "0",
    "USE_DISTRIBUTED": "1",
    "USE_MKLDNN": "0",
    "BUILD_TEST": "0",
}


@pytest.fixture
def environment(play):
    """The environment of the build as the role renders it."""
    tasks = [{"name": "Render", "ansible.builtin.copy": {
        "content": "{{ [__pytorch_build_environment, kepler_lock | kepler.vllm.locked_rpms('compiler')"
                   " + kepler_lock | kepler.vllm.locked_rpms('cuda_toolkit')] | to_json }}",
        "dest": "{{ playbook_dir }}/rendered.json"}}]
    status, output = play(
        tasks, gather_facts=False,
        vars_files=[str(ROLE / "vars/main.yml")],
    )
    assert status == 0, output
    return lambda directory: json.loads((directory / "rendered.json").read_text())


def test_every_variable_of_the_build(environment, tmp_path):
    found, toolchain = environment(tmp_path)
    # The module hands every value to the builder as text.
    assert {name: str(value) for name, value in found.items()} == ENVIRONMENT
    rpms = [rpm for role in ("compiler", "cuda_toolkit") for rpm in RPMS if rpm["role"] == role]
    assert len(toolchain) == len(rpms)
    for nevra, rpm in zip(toolchain, rpms, strict=True):
        assert nevra.startswith(rpm["name"])
        if "version" in rpm:
            assert nevra.endswith(f"{rpm['version']}-{rpm['release']}.{rpm['arch']}")


def test_what_the_role_hands_to_the_store():
    (task,) = yaml.safe_load((ROLE / "tasks/install_source.yml").read_text())
    arguments = task["kepler.vllm.store_output"]
    assert arguments["name"] == "pytorch"
    assert arguments["version"] == "{{ kepler_lock.sources.pytorch.version }}"
    assert arguments["environment"] == "{{ __pytorch_build_environment }}"
    assert arguments["jobs"] == "{{ __pytorch_jobs }}"
    assert arguments["inputs"] == "{{ __store_python }}"
    assert " ".join(arguments["sources"].split()) == (
        "{{ [kepler_lock.sources | kepler.vllm.locked_source('pytorch')] "
        "+ kepler_lock.python['pytorch-build'] | kepler.vllm.locked_wheels }}"
    )
    assert arguments["toolchain"] == (
        "{{ kepler_lock | kepler.vllm.locked_rpms('compiler') "
        "+ kepler_lock | kepler.vllm.locked_rpms('cuda_toolkit') }}"
    )


@pytest.mark.parametrize(("asked", "cores", "memory_mib", "jobs"), [
    (0, 56, 63 * 1024, 15),
    (0, 8, 512 * 1024, 8),
    (0, 4, 3000, 1),
    (0, 16, 32 * 1024, 8),
    (24, 4, 3000, 24),
    ("6", 56, 512 * 1024, 6),
])
def test_jobs_are_bounded_by_memory_and_cores_by_default(asked, cores, memory_mib, jobs):
    facts = {"processor_vcpus": cores, "memtotal_mb": memory_mib}
    found = evaluate("pytorch", "{{ __pytorch_jobs }}", pytorch_jobs=asked, ansible_facts=facts)
    assert int(found) == jobs


# CMake files that make the calls which decide what PyTorch 2.0.1 finds; nothing of them is compiled.
PROJECT = """
cmake_minimum_required(VERSION 3.18)
project(small NONE)
set(CMAKE_FIND_LIBRARY_PREFIXES lib)
set(CMAKE_FIND_LIBRARY_SUFFIXES .so .a)
foreach(part CUDA CUDNN NCCL DISTRIBUTED)
  option(USE_${part} "" ON)
endforeach()
find_library(CUDA_CUDA_LIB cuda PATHS "$ENV{CUDA_HOME}" PATH_SUFFIXES lib lib64 lib/stubs lib64/stubs)
find_library(CUDNN_LIBRARY_PATH cudnn PATHS ${CUDNN_LIBRARY} PATH_SUFFIXES lib64 lib)
if(NOT CUDNN_LIBRARY_PATH)
  set(USE_CUDNN OFF CACHE BOOL "" FORCE)
endif()
string(REPLACE "." "" architecture "$ENV{TORCH_CUDA_ARCH_LIST}")
add_custom_target(kernels COMMAND nvcc -gencode "arch=compute_${architecture},code=sm_${architecture}")
"""
# A small tree that builds as the real one does: by setup.py, from what the environment says.
SETUP = """
import json, os, subprocess, sys, zipfile

if sys.argv[1:] == ["build", "--cmake-only"]:
    names = [name for name in os.environ if name.startswith("USE_")]
    names += ["CMAKE_PREFIX_PATH", "CUDNN_LIBRARY", *os.environ.get("CACHED", "").split()]
    flags = ["-D%s=%s" % (name, os.environ[name]) for name in names]
    subprocess.run(["cmake", "-S", ".", "-B", "build", *flags, *os.environ["FLAGS"].split()], check=True)
    sys.exit()
assert sys.argv[1:] == ["bdist_wheel"]
version = os.environ["PYTORCH_BUILD_VERSION"]
open(os.environ["COMPILED"], "w").close()
runpath = os.environ["RUNPATH"].replace("@WORK@", os.path.dirname(os.getcwd()))
for name in ("libtorch.so", "libcaffe2_nvrtc.so", "torch_shm_manager"):
    subprocess.run([os.environ["REAL_CC"], "-shared", "-o", name, "torch.c", "-Wl,-rpath," + runpath], check=True)
os.mkdir("dist")
print("[1/2] compiling", flush=True)
with zipfile.ZipFile("dist/torch-%s-py3-none-any.whl" % version, "w") as wheel:
    wheel.write("libtorch.so", "torch/lib/libtorch.so")
    wheel.write("libcaffe2_nvrtc.so", "torch/lib/libcaffe2_nvrtc.so")
    wheel.write("torch_shm_manager", "torch/bin/torch_shm_manager")
    wheel.writestr("torch/__init__.py", "environment = %r" % json.dumps(dict(os.environ)))
    info = "torch-%s.dist-info" % version
    wheel.writestr(info + "/METADATA", "Metadata-Version: 2.1\\nName: torch\\nVersion: %s\\n" % version)
    wheel.writestr(info + "/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr(info + "/RECORD", "")
"""

# A Python whose environments borrow this one's pip: unpacking another takes ten seconds each time.
PYTHON = f"""
mkdir -p "$out/bin"
cat > "$out/bin/python3.10" <<'EOF'
#!/bin/sh -e
"{sys.executable}" "$@" --without-pip
echo "{Path(pip.__file__).parents[1]}" > "$(echo tools/lib/python3.*/site-packages)/pip.pth"
EOF
chmod +x "$out/bin/python3.10"
"""


def write_wheel(directory, name, files, scripts=None):
    """A wheel of these files; scripts become commands."""
    path = directory / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
        for script, text in (scripts or {}).items():
            entry = zipfile.ZipInfo(f"{name}-1.0.data/scripts/{script}")
            entry.external_attr = 0o100755 << 16
            wheel.writestr(entry, text)
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return path


def tool(name):
    """Path of a build tool, which the environment of the tests has."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert path, f"{name}: found none; expected the one of requirements/controller.txt. Make the tools again."
    return path


def program(name):
    """A build tool as a script that runs the one of this machine."""
    return f'#!/bin/sh\nexec "{tool(name)}" "$@"\n'


class Miniature:
    """The small tree, built by the role's recipe into a store of its own."""

    def __init__(self, tmp_path):
        self.compiler = shutil.which("gcc") or shutil.which("cc")
        if not self.compiler:
            pytest.skip("needs a C compiler")
        self.root, self.given = tmp_path / "kepler", tmp_path / "given"
        self.cuda, self.compiled = tmp_path / "cuda", tmp_path / "compiled"
        (self.cuda / "lib64/stubs").mkdir(parents=True)
        (self.cuda / "lib64/stubs/libcuda.so").touch()
        tree = self.given / "pytorch"
        tree.mkdir(parents=True)
        (tree / "setup.py").write_text(SETUP)
        (tree / "CMakeLists.txt").write_text(PROJECT)
        (tree / "torch.c").write_text("int torch(void) { return 37; }\n")
        self.archive = self.given / f"pytorch-v{VERSION}.tar.gz"
        with tarfile.open(self.archive, "w:gz") as tar:
            tar.add(tree, arcname=f"pytorch-v{VERSION}")
        self.python = {
            "name": "python310", "version": "3", "system": "x86_64-linux", "environment": {}, "sources": [],
            "inputs": {}, "toolchain": [],
            "builder": PYTHON,
        }
        build.realise(str(self.root), self.python, [], [])

    def make(self, runpath="$ORIGIN", cudnn=("libcudnn.so.8", "libcudnn_ops_infer.so.8"), flags="", programs=None,
             **environment):
        """Path of the output. flags: options for CMake that stand for another host. programs: other build tools."""
        tools = {**{name: program(name) for name in ("cmake", "patchelf")}, **(programs or {})}
        files = [
            self.archive,
            write_wheel(self.given, "nvidia_cudnn_cu11", {
                "nvidia/cudnn/__init__.py": "", **{f"nvidia/cudnn/lib/{name}": name for name in cudnn}}),
            write_wheel(self.given, "tools", {}, tools),
        ]
        recipe = {
            "name": "pytorch", "version": VERSION, "system": "x86_64-linux", "toolchain": ["gcc"], "jobs": 3,
            "builder": render("pytorch", "build-source.sh"),
            "environment": {
                **ENVIRONMENT, "CUDA_HOME": str(self.cuda), "REAL_CC": self.compiler, "RUNPATH": runpath,
                "COMPILED": str(self.compiled), "FLAGS": flags, **environment,
            },
            "inputs": {"python310": address.output_path(str(self.root), self.python)},
            "sources": [{"name": f.name, "file": f.name, "sha256": sha256_of(str(f)), "urls": [f"file://{f}"]}
                        for f in files],
        }
        build.realise(str(self.root), recipe, [], [])
        return Path(address.output_path(str(self.root), recipe))


@pytest.fixture
def miniature(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "LOGS", str(tmp_path / "log"))
    made = Miniature(tmp_path)
    yield made
    build.remove_tree(str(made.root))


def runpath(library):
    """Search path of an ELF file, as the loader reads it."""
    shown = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    found = re.search(r"R(?:UN)?PATH\).*\[(.*)\]", shown)
    return found[1] if found else ""


@needs_namespaces
def test_the_whole_way_on_a_small_tree(miniature):
    toolkit = f"{CUDA}/lib64"
    site = miniature.make(
        f"$ORIGIN:{toolkit}/stubs:@WORK@/tools/lib:{toolkit}:@WORK@/tree/build/lib::{toolkit}/stubs/"
    ) / "site-packages"
    shown = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.environment)"], env={"PYTHONPATH": str(site)},
        capture_output=True, text=True, check=True,
    ).stdout
    seen = json.loads(shown)
    same = set(ENVIRONMENT) - {"PATH", "CUDA_HOME"}
    assert {name: seen[name] for name in same} == {name: ENVIRONMENT[name] for name in same}
    assert seen["PATH"].endswith(ENVIRONMENT["PATH"])
    assert seen["PATH"].split(":")[0].endswith("/tools/bin")
    assert seen["MAX_JOBS"] == "3"
    assert "CUDNN_LIB_DIR" not in seen
    # cuDNN travels with torch; bytecode is compiled before the tree is frozen.
    assert {path.name for path in (site / "torch/lib").iterdir()} == {
        "libtorch.so", "libcaffe2_nvrtc.so", "libcudnn.so.8", "libcudnn_ops_infer.so.8"
    }
    assert list(site.glob("torch/__pycache__/*.pyc"))
    # What stays is what any host has: the library's own directory, and the toolkit's.
    for library in ("lib/libtorch.so", "lib/libcaffe2_nvrtc.so", "bin/torch_shm_manager"):
        assert runpath(site / "torch" / library) == f"$ORIGIN:{toolkit}"


@needs_namespaces
@pytest.mark.parametrize("left", [f"{CUDA}/lib64/stubs", "@WORK@/tools/lib"])
def test_a_search_path_that_stays_wrong_is_refused(miniature, left):
    idle = program("patchelf").replace("exec", 'if [ "$1" = --set-rpath ]; then exit; fi; exec')
    with pytest.raises(StoreError, match="its search path names a directory of stubs or of the build"):
        miniature.make(f"$ORIGIN:{left}", programs={"patchelf": idle})


@needs_namespaces
@pytest.mark.parametrize(("flags", "options", "found"), [
    ("", {"cudnn": ["libcudnn_ops_infer.so.8"]}, ["USE_CUDNN: found OFF; expected ON", "CUDNN_LIBRARY_PATH: found"]),
    ("-DCUDNN_LIBRARY_PATH=/usr/lib64/libcudnn.so", {}, ["CUDNN_LIBRARY_PATH: found /usr/lib64/libcudnn.so; expected"]),
    ("-DUSE_NCCL=OFF", {}, ["USE_NCCL: found OFF; expected ON"]),
    ("-DUSE_DISTRIBUTED=0", {}, ["USE_DISTRIBUTED: found 0; expected ON"]),
    ("-DUSE_CUDA=OFF", {}, ["USE_CUDA: found OFF; expected ON"]),
    ("", {"TORCH_CUDA_ARCH_LIST": "7.0"}, ["compute_37: found in no command of the build; expected"]),
    ("", {"TORCH_CUDA_ARCH_LIST": "3.7;8.0", "CACHED": "TORCH_CUDA_ARCH_LIST"},
     ["TORCH_CUDA_ARCH_LIST: found 3.7;8.0; expected 3.7"]),
    ("-DCUDA_CUDA_LIB=/toolkit/lib64/stubs/libcuda.so", {}, ["CUDA_CUDA_LIB: found /toolkit/lib64/stubs/libcuda.so"]),
    ("", {"CUDA_HOME": "/none"}, ["CUDA_CUDA_LIB: found"]),
], ids=[
    "no cuDNN", "another cuDNN", "no NCCL", "not distributed", "no CUDA", "another die", "two dies", "the stub",
    "no toolkit",
])
def test_another_configuration_ends_before_anything_is_compiled(miniature, flags, options, found):
    with pytest.raises(StoreError) as raised:
        miniature.make(flags=flags, **options)
    message = str(raised.value)
    for text in [*found, "nothing was compiled", "run again, or set pytorch_provider: wheel"]:
        assert text in message
    assert message.count("; expected") == len(found)
    assert not miniature.compiled.exists()


CUDNN_LAYOUTS = {
    "the wheel's own file": ("libcudnn.so.8", "/libcudnn.so.8", False),
    "a directory without the link": ("libcudnn.so.8", "", False),
    "the link itself": ("libcudnn.so", "/libcudnn.so", False),
    "a directory with the link": ("libcudnn.so", "", True),
}


@pytest.mark.parametrize(("name", "suffix", "found"), CUDNN_LAYOUTS.values(), ids=CUDNN_LAYOUTS)
def test_what_cmake_makes_of_cudnns_library(tmp_path, name, suffix, found):
    """Why the recipe makes a link and names its directory."""
    (tmp_path / "CMakeLists.txt").write_text(PROJECT)
    (tmp_path / "cudnn").mkdir()
    (tmp_path / "cudnn" / name).touch()
    library = f"{tmp_path}/cudnn{suffix}"
    subprocess.run([tool("cmake"), "-S", tmp_path, "-B", tmp_path / "build", f"-DCUDNN_LIBRARY={library}"], check=True,
                   capture_output=True, env={**os.environ, "CUDA_HOME": str(tmp_path)})
    cache = (tmp_path / "build/CMakeCache.txt").read_text()
    assert ("CUDNN_LIBRARY_PATH:FILEPATH=CUDNN_LIBRARY_PATH-NOTFOUND" not in cache) is found
