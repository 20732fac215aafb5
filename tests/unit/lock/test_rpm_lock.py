"""The lock of packages is renewed by what repositories offer, and fits them afterwards."""

import datetime
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.kepler.vllm.plugins.filter.kepler_repositories import repository_findings
from ansible_collections.kepler.vllm.plugins.filter.kepler_rpms import locked_entries
from ansible_collections.kepler.vllm.plugins.plugin_utils.rpm_lock import renew
from ansible_run import ansible_playbook
from module_server import module_python

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "unit" / "preflight"))
from fake_host import FakeHost  # noqa: E402

LOCK = ROOT / "profiles" / "k80" / "lock" / "rpms.yml"
TEXT = """\
---
# Head.
modules:
  - name: nvidia-driver
    stream: 470-dkms
    repo: cuda-rhel8
repos: {}
kernels:
  range: "4.18.0-553*.el8_10"
  tested: []

rpms:
  # About the compiler.
  - name: gcc-toolset
    epoch: 0
    version: "10.0"
    release: "1.el8"
    arch: noarch
    repo: appstream
    role: compiler
    verified: false
    reason: nobody looked
  # About the driver.
  - name: nvidia-driver
    epoch: 3
    version: "470.256.02"
    release: "1.el8"
    arch: x86_64
    repo: cuda-rhel8
    role: nvidia_driver
    verified: false
    reason: nobody looked

  # About the others.
  - name: kernel
    arch: x86_64
    repo: baseos
    role: nvidia_driver
    unit: kernel
    verified: true
    provenance: an erratum
  - name: gcc
    minimum: "0:8.5.0-22.el8_10"
    arch: x86_64
    repo: appstream
    role: python
    verified: false
    reason: nobody looked
  - name: tar
    repo: baseos
    role: repos
    verified: true
    provenance: the distribution
"""
OFFERS = """\
gcc-toolset 0 10.2.2 1.el8 noarch appstream
gcc-toolset 0 10.10.0 1.el8 noarch appstream
gcc-toolset 0 10.9.0 1.el8 noarch appstream
gcc-toolset 9 1.0 1.el8 x86_64 other
nvidia-driver 3 470.256.02 1.el8 x86_64 cuda-rhel8
nvidia-driver 3 560.35.03 1.el8 x86_64 cuda-rhel8
kernel 0 4.18.0 553.89.1.el8_10 x86_64 baseos
gcc 0 8.5.0 28.el8_10 x86_64 appstream
tar 2 1.30 11.el8_10 x86_64 baseos
"""


def offers(text=OFFERS):
    fields = ("name", "epoch", "version", "release", "arch", "repo")
    found = [dict(zip(fields, line.split(), strict=True)) for line in text.splitlines()]
    return [{**package, "epoch": int(package["epoch"])} for package in found]


def test_what_is_written_and_what_stays():
    after, changes, absent = renew(TEXT, offers(), "2026-01-02")
    entries = {entry["name"]: entry for entry in yaml.safe_load(after)["rpms"]}
    toolset, driver, kernel, gcc, tar = (
        entries[name] for name in ("gcc-toolset", "nvidia-driver", "kernel", "gcc", "tar")
    )
    assert (toolset["version"], toolset["release"], toolset["epoch"]) == ("10.10.0", "1.el8", 0)
    assert (toolset["verified"], toolset["provenance"]) == (True, "repository appstream, 2026-01-02")
    assert "reason" not in toolset
    assert (driver["version"], driver["verified"]) == ("470.256.02", True)
    # Any kernel of the range does, and none of another minor release.
    assert kernel == yaml.safe_load(TEXT)["rpms"][2]
    renewed, _, _ = renew(TEXT, offers("kernel 0 4.18.0 600.el8_11 x86_64 baseos\n"), "2026-01-02")
    kernel = yaml.safe_load(renewed)["rpms"][2]
    assert (kernel["verified"], kernel["reason"]) == (False, "no repository offered it on 2026-01-02")
    assert "version" not in kernel
    assert (gcc["minimum"], gcc["verified"]) == ("0:8.5.0-22.el8_10", True)
    assert tar["provenance"] == "the distribution"
    assert absent == []
    assert len(changes) == 3


def test_comments_and_order_stay():
    after, _, _ = renew(TEXT, offers(), "2026-01-02")
    assert [line for line in after.splitlines() if "#" in line] == [line for line in TEXT.splitlines() if "#" in line]
    assert [list(entry)[:2] for entry in yaml.safe_load(after)["rpms"]] == [
        list(entry)[:2] for entry in yaml.safe_load(TEXT)["rpms"]
    ]
    assert len(after.splitlines()) == len(TEXT.splitlines())
    place = after.splitlines().index
    assert place("  # About the driver.") < place("    epoch: 3") < place("  # About the others.")


