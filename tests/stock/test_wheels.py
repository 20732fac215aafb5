"""The locked wheels hold machine code for compute capability 7.0, and load on the release that the profile names."""

import os
import re
import zipfile
from pathlib import Path

import pytest
import wheels

SITES = [Path(site) for site in os.environ["STOCK_SITES"].split(":")]
WHEEL = Path(os.environ["STOCK_WHEEL"])
SM = 70
# Of Enterprise Linux 9: glibc, and libstdc++ of its gcc 11.
RELEASE = {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13)}


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root could not write there")
def test_kept_outputs_cannot_be_written_by_root():
    """Stand-ins begin with them, and what is not as it was built is not published."""
    kept = [site for site in SITES if (site.parent / ".kepler-manifest.json").exists()]
    for site in kept:
        with pytest.raises(OSError, match="Read-only file system"):
            (site / "written").touch()
    assert kept or len(SITES) == 1


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The operators of vLLM's own wheel, names and paths; those of FlashAttention serve no GPU below 8.0."""
    directory = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(WHEEL) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".so") and "flash_attn" not in name]
        return {name: Path(wheel.extract(name, directory)) for name in names}


@pytest.fixture(scope="module")
def there(released):
    """All libraries of the environment, with vLLM's own in place of the build for the CPU."""
    others = [path for site in SITES for path in wheels.libraries(site) if path.relative_to(site).parts[0] != "vllm"]
    assert len(others) > 300
    return [*released.values(), *others]


def in_sites(pattern):
    (found,) = [path for site in SITES for path in site.glob(pattern)]
    return found


@pytest.mark.parametrize(("name", "least"), [("vllm/_C.abi3.so", 29), ("vllm/_moe_C.abi3.so", 7)])
def test_operators_of_vllm_have_code_for_the_gpus(released, name, least):
    assert wheels.machine_code(released[name])[SM] >= least


@pytest.mark.parametrize("pattern", [
    "torch/lib/libtorch_cuda.so", "nvidia/cublas/lib/libcublas.so.12", "nvidia/cublas/lib/libcublasLt.so.12",
    "nvidia/nccl/lib/libnccl.so.2", "nvidia/cudnn/lib/libcudnn_engines_precompiled.so.9",
    "nvidia/cudnn/lib/libcudnn_ops.so.9",
])
def test_libraries_below_have_code_for_the_gpus(pattern):
    assert wheels.machine_code(in_sites(pattern))[SM]


def test_every_library_loads_on_the_release(there):
    faults = [
        (str(path), family, version) for path in there
        for family, version in wheels.needed(path).items() if version > RELEASE.get(family, version)
    ]
    assert not faults


def test_no_library_needs_a_newer_glibc_than_preflight_asks_for(there):
    """Preflight reads the tags of the locked files alone, and vLLM's is the newest of them."""
    (asked,) = re.findall(r"manylinux_2_(\d+)", WHEEL.name)
    needed = {path: wheels.needed(path).get("GLIBC", ()) for path in there}
    assert max(needed.values()) <= (2, int(asked))
    # The reader reads: one symbol of the experts' operators is above the 2.28 of Enterprise Linux 8.
    assert {path.name for path, version in needed.items() if version == (2, 29)} == {"_moe_C.abi3.so"}
