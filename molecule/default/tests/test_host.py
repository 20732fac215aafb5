"""The layers below the server: repositories, driver, toolkit, compiler, store."""

import json
import re
from pathlib import Path

import pytest
from conftest import PROJECT
from standin import repos

STORE = "/opt/kepler"


@pytest.fixture
def driver(lock):
    """Version of the locked driver."""
    return next(rpm["version"] for rpm in lock["rpms"]["rpms"] if rpm["name"] == "nvidia-driver")


def test_every_locked_package_is_there(k80, lock):
    installed = set(
        k80.check_output("rpm -qa --queryformat '%{NAME}-%{EPOCHNUM}:%{VERSION}-%{RELEASE}.%{ARCH}\\n'").split()
    )
    # The roles `store` and `python` install theirs where they build from source.
    wanted = [rpm for rpm in lock["rpms"]["rpms"] if rpm["role"] not in ("store", "python")]
    exact = {"{name}-{epoch}:{version}-{release}.{arch}".format(**rpm) for rpm in wanted if "version" in rpm}
    assert exact - installed == set()
    assert {rpm["name"] for rpm in wanted} - {name.rsplit("-", 2)[0] for name in installed} == set()


def test_packages_are_added_and_none_is_moved(k80):
    """The host had a kernel and newer packages than the repositories' oldest, which stay as they were."""
    had = {
        Path(line).name.removesuffix(".rpm") for line in k80.file("/opt/stub-repos/preinstalled").content_string.split()
    }
    there = k80.check_output("rpm -qa --queryformat '%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}\\n'").split()
    assert had - set(there) == set()
    # Two versions of one package are there of nothing.
    names = [name.rsplit("-", 2)[0] for name in there if not name.startswith("gpg-pubkey")]
    assert len(set(names)) == len(names)
    assert k80.check_output("rpm -q kernel-devel") == f"kernel-devel-{repos.RUNNING}.x86_64"


def test_the_generation_records_what_is_installed(k80, lock):
    described = json.loads(k80.file(f"{STORE}/current/generation.json").content_string)
    names = {rpm["name"] for rpm in lock["rpms"]["rpms"] if rpm["role"] != "python"}
    assert {name.rsplit("-", 2)[0] for name in described["packages"]} == names
    assert "dkms-0:3.3.0-1.el8.noarch" in described["packages"]


def test_nothing_newer_came_in(k80, driver):
    """The repositories offer a newer driver as default stream, newer kernels and a newer CUDA."""
    assert k80.check_output("rpm -q --queryformat '%{VERSION}' nvidia-driver") == driver
    assert k80.run("rpm -q cuda-nvcc-12-4").rc != 0


def test_an_update_moves_nothing(k80):
    """Kernel and driver are held, and of everything else the newest is there."""
    before = k80.check_output("rpm -qa | sort")
    assert k80.run("dnf --assumeyes update").rc == 0
    assert k80.check_output("rpm -qa | sort") == before


def test_the_module_stream_is_enabled(k80):
    assert "stream=470-dkms" in k80.file("/etc/dnf/modules.d/nvidia-driver.module").content_string.replace(" ", "")


@pytest.mark.parametrize("name", ["epel", "cuda-rhel8"])
def test_signatures_are_checked(k80, name):
    assert "gpgcheck = 1" in k80.file(f"/etc/yum.repos.d/{name}.repo").content_string


def test_nouveau_is_off(k80):
    assert "blacklist nouveau" in k80.file("/etc/modprobe.d/kepler-nouveau.conf").content_string


def test_the_driver_sees_four_dies(k80, driver):
    listed = k80.check_output("nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader")
    assert listed.splitlines() == [f"Tesla K80, {driver}, 3.7"] * 4


def test_the_toolkit_leaves_the_others_alone(k80):
    assert k80.file("/usr/local/cuda-11.4/bin/nvcc").exists
    assert not k80.file("/usr/local/cuda").exists


