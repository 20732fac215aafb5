"""Lock entries as dnf, rpm and versionlock take them."""

import pytest
from ansible.errors import AnsibleFilterError
from kepler_rpms import host_rpms, installed_locks, locked_driver, locked_rpms, locked_version, rpms_to_install


def entry(name, role, epoch=0, **keys):
    return {"name": name, "epoch": epoch, "version": "1.2", "release": "3.el8", "arch": "x86_64", "role": role, **keys}


LOCK = {
    "rpms": [
        entry("kernel", "nvidia_driver"),
        entry("nvidia-driver", "nvidia_driver", epoch=3, stream="1-dkms"),
        entry("gcc-c++", "gcc_toolset", arch="noarch"),
    ]
}


def test_nevras_of_a_role_in_the_order_of_the_lock():
    assert locked_rpms(LOCK, "nvidia_driver") == ["kernel-0:1.2-3.el8.x86_64", "nvidia-driver-3:1.2-3.el8.x86_64"]
    assert locked_rpms(LOCK, role="gcc_toolset") == ["gcc-c++-0:1.2-3.el8.noarch"]


def test_a_role_without_packages_is_named():
    with pytest.raises(AnsibleFilterError, match=r"rpms\.yml.*'nvidia'.*gcc_toolset, nvidia_driver"):
        locked_rpms(LOCK, "nvidia")


def test_version_and_driver():
    assert locked_version(LOCK, "nvidia-driver") == "1.2"
    assert locked_driver(LOCK) == {"driver": "1.2", "stream": "1-dkms", "kernel": "1.2-3.el8.x86_64"}
    with pytest.raises(AnsibleFilterError, match="'cuda'"):
        locked_version(LOCK, "cuda")


@pytest.mark.parametrize(
    ("installed", "locks"),
    [
        ([], []),
        (["kernel-0:1.2-3.el8.x86_64", "nvidia-driver-3:1.2-3.el8.x86_64"],
         ["kernel-0:1.2-3.el8.*", "nvidia-driver-3:1.2-3.el8.*"]),
        # The kernel that was there stays beside the new one, and is not locked.
        (["kernel-0:1.1-1.el8.x86_64", "kernel-0:1.2-3.el8.x86_64", "kernel-devel-0:9-1.x86_64"],
         ["kernel-0:1.2-3.el8.*"]),
        # A run that failed: what is there stays locked.
        (["nvidia-driver-3:1.1-1.el8.x86_64"], ["nvidia-driver-3:1.1-1.el8.*"]),
    ],
)  # fmt: skip
def test_what_is_installed_is_locked(installed, locks):
    assert installed_locks(locked_rpms(LOCK, "nvidia_driver"), installed) == locks


def test_a_package_without_a_version_is_locked_as_it_is():
    there = ["dkms-0:3.3.0-1.el8.noarch", "dkms-extra-0:1-1.noarch"]
    assert installed_locks(["dkms >= 0:3.0.13"], there) == ["dkms-0:3.3.0-1.el8.*"]
    assert installed_locks(["dkms"], there) == ["dkms-0:3.3.0-1.el8.*"]


def test_what_a_host_gets_from_dnf():
    lock = {"rpms": [*LOCK["rpms"], entry("gcc", "python310"), entry("nginx", "load_balancer"),
                     entry("kmod", "nvidia_driver", module="m")]}

    def names(*arguments):
        return [item["name"] for item in host_rpms(lock, *arguments)]

    assert names("module_stream", True) == ["kernel", "nvidia-driver", "gcc-c++", "gcc", "kmod"]
    assert names("module_stream", False) == ["kernel", "nvidia-driver", "gcc-c++", "kmod"]
    assert names("runfile", False) == ["kernel", "nvidia-driver", "gcc-c++"]


@pytest.mark.parametrize(
    ("installed", "exact", "missing"),
    [
        ([], True, ["gcc-c++-0:1.2-3.el8.noarch"]),
        (["gcc-c++-0:1.2-3.el8.noarch"], True, []),
        (["gcc-c++-0:1.3-1.el8.noarch"], True, ["gcc-c++-0:1.2-3.el8.noarch"]),
        (["gcc-c++-0:1.3-1.el8.noarch"], False, []),
        (["gcc-0:1.2-3.el8.noarch", "gcc-c++-devel-0:1.2-3.el8.noarch"], False, ["gcc-c++-0:1.2-3.el8.noarch"]),
        (["gcc-c++-1:1.2-3.el8.noarch"], True, ["gcc-c++-0:1.2-3.el8.noarch"]),
    ],
)
def test_what_has_to_be_installed(installed, exact, missing):
    assert rpms_to_install(locked_rpms(LOCK, "gcc_toolset"), installed, exact) == missing