def test_a_lock_that_fits_is_not_touched():
    after, changes, _ = renew(TEXT, offers(), "2026-01-02")
    assert changes
    assert renew(after, offers(), "2027-05-06")[:2] == (after, [])
    text = LOCK.read_text()
    entries = yaml.safe_load(text)["rpms"]
    everything = [entry for entry in entries if "version" in entry]
    renewed, _, absent = renew(text, everything, "2026-01-02")
    assert [entry["name"] for entry in absent if "version" in entry] == []
    assert [line for line in renewed.splitlines() if "#" in line] == [line for line in text.splitlines() if "#" in line]


def test_a_name_that_nobody_offers_is_named():
    after, _, absent = renew(TEXT, offers("gcc 0 8.5.0 4.el8 x86_64 appstream\n"), "2026-01-02")
    assert {entry["name"] for entry in absent} == {"gcc-toolset", "nvidia-driver", "kernel", "gcc", "tar"}
    assert not any(entry["verified"] for entry in yaml.safe_load(after)["rpms"])


@pytest.mark.parametrize("text", ["", "rpms: [", "- a\n", "sources: {}\n"])
def test_a_file_that_is_no_lock_is_refused(text):
    with pytest.raises(ValueError, match="no lock of packages"):
        renew(text, offers(), "2026-01-02")


def test_the_renewed_lock_fits_the_same_repositories(tmp_path, monkeypatch, capsys):
    """The project's own lock, against repositories that have other versions of whatever may move."""
    host = FakeHost(tmp_path, monkeypatch, capsys)
    lock = yaml.safe_load(LOCK.read_text())
    for entry in lock["rpms"]:
        version = "5|999.1|7.el8"
        if entry["repo"] == "cuda-rhel8" and "version" in entry:
            version = f"{entry['epoch']}|{entry['version']}|{entry['release']}"
        elif entry.get("unit") == "kernel":
            version = "0|4.18.0|553.151.1.el8_10"
        # All ids of repositories that this host has.
        home = entry["repo"] if entry["repo"] in ("epel", "cuda-rhel8") else "baseos"
        line = f"{entry['name']}|{version}|{entry.get('arch', 'x86_64')}"
        host.world["repos"].setdefault(home, []).append(line)

    def found(lock):
        entries = locked_entries(lock)
        return repository_findings(
            host.ask(entries), entries, streams=["nvidia-driver:470-dkms"], added=["epel", "cuda-rhel8"], host="k80-1"
        )

    (item,) = found(lock)
    assert "make lock-rpms HOST=k80-1" in item["next_step"]
    text, changes, absent = renew(LOCK.read_text(), host.ask(lock["rpms"])["offers"], "2026-01-02")
    assert (changes != [], absent) == (True, [])
    assert found(yaml.safe_load(text)) == []


def test_the_playbook_renews_and_its_dry_run_does_not(tmp_path, monkeypatch, capsys):
    host = FakeHost(tmp_path, monkeypatch, capsys)
    host.world["repos"] = {"epel": ["dkms|0|3.3.0|1.el8|noarch", "gcc-toolset-10-gcc|0|10.3.1|9.el8_10|x86_64"]}
    (tmp_path / "world.json").write_text(json.dumps(host.world))
    profiles = Path(shutil.copytree(ROOT / "profiles", tmp_path / "profiles"))
    lock = profiles / "k80/lock"
    before = (lock / "rpms.yml").read_text()
    local = {"ansible_connection": "local", "ansible_python_interpreter": module_python(), "ansible_become": False}
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(json.dumps({"k80-hosts": {"hosts": {"k80-1": local}}}))

    def play(*options):
        done = ansible_playbook(
            tmp_path, "-i", inventory, ROOT / "playbooks" / "lock_rpms.yml", *options,
            KEPLER_PROFILES_DIR=str(profiles), FAKE_DNF=str(tmp_path), PATH=os.environ["PATH"],
        )  # fmt: skip
        return done.returncode, done.stdout

    status, output = play("-e", "lock_host=k80-9")
    assert status != 0
    assert 'found "k80-9"; expected a host of the inventory (k80-1)' in " ".join(output.split())
    status, output = play("-e", "lock_host=k80-1", "--check", "--diff")
    assert status == 0, output
    assert '+    release: "9.el8_10"' in output
    assert (lock / "rpms.yml").read_text() == before
    status, output = play("-e", "lock_host=k80-1")
    assert status == 0, output
    assert "nvidia-driver" in output.partition("not_on_offer")[2]
    entries = {entry["name"]: entry for entry in yaml.safe_load((lock / "rpms.yml").read_text())["rpms"]}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    gcc, dkms = entries["gcc-toolset-10-gcc"], entries["dkms"]
    assert (gcc["release"], gcc["provenance"]) == ("9.el8_10", f"repository epel, {today}")
    assert (dkms["minimum"], dkms["verified"]) == ("3.0.13", True)
