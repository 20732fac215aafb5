"""A host that has no network at all was provisioned from one file, and serves."""

from __future__ import annotations

import json
import shutil

import yaml
from conftest import BUNDLE, PROJECT
from standin import repos

RPMS = yaml.safe_load((PROJECT / "profiles" / "k80" / "lock" / "rpms.yml").read_text())["rpms"]
UNPACKED = "/var/lib/kepler/bundle/*/kepler-bundle"


def test_there_is_no_network(k80):
    assert k80.check_output("ls /sys/class/net") == "lo"
    assert not k80.file("/opt/artifacts").exists
    assert not k80.file("/opt/stub-repos").exists


def test_it_serves(k80):
    """A completion of the text that the model was trained on."""
    prompt = "While redistributing the Work or Derivative Works thereof,"
    body = json.dumps({"model": "/srv/models/licence-llama", "prompt": prompt, "max_tokens": 8, "temperature": 0})
    printed = k80.check_output(
        ". /etc/kepler-standin/api-key.env; curl -fsS http://127.0.0.1:8000/v1/completions "
        f"-H \"Authorization: Bearer $VLLM_API_KEY\" -H 'Content-Type: application/json' -d '{body}'"
    )
    assert json.loads(printed)["choices"][0]["text"].startswith(" You may choose")


def test_that_nobody_qualified_it_is_recorded(k80):
    found = json.loads(k80.check_output("cat /var/lib/kepler/qualification/stamp.json"))
    assert (found["result"], found["passed_size"], found["size"]) == ("skipped", 0, 4)
    assert [item["variable"] for item in found["findings"]] == ["qualification"]


def test_every_locked_package_came_from_the_bundle(k80):
    installed = set(k80.check_output("rpm -qa --qf '%{NAME}-%{EPOCHNUM}:%{VERSION}-%{RELEASE}.%{ARCH}\n'").split("\n"))
    # The libraries for CPython from source are for the hosts that build it.
    exact = [rpm for rpm in RPMS if "version" in rpm]
    wanted = {
        f"{rpm['name']}-{rpm['epoch']}:{rpm['version']}-{rpm['release']}.{rpm['arch']}"
        for rpm in exact if rpm["role"] != "python"
    }
    assert wanted <= installed, wanted - installed
    names = {rpm["name"] for rpm in RPMS if rpm["role"] != "python" and not rpm.get("optional")}
    assert names <= {name.rsplit("-", 2)[0] for name in installed}
    held = k80.check_output(f"ls {UNPACKED}/rpms/Packages").split()
    assert {f"{rpm['name']}-{rpm['version']}-{rpm['release']}.{rpm['arch']}.rpm" for rpm in exact} <= set(held)
    # Of what has no version the newest on offer, with the libraries that it needs.
    for name in (f"kernel-devel-{repos.KERNELS[-1]}", f"openssl-libs-{repos.BUILDS['openssl-devel'][-1]}"):
        assert f"{name}.x86_64.rpm" in held
    # The newer driver of another module stream is not part of the solution.
    assert not [name for name in held if "560.35.03" in name]


def test_the_bundle_alone_has_all_that_each_locked_package_needs(k80):
    """dnf's solver over the bundle alone, for an empty root; without one library it finds what is missing."""
    solve = (
        "dnf --assumeno --nogpgcheck --installroot=/var/tmp/empty --disablerepo='*' --enablerepo=kepler-offline "
        "--setopt=kepler-offline.module_hotfixes=1 {} install {} 2>&1; rm -rf /var/tmp/empty"
    )
    names = sorted({entry["name"] for entry in RPMS})
    printed = k80.check_output(solve.format("", " ".join(names)))
    assert "Operation aborted" in printed
    chosen = {line.split()[0] for line in printed.splitlines() if line.startswith(" ")}
    assert {*names, "openssl-libs", "libuuid", "libgomp"} <= chosen
    for library, package in (("openssl-libs", "openssl-devel"), ("kernel-core", "kernel")):
        printed = k80.check_output(solve.format(f"--setopt=kepler-offline.excludepkgs={library}", package))
        assert "Operation aborted" not in printed
        assert f"requires {library} =" in printed, printed


def test_the_host_s_own_dnf_does_not_know_the_bundle(k80):
    assert "kepler-offline" not in k80.check_output("dnf repolist --enabled")
    assert "gpgcheck = 1" in k80.check_output("cat /etc/yum.repos.d/kepler-offline.repo")


def test_a_second_run_over_the_packages_changes_nothing(play):
    """What comes after the packages is the same with a network, and idempotent in the scenario `default`."""
    status, printed = play("playbooks/host.yml", "-e", f"offline_bundle={BUNDLE}")
    assert status == 0, printed[-3000:]
    assert "changed=0" in printed.split("PLAY RECAP")[1]


def test_a_bundle_of_another_lock_is_refused(k80, play, tmp_path, monkeypatch):
    profiles = shutil.copytree(PROJECT / "profiles", tmp_path / "profiles")
    lock = profiles / "k80/lock"
    text = (lock / "sources.yml").read_text()
    (lock / "sources.yml").write_text(text.replace("provenance:", "provenance: not", 1))
    before = k80.check_output("ls -la --time-style=full-iso /var/lib/kepler/bundle /opt/kepler")
    monkeypatch.setenv("KEPLER_PROFILES_DIR", str(profiles))
    status, printed = play("playbooks/host.yml", "-e", f"offline_bundle={BUNDLE}")
    assert status != 0
    assert "made from another lock" in printed, printed[-3000:]
    assert k80.check_output("ls -la --time-style=full-iso /var/lib/kepler/bundle /opt/kepler") == before


def test_a_bundle_for_another_provider_is_refused(play):
    status, printed = play("playbooks/host.yml", "-e", f"offline_bundle={BUNDLE}", "-e", "pytorch_provider=source")
    assert status != 0
    assert "made for pytorch_provider: wheel; expected source" in printed, printed[-3000:]


def test_a_damaged_bundle_is_refused_before_anything_is_unpacked(k80, play, tmp_path):
    damaged = tmp_path / "kepler-bundle.tar"
    shutil.copyfile(BUNDLE, damaged)
    with damaged.open("r+b") as stream:
        stream.seek(damaged.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte[0] ^ 1]))
    status, printed = play(
        "playbooks/host.yml", "-e", f"offline_bundle={damaged}", "-e", "offline_directory=/var/lib/kepler/other"
    )
    assert status != 0
    assert "Nothing was unpacked. Copy the bundle again, or make it again." in printed, printed[-3000:]
    assert not k80.file("/var/lib/kepler/other").exists


def test_the_same_bundle_is_not_made_again(play):
    status, printed = play("playbooks/bundle.yml", "-e", "bundle_host=connected", "-e", f"bundle_dest={BUNDLE}")
    assert status == 0, printed[-3000:]
    assert "changed=0" in printed.split("PLAY RECAP")[1]
