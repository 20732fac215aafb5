"""Lock entries as dnf, rpm and versionlock take them."""

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.kepler.vllm.plugins.filter.kepler_rpms import (
    downgrades,
    held_names,
    host_rpms,
    installed_instead,
    installed_locks,
    locked_driver,
    locked_entries,
    locked_rpms,
    locked_version,
    newest_kernel,
    rpms_to_install,
)

RANGE = "4.18.0-553*.el8_10"
OLD, RUNNING, NEWER = (f"4.18.0-553.{number}el8_10.x86_64" for number in ("", "89.1.", "144.1."))
KERNEL_PACKAGES = ("kernel", "kernel-core", "kernel-modules", "kernel-devel")


def entry(name, role, epoch=0, **keys):
    return {"name": name, "epoch": epoch, "version": "1.2", "release": "3.el8", "arch": "x86_64", "role": role, **keys}


def loose(name, role, **keys):
    """An entry that names no version."""
    return {"name": name, "arch": "x86_64", "role": role, **keys}


LOCK = {
    "kernels": {"range": RANGE, "tested": []},
    "rpms": [
        *(loose(name, "nvidia_driver", unit="kernel") for name in KERNEL_PACKAGES),
        loose("dkms", "nvidia_driver", minimum="3.0.13"),
        entry("nvidia-driver", "nvidia_driver", epoch=3, stream="1-dkms"),
        entry("gcc-c++", "compiler", arch="noarch"),
        loose("common", "cuda_toolkit"),
    ],
}


def whole(kernel):
    return [f"{name}-0:{kernel}" for name in KERNEL_PACKAGES]


def test_what_dnf_takes_in_the_order_of_the_lock():
    assert locked_rpms(LOCK, "nvidia_driver") == [
        *(f"{name}-{RANGE}.x86_64" for name in KERNEL_PACKAGES), "dkms >= 3.0.13", "nvidia-driver-3:1.2-3.el8.x86_64",
    ]  # fmt: skip
    assert locked_rpms(LOCK, role="compiler") == ["gcc-c++-0:1.2-3.el8.noarch"]
    assert locked_rpms(LOCK, role="cuda_toolkit") == ["common"]


def test_a_role_without_packages_is_named():
    with pytest.raises(AnsibleFilterError, match=r"rpms\.yml.*'nvidia'.*compiler, cuda_toolkit, nvidia_driver"):
        locked_rpms(LOCK, "nvidia")


def test_version_and_driver():
    assert locked_version(LOCK, "nvidia-driver") == "1.2"
    assert locked_driver(LOCK) == {"driver": "1.2", "stream": "1-dkms", "kernels": LOCK["kernels"]}
    for name in ("cuda", "dkms"):
        with pytest.raises(AnsibleFilterError, match=f"'{name}'"):
            locked_version(LOCK, name)


@pytest.mark.parametrize(
    ("installed", "locks"),
    [
        ([], []),
        ([*whole(RUNNING), "nvidia-driver-3:1.2-3.el8.x86_64"],
         [*(f"{text.rpartition('.')[0]}.*" for text in whole(RUNNING)), "nvidia-driver-3:1.2-3.el8.*"]),
        # Another kernel stands beside it, and is not locked.
        ([f"kernel-core-0:{RUNNING}", f"kernel-core-0:{NEWER}", "kernel-core-devel-0:9-1.x86_64"],
         [f"kernel-core-0:{RUNNING.rpartition('.')[0]}.*"]),
        # A run that failed: what is there stays locked.
        (["nvidia-driver-3:1.1-1.el8.x86_64"], ["nvidia-driver-3:1.1-1.el8.*"]),
        # A minimum moves with the distribution.
        (["dkms-0:3.3.0-1.el8.noarch", "common-0:12.4.127-1.noarch"], []),
    ],
)  # fmt: skip
def test_what_has_one_version_is_locked_as_it_is_installed(installed, locks):
    assert installed_locks(locked_entries(LOCK, kernel=RUNNING), installed) == locks


def test_an_optional_package_moves_with_its_unit_where_it_is():
    lock = {**LOCK, "rpms": [*LOCK["rpms"], loose("extra", "nvidia_driver", unit="kernel", optional=True)]}
    entries = locked_entries(lock, kernel=NEWER)
    core = [*whole(NEWER), "dkms-0:3.3.0-1.el8.x86_64", "nvidia-driver-3:1.2-3.el8.x86_64",
            "gcc-c++-0:1.2-3.el8.noarch", "common-0:1-1.x86_64"]  # fmt: skip
    assert rpms_to_install(entries, core) == installed_instead(entries, core) == []
    assert rpms_to_install(entries, [*core, f"extra-0:{RUNNING}"]) == [f"extra-0:{NEWER}"]
    assert rpms_to_install(entries, [*core, f"extra-0:{NEWER}"]) == []
    held = [f"extra-0:{RUNNING.rpartition('.')[0]}.*"]
    assert installed_locks(locked_entries(lock, kernel=RUNNING), [f"extra-0:{RUNNING}"]) == held
    assert "extra" in held_names(lock)
    # Without it a kernel is whole, but not for a host that has it.
    assert newest_kernel(lock, [RUNNING], whole(NEWER), whole(RUNNING)) == NEWER
    assert newest_kernel(lock, [RUNNING], whole(NEWER), [f"extra-0:{RUNNING}"]) == RUNNING
    assert newest_kernel(lock, [RUNNING], [*whole(NEWER), f"extra-0:{NEWER}"], [f"extra-0:{RUNNING}"]) == NEWER


