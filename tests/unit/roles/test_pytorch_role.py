"""PyTorch from source: every command and variable of the recipe, and its whole way on a small tree of the same shape.

Nobody has built the real tree in full with this recipe yet.
"""

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from recipes import needs_namespaces
from store import address, build
from store.errors import StoreError
from store.fetch import sha256_of

ROOT = Path(__file__).resolve().parents[3]
ROLE = ROOT / "roles" / "pytorch"

VERSION = yaml.safe_load((ROOT / "files/lock/sources.yml").read_text())["sources"]["pytorch"]["version"]
RPMS = yaml.safe_load((ROOT / "files/lock/rpms.yml").read_text())["rpms"]
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
        "content": "{{ [__pytorch_build_environment, kepler_lock | locked_rpms('gcc_toolset')"
                   " + kepler_lock | locked_rpms('cuda_toolkit')] | to_json }}",
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
    rpms = [rpm for role in ("gcc_toolset", "cuda_toolkit") for rpm in RPMS if rpm["role"] == role]
    assert len(toolchain) == len(rpms)
    for nevra, rpm in zip(toolchain, rpms, strict=True):
        assert nevra.startswith(rpm["name"])
        assert nevra.endswith(f"{rpm['version']}-{rpm['release']}.{rpm['arch']}")


def test_what_the_role_hands_to_the_store():
    (task,) = yaml.safe_load((ROLE / "tasks/install_source.yml").read_text())
    arguments = task["store_output"]
    assert arguments["name"] == "pytorch"
    assert arguments["version"] == "{{ kepler_lock.sources.pytorch.version }}"
    assert arguments["environment"] == "{{ __pytorch_build_environment }}"
    assert arguments["jobs"] == "{{ pytorch_jobs }}"
    assert arguments["inputs"] == {"python310": "{{ store_outputs.python310 }}"}
    assert " ".join(arguments["sources"].split()) == (
        "{{ [kepler_lock.sources | locked_source('pytorch')] + kepler_lock.python['pytorch-build'] | locked_wheels }}"
    )
    assert arguments["toolchain"] == (
        "{{ kepler_lock | locked_rpms('gcc_toolset') + kepler_lock | locked_rpms('cuda_toolkit') }}"
    )


COMMANDS = [
    '"$python310/bin/python3.10" -m venv tools',
    'tools/bin/python -m pip --quiet install --no-index --no-deps "$src"/*.whl',
    'export PATH="$PWD/tools/bin:$PATH"',
    "CUDNN_ROOT=\"$(tools/bin/python -c 'import nvidia.cudnn; print(list(nvidia.cudnn.__path__)[0])')\"",
    'export CUDNN_INCLUDE_DIR="$CUDNN_ROOT/include" CUDNN_LIB_DIR="$CUDNN_ROOT/lib" '
    'CUDNN_LIBRARY="$CUDNN_ROOT/lib/libcudnn.so.8"',
    'export CMAKE_PREFIX_PATH="$PWD/tools"',
    'export MAX_JOBS="$KEPLER_JOBS"',
    "mkdir tree",
    'tar -xf "$src"/pytorch-v*.tar.gz --strip-components=1 -C tree',
    "cd tree",
    "python setup.py bdist_wheel",
    'python -m pip --quiet install --root-user-action ignore --no-index --no-deps --no-compile '
    '--target "$out/site-packages" dist/torch-*.whl',
    'cp -P "$CUDNN_ROOT"/lib/libcudnn*.so.8 "$out/site-packages/torch/lib/"',
    'for library in "$out"/site-packages/torch/lib/*.so; do',
    "if readelf -d \"$library\" | grep -E 'R(UN)?PATH' | grep -q stubs; then",
    'echo "$library: its search path names a directory of stubs"',
    "exit 1",
    "fi",
    "done",
    'find "$out/site-packages" -mindepth 1 -maxdepth 1 -print0 | sort -z | xargs -0 -n 1 -P "$KEPLER_JOBS" '
    "python -m compileall -q --invalidation-mode unchecked-hash",
]


def test_every_command_of_the_recipe():
    text = (ROLE / "files/build-source.sh").read_text().replace("\\\n", "")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert [line for line in lines if line and not line.startswith("#")] == COMMANDS


