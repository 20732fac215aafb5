"""What nvidia_driver proves of DKMS: the real dkms, a small module under the driver's name, real kernel headers."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

# A kernel that this machine has no headers of, wherever dkms looks for them.
BARE = "4.18.0-1.bare.x86_64"
TASKS = [{"name": "Prove", "ansible.builtin.import_role": {"name": "kepler.vllm.nvidia_driver", "tasks_from": "dkms"}}]


@pytest.fixture
def prove(play, dkms, kernels):
    """Run the role's tasks for one kernel; return status and the output in one line."""

    def run(*options, host=None, kernel=kernels[0][0], tasks=TASKS, **variables):
        values = {
            "__nvidia_driver_locked": {"driver": dkms.version, "stream": "none"}, "__nvidia_driver_kernel": kernel,
            "__nvidia_driver_dkms": str(dkms.tree),
            "__nvidia_driver_modules": str(dkms.modules),
            "__nvidia_driver_framework": str(dkms.framework),
            "__nvidia_driver_host": {"host": {"secure_boot": False, "nvidia_version": None, **(host or {})}},
            **variables,
        }
        status, output = play(tasks, "-e", json.dumps(values), *options, programs=dkms.programs(), gather_facts=False)
        return status, " ".join(output.split())

    return run


def add(dkms):
    run(dkms, "add")


def run(dkms, *arguments):
    """Run dkms as the package's scriptlet would, for the whole tree of the test."""
    directory = dkms.root / "bin"
    directory.mkdir(exist_ok=True)
    for name, script in dkms.programs().items():
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    return subprocess.run(
        ["dkms", *arguments, "-m", "nvidia", "-v", dkms.version], capture_output=True,
        env={**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}, check=False,
    ).returncode


def test_a_module_that_is_built_and_installed(dkms, kernels, prove):
    dkms.headers(*kernels[0])
    add(dkms)
    assert run(dkms, "install", "-k", kernels[0][0]) == 0
    (dkms.root / "calls").unlink()
    status, output = prove()
    assert status == 0, output
    assert "changed=0" in output
    assert set(dkms.calls()) == {"status"}


def test_a_module_that_was_left_unbuilt_is_built(dkms, kernels, prove):
    dkms.headers(*kernels[0])
    add(dkms)
    status, output = prove()
    assert status == 0, output
    assert list((dkms.modules / kernels[0][0]).glob("**/nvidia.ko*"))
    status, output = prove()
    assert status == 0, output
    assert "changed=0" in output


def test_failed_module_build_reports_end_of_log(dkms, kernels, prove):
    dkms.headers(*kernels[0])
    dkms.write("#error this kernel has no such function")
    add(dkms)
    status, output = prove()
    assert status != 0
    assert f"The nvidia module for kernel {kernels[0][0]}: found:" in output
    assert f"expected version {dkms.version}, installed by DKMS" in output
    assert f"{dkms.tree}/nvidia/{dkms.version}/build/make.log" in output
    assert "error: #error this kernel has no such function" in output


def test_headers_that_are_missing_are_named(dkms, prove):
    add(dkms)
    status, output = prove(kernel=BARE)
    assert status != 0
    assert "found: no module for this kernel; expected" in output
    assert f"install kernel-devel-{BARE}, then run again" in output


def test_a_module_that_is_built_for_another_kernel_alone(dkms, kernels, prove):
    dkms.headers(*kernels[1])
    add(dkms)
    assert run(dkms, "install", "-k", kernels[1][0]) == 0
    status, output = prove(kernel=BARE)
    assert status != 0
    assert f"no module for this kernel; there is one for {kernels[1][0]}" in output
    assert "headers of the kernel are missing" in output


def test_a_module_that_is_built_for_another_kernel_too(dkms, kernels, prove):
    for kernel in kernels:
        dkms.headers(*kernel)
    add(dkms)
    assert run(dkms, "install", "-k", kernels[1][0]) == 0
    status, output = prove()
    assert status == 0, output


def test_a_driver_that_dkms_does_not_know(dkms, kernels, prove):
    dkms.headers(*kernels[0])
    shutil.rmtree(dkms.source)
    status, output = prove()
    assert status != 0
    assert f"DKMS does not know nvidia/{dkms.version}" in output


def test_a_file_of_another_version_in_the_modules_place(dkms, kernels, prove):
    dkms.headers(*kernels[0])
    add(dkms)
    assert run(dkms, "install", "-k", kernels[0][0]) == 0
    (module,) = (dkms.modules / kernels[0][0]).glob("**/nvidia.ko*")
    module.unlink()
    status, output = prove()
    assert status != 0
    assert "expected version 1.2.3" in output


def test_check_mode_builds_nothing(dkms, kernels, prove):
    dkms.headers(*kernels[0])
    add(dkms)
    status, _ = prove("--check")
    assert status != 0
    assert "build" not in dkms.calls()


@pytest.fixture
def pair(tmp_path):
    """Makes a key and its certificate, named `name`."""

    def make(name):
        key, certificate = tmp_path / f"{name}.key", tmp_path / f"{name}.der"
        subprocess.run(
            ["openssl", "req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
             "-outform", "DER", "-keyout", key, "-out", certificate],
            check=True, capture_output=True,
        )
        return {"nvidia_driver_signing_key": str(key), "nvidia_driver_signing_certificate": str(certificate)}

    return make


def sign_file():
    found = sorted(Path("/usr/lib").glob("linux-kbuild-*/scripts/sign-file")) + sorted(
        Path("/usr/src").glob("*/scripts/sign-file")
    )
    return str(found[0]) if found else None


def test_the_operators_key_signs_and_a_new_one_signs_again(dkms, kernels, prove, pair, monkeypatch):
    if sign_file() is None or shutil.which("openssl") is None:
        pytest.skip("the kernel's sign-file or openssl is not installed")
    monkeypatch.setenv("SIGN_FILE", sign_file())
    dkms.headers(*kernels[0])
    add(dkms)
    role = {"name": "kepler.vllm.nvidia_driver", "tasks_from": "sign"}
    both = [{"name": "Sign", "ansible.builtin.import_role": role}, *TASKS]

    def signer():
        (module,) = (dkms.modules / kernels[0][0]).glob("**/nvidia.ko*")
        return subprocess.run(
            ["/sbin/modinfo", "-F", "signer", module], capture_output=True, text=True, check=True
        ).stdout.strip()

    secure = {"secure_boot": True}
    first = pair("first")
    status, output = prove(host=secure, tasks=both, **first)
    assert status == 0, output
    assert signer() == "first"
    status, output = prove(host=secure, tasks=both, **first)
    assert status == 0, output
    assert "changed=0" in output
    status, output = prove(host=secure, tasks=both, **pair("second"))
    assert status == 0, output
    assert signer() == "second"
    # A run that ended after it had named the pair is made up for.
    third = pair("third")
    prove(host=secure, tasks=both[:1], **third)
    assert signer() == "second"
    status, output = prove(host=secure, tasks=both, **third)
    assert status == 0, output
    assert signer() == "third"


def test_a_module_without_signature_under_secure_boot(dkms, kernels, prove):
    dkms.headers(*kernels[0])
    add(dkms)
    assert run(dkms, "install", "-k", kernels[0][0]) == 0
    status, output = prove(host={"secure_boot": True})
    assert status != 0
    assert "it carries no signature, and Secure Boot is on" in output
