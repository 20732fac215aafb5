"""The compilers, and the library that tests/kernels.sh built with them."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
CSRC = PROJECT / "vllm_src" / "csrc"
sys.path.insert(0, str(PROJECT / "molecule" / "shared"))

from standin import artifacts  # noqa: E402


@pytest.fixture(scope="session")
def cuda_home() -> Path:
    return Path(os.environ["CUDA_HOME"])


def directory(architecture: str) -> Path:
    """Where tests/library.sh has built for an architecture."""
    return Path(os.environ["KEPLER_CACHE"]) / ("kernels" if architecture == "sm_37" else f"kernels-{architecture}")


@pytest.fixture(scope="session")
def ptxas(tmp_path_factory) -> Path:
    """The assembler of CUDA 12.8, which hosts of the profile volta compile with: Triton's wheel in its lock has it."""
    path = tmp_path_factory.mktemp("cuda-12.8") / "ptxas"
    with zipfile.ZipFile(artifacts.wheel("volta", "triton")) as wheel:
        path.write_bytes(wheel.read("triton/backends/nvidia/bin/ptxas"))
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def built() -> Path:
    """What was built for sm_37."""
    return directory("sm_37")


@pytest.fixture(scope="session", params=["sm_37", "sm_70"])
def architecture(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def each_built(architecture) -> Path:
    """What was built for each architecture in turn."""
    return directory(architecture)


@pytest.fixture
def csrc(tmp_path) -> Path:
    """A copy of the sources with one small kernel file in place of the families, for a test to spoil."""
    copy = tmp_path / "csrc"
    shutil.copytree(CSRC, copy, ignore=shutil.ignore_patterns("*.cu", "build", "__pycache__"))
    shutil.copy(CSRC / "library.cu", copy)
    return copy


@pytest.fixture
def build(cuda_home, tmp_path):
    """Function that runs build.py of a directory: (exit status, output)."""

    def run(csrc, *arguments, environment=None):
        done = subprocess.run(
            [sys.executable, csrc / "build.py", "--version", "0.1.0", "--out", tmp_path / "out",
             "--ccbin", cuda_home / "gcc10/usr/bin/g++-10", *arguments],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})},
        )
        return done.returncode, done.stdout

    return run