# A small tree that builds as the real one does: by setup.py, from what the environment says.
SETUP = """
import json, os, subprocess, sys, zipfile

assert sys.argv[1:] == ["bdist_wheel"]
version = os.environ["PYTORCH_BUILD_VERSION"]
assert os.path.isfile(os.environ["CUDNN_LIBRARY"])
subprocess.run(["ninja", "--version"], check=True)
subprocess.run([os.environ["REAL_CC"], "-shared", "-o", "libtorch.so", "torch.c", *os.environ["RUNPATH"].split()],
               check=True)
os.mkdir("dist")
print("[1/2] compiling", flush=True)
with zipfile.ZipFile("dist/torch-%s-cp310-none-any.whl".replace("cp310", "py3") % version, "w") as wheel:
    wheel.write("libtorch.so", "torch/lib/libtorch.so")
    wheel.writestr("torch/__init__.py", "environment = %r" % json.dumps(dict(os.environ)))
    info = "torch-%s.dist-info" % version
    wheel.writestr(info + "/METADATA", "Metadata-Version: 2.1\\nName: torch\\nVersion: %s\\n" % version)
    wheel.writestr(info + "/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr(info + "/RECORD", "")
"""


def write_wheel(directory, name, files, scripts=None):
    """A wheel of these files; scripts become commands."""
    path = directory / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
        for script, text in (scripts or {}).items():
            wheel.writestr(f"{name}-1.0.data/scripts/{script}", text)
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def miniature(tmp_path, monkeypatch):
    """Function that builds the small tree by the role's recipe into a store: the path of the output."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        pytest.skip("needs a C compiler")
    monkeypatch.setattr(build, "LOGS", str(tmp_path / "log"))
    root, given = tmp_path / "kepler", tmp_path / "given"
    tree = given / "pytorch"
    tree.mkdir(parents=True)
    (tree / "setup.py").write_text(SETUP)
    (tree / "torch.c").write_text("int torch(void) { return 37; }\n")
    archive = given / f"pytorch-v{VERSION}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tree, arcname=f"pytorch-v{VERSION}")
    libraries = {f"nvidia/cudnn/lib/{name}.so.8": name for name in ("libcudnn", "libcudnn_ops_infer")}
    files = [
        archive,
        write_wheel(given, "nvidia_cudnn_cu11", {"nvidia/cudnn/__init__.py": "", **libraries}),
        write_wheel(given, "ninja", {}, {"ninja": "#!/bin/sh\necho 1.11\n"}),
    ]
    python = {
        "name": "python310", "version": "3", "system": "x86_64-linux", "environment": {}, "sources": [], "inputs": {},
        "toolchain": [], "builder": f'mkdir -p "$out/bin"; ln -s {sys.executable} "$out/bin/python3.10"',
    }
    build.realise(str(root), python, [], [])

    def make(runpath=""):
        recipe = {
            "name": "pytorch", "version": VERSION, "system": "x86_64-linux", "toolchain": ["gcc"], "jobs": 3,
            "builder": (ROLE / "files/build-source.sh").read_text(),
            "environment": {**ENVIRONMENT, "REAL_CC": compiler, "RUNPATH": runpath},
            "inputs": {"python310": address.output_path(str(root), python)},
            "sources": [{"name": f.name, "file": f.name, "sha256": sha256_of(str(f)), "urls": [f"file://{f}"]}
                        for f in files],
        }
        build.realise(str(root), recipe, [], [])
        return Path(address.output_path(str(root), recipe))

    yield make
    build.remove_tree(str(root))


@needs_namespaces
def test_the_whole_way_on_a_small_tree(miniature):
    site = miniature() / "site-packages"
    shown = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.environment)"], env={"PYTHONPATH": str(site)},
        capture_output=True, text=True, check=True,
    ).stdout
    seen = json.loads(shown)
    assert {name: seen[name] for name in ENVIRONMENT if name != "PATH"} == {
        name: value for name, value in ENVIRONMENT.items() if name != "PATH"
    }
    assert seen["PATH"].endswith(ENVIRONMENT["PATH"])
    assert seen["PATH"].split(":")[0].endswith("/tools/bin")
    assert seen["MAX_JOBS"] == "3"
    # cuDNN travels with torch; bytecode is compiled before the tree is frozen.
    assert {path.name for path in (site / "torch/lib").iterdir()} == {
        "libtorch.so", "libcudnn.so.8", "libcudnn_ops_infer.so.8"
    }
    assert list(site.glob("torch/__pycache__/*.pyc"))


@needs_namespaces
def test_a_stub_of_the_driver_in_a_search_path_is_refused(miniature):
    with pytest.raises(StoreError, match=r"libtorch\.so: its search path names a directory of stubs"):
        miniature(f"-Wl,-rpath,{CUDA}/lib64/stubs")