def test_the_active_generation_is_whole(k80, driver, compiler):
    described = json.loads(k80.file(f"{STORE}/current/generation.json").content_string)
    kernels = {"vllm_kernels"} if compiler else set()
    assert set(described["outputs"]) == {
        "python310", "pytorch", "vllm", "vllm_dependencies", "vllm_kepler", "vllm_serving", "serving", *kernels,
    }  # fmt: skip
    assert described["driver"] == driver
    for name, path in described["outputs"].items():
        assert k80.check_output(f"readlink -f {STORE}/current/{name}") == path
        assert k80.file(f"{path}/.kepler-manifest.json").exists


def test_outputs_cannot_be_written(k80):
    """No file has a right to write; nothing of the servers' user is in the store."""
    assert k80.check_output(f"find {STORE}/store -not -type l -perm /222 -not -path {STORE}/store | head -n 3") == ""
    assert k80.check_output(f"find {STORE}/store -not -user root | head -n 3") == ""


def test_an_output_is_what_its_manifest_says(k80):
    """Hash a whole output again with another program: the port's."""
    path = k80.check_output(f"readlink -f {STORE}/current/vllm_kepler")
    manifest = json.loads(k80.file(f"{path}/.kepler-manifest.json").content_string)
    listed = k80.check_output(f"cd {path} && find . -type f -not -name .kepler-manifest.json -exec sha256sum {{}} +")
    hashed = dict(reversed(line.split("  ", 1)) for line in listed.splitlines())
    assert hashed == {f"./{entry['path']}": entry["sha256"] for entry in manifest["files"] if entry["type"] == "file"}


def test_vllm_is_unmodified(k80, lock):
    """The output holds the pinned version, made from the pinned archive."""
    path = k80.check_output(f"readlink -f {STORE}/current/vllm")
    manifest = json.loads(k80.file(f"{path}/.kepler-manifest.json").content_string)
    source = lock["sources"]["sources"]["vllm"]
    assert [source["file"], source["sha256"]] in [entry[1:] for entry in manifest["sources"]]


def test_the_kernels_load_in_the_serving_interpreter(k80, compiler):
    """The library that nvcc made on this host; no GPU runs it here."""
    if not compiler:
        pytest.skip("the private nvcc is Debian's and does not run over Rocky's own image")
    kernels, serving = (k80.check_output(f"readlink -f {STORE}/current/{name}") for name in ("vllm_kernels", "serving"))
    assert k80.file(f"{serving}/lib/libvllm_kepler.so").linked_to == f"{kernels}/lib/libvllm_kepler.so"
    program = (
        "import ctypes, sys; library = ctypes.CDLL(sys.prefix + '/lib/libvllm_kepler.so'); "
        "library.kepler_version.restype = library.kepler_architectures.restype = ctypes.c_char_p; "
        "print(library.kepler_version().decode(), library.kepler_architectures().decode())"
    )
    version = re.search('"([0-9][^"]*)"', (PROJECT / "vllm_src" / "vllm_kepler" / "version.py").read_text())[1]
    assert k80.check_output(f'{serving}/bin/python -c "{program}"') == f"{version} sm_37 compute_37"
    resources = json.loads(k80.file(f"{kernels}/lib/resources.json").content_string)
    assert (resources["nvcc"], resources["version"]) == ("11.2", version)
    assert all(kernel["registers"] > 0 for kernel in resources["kernels"])
    manifest = json.loads(k80.file(f"{kernels}/.kepler-manifest.json").content_string)
    assert "release 11.2" in manifest["recipe"]["toolchain"][0]


def test_the_other_host_is_untouched(other):
    for path in ("/opt/kepler", "/etc/kepler", "/etc/yum.repos.d/cuda-rhel8.repo", "/etc/systemd/system/vllm@.service"):
        assert not other.file(path).exists
    assert other.run("rpm -q nvidia-driver").rc != 0