def test_automatic_updates_move_minimums_alone():
    assert held_names(LOCK) == sorted([*KERNEL_PACKAGES, "nvidia-driver", "gcc-c++"])


def test_what_a_host_gets_from_dnf():
    lock = {**LOCK, "rpms": [*LOCK["rpms"], entry("gcc", "python"), entry("nginx", "load_balancer"),
                             entry("kmod", "nvidia_driver", module="m")]}
    others = ["dkms", "nvidia-driver", "gcc-c++", "common"]

    def names(*arguments):
        return [item["name"] for item in host_rpms(lock, *arguments)]

    assert names("module_stream", True) == [*KERNEL_PACKAGES, *others, "gcc", "kmod"]
    assert names("module_stream", False) == [*KERNEL_PACKAGES, *others, "kmod"]
    assert names("runfile", False) == [*KERNEL_PACKAGES, *others]
    # A kernel that is installed needs its headers; one that is not needs all of it.
    assert names("runfile", False, RUNNING, [OLD, RUNNING]) == ["kernel-core", "kernel-devel", *others]
    assert names("runfile", False, NEWER, [OLD, RUNNING]) == [*KERNEL_PACKAGES, *others]


@pytest.mark.parametrize(
    ("kernels", "packages", "chosen"),
    [
        ([RUNNING], [], RUNNING),
        ([OLD, RUNNING], [], RUNNING),
        ([RUNNING], [*whole(NEWER), *whole(OLD)], NEWER),
        # A mirror that is half synced: the newest is not whole.
        ([RUNNING], [f"kernel-core-0:{NEWER}", f"kernel-0:{NEWER}", *whole(OLD)], RUNNING),
        ([], [*whole("4.18.0-553.9.1.el8_10.x86_64"), *whole("4.18.0-553.16.1.el8_10.x86_64")],
         "4.18.0-553.16.1.el8_10.x86_64"),
        (["4.18.0-477.10.1.el8_8.x86_64"], whole("4.18.0-600.el8_11.x86_64"), ""),
        (["4.18.0-553.5.1.rt7.346.el8_10.x86_64", "4.18.0-553.5.1.el8_10.x86_64+debug"], [], ""),
        (["6.1.0-13-amd64"], [], ""),
    ],
)
def test_the_newest_kernel_of_the_range(kernels, packages, chosen):
    assert newest_kernel(LOCK, kernels, packages) == chosen


@pytest.mark.parametrize(
    ("role", "installed", "missing"),
    [
        ("compiler", [], ["gcc-c++-0:1.2-3.el8.noarch"]),
        ("compiler", ["gcc-c++-0:1.2-3.el8.noarch"], []),
        ("compiler", ["gcc-c++-0:1.1-1.el8.noarch"], ["gcc-c++-0:1.2-3.el8.noarch"]),
        ("compiler", ["gcc-0:1.2-3.el8.noarch", "gcc-c++-devel-0:1.2-3.el8.noarch"], ["gcc-c++-0:1.2-3.el8.noarch"]),
        ("compiler", ["gcc-c++-1:1.2-3.el8.noarch"], ["gcc-c++-0:1.2-3.el8.noarch"]),
        ("cuda_toolkit", [], ["common"]),
        ("cuda_toolkit", ["common-0:11.4.148-1.x86_64"], []),
        ("cuda_toolkit", ["common-0:13.0.1-1.x86_64"], []),
    ],
)
def test_what_has_to_be_installed(role, installed, missing):
    assert rpms_to_install(locked_entries(LOCK, role), installed) == missing


@pytest.mark.parametrize(("version", "fits"), [
    ("0:3.0.13-1.el8", True), ("0:3.0.13-0.el8", True), ("0:3.3.0-1.el8", True), ("1:1.0-1.el8", True),
    ("0:3.0.9-1.el8", False), ("0:2.8.6-1.el8", False),
])  # fmt: skip
def test_a_minimum_takes_what_is_there_and_no_older_one(version, fits):
    entries = [loose("dkms", "nvidia_driver", minimum="3.0.13")]
    installed = [f"dkms-{version}.x86_64", "dkms-extra-0:9-1.x86_64"]
    assert rpms_to_install(entries, installed) == ([] if fits else ["dkms >= 3.0.13"])
    assert installed_instead(entries, installed) == ([] if fits else [f"dkms-{version}.x86_64"])


def test_a_kernel_needs_the_headers_of_its_own_version():
    entries = [item for item in locked_entries(LOCK, kernel=RUNNING) if item["name"] == "kernel-devel"]
    assert rpms_to_install(entries, [f"kernel-devel-0:{NEWER}"]) == [f"kernel-devel-0:{RUNNING}"]
    assert rpms_to_install(entries, [f"kernel-devel-0:{NEWER}", f"kernel-devel-0:{RUNNING}"]) == []


def test_a_line_that_names_no_package_is_refused():
    with pytest.raises(AnsibleFilterError, match="found 'error: rpmdb'"):
        newest_kernel(LOCK, [], ["error: rpmdb"])


@pytest.mark.parametrize(("printed", "names"), [
    ("", []),
    ("Dependencies resolved.\n====\n Package  Architecture  Version  Repository  Size\n====\nInstalling:\n"
     " openssl-devel x86_64 1:1.1.1k-12.el8_9 baseos 2 M\nDowngrading:\n openssl x86_64 1:1.1.1k-12.el8_9 baseos 1 M\n"
     " openssl-libs x86_64 1:1.1.1k-12.el8_9 baseos 1 M\n\nTransaction Summary\n====\n", ["openssl", "openssl-libs"]),
])  # fmt: skip
def test_what_dnf_would_downgrade(printed, names):
    assert downgrades(printed) == names
