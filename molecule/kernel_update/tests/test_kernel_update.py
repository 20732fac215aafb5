"""What is pinned does not move with the repositories, and moves as one when an upgrade says so."""

from __future__ import annotations

import shutil

import pytest
import yaml
from conftest import PROJECT
from standin import repos

EXACT = ("nvidia_driver", "cuda_toolkit", "compiler")


def nevras(rpms, roles=EXACT):
    """Packages that entries name exactly."""
    return {
        f"{rpm['name']}-{rpm['epoch']}:{rpm['version']}-{rpm['release']}.{rpm['arch']}"
        for rpm in rpms if rpm["role"] in roles and "version" in rpm
    }


def kernel(release, lock):
    """The packages of a kernel."""
    return {f"{rpm['name']}-0:{release}.x86_64" for rpm in lock["rpms"] if rpm.get("unit") == "kernel"}


def installed(host):
    return set(host.check_output("rpm -qa --qf '%{NAME}-%{EPOCHNUM}:%{VERSION}-%{RELEASE}.%{ARCH}\n'").splitlines())


@pytest.fixture
def later_lock(lock, tmp_path):
    """Profiles with the lock that somebody makes from the newer packages."""
    profiles = shutil.copytree(PROJECT / "profiles", tmp_path / "profiles")
    (profiles / "k80/lock/rpms.yml").write_text(yaml.safe_dump({**lock, "rpms": repos.later(lock["rpms"])}))
    return profiles


def test_newer_packages_are_on_offer(k80, lock):
    """The repository is seen, so that what follows means something: without the locks dnf would take them."""
    offered = set(k80.check_output(
        "dnf -q repoquery --disable-modular-filtering --repo later "
        "--qf '%{name}-%{epoch}:%{version}-%{release}.%{arch}' 2>/dev/null"
    ).splitlines())
    assert nevras(repos.later(lock["rpms"])) <= offered
    assert kernel(repos.LATER_KERNEL, lock) <= offered
    moved = k80.run("dnf --assumeno --disableplugin=versionlock upgrade kernel nvidia-driver cuda-nvcc-11-4").stdout
    assert repos.LATER_DRIVER in moved
    assert repos.LATER_KERNEL in moved


def test_the_locked_versions_were_installed(k80, lock):
    assert nevras(lock["rpms"]) <= installed(k80)


def test_the_kernel_that_was_there_is_kept_with_its_headers(k80, lock):
    found = {name for name in installed(k80) if name.startswith("kernel") and not name.startswith("kernel-headers")}
    assert found == kernel(repos.RUNNING, lock)


def test_what_has_a_minimum_is_the_newest(k80):
    there = installed(k80)
    assert "dkms-0:3.3.0-1.el8.99.noarch" in there
    # What was there already stays until the host itself is updated.
    assert "tar-2:1.30-11.el8_10.x86_64" in there


def test_an_upgrade_of_the_host_moves_nothing_held(k80, lock):
    before = installed(k80)
    done = k80.run("dnf --assumeyes upgrade")
    assert done.rc == 0, done.stderr
    held = nevras(lock["rpms"]) | kernel(repos.RUNNING, lock)
    assert {name for name in before ^ installed(k80) if name in held} == set()
    assert not (nevras(repos.later(lock["rpms"])) | kernel(repos.LATER_KERNEL, lock)) & installed(k80)
    # The fixes of the distribution come in.
    assert "tar-2:1.30-11.el8_10.99.x86_64" in installed(k80)


def test_automatic_updates_leave_it_alone(k80, lock):
    text = k80.file("/etc/dnf/automatic.conf").content_string
    (line,) = [line for line in text.splitlines() if line.startswith("excludepkgs")]
    held = {rpm["name"] for rpm in lock["rpms"] if "version" in rpm or rpm.get("unit") == "kernel"}
    assert set(line.partition("=")[2].split()) == held
    # The rest of the file is the operator's.
    assert "apply_updates = yes" in text
    assert "debuglevel = 1" in text


def test_a_run_changes_nothing(play):
    status, printed = play()
    assert status == 0, printed[-3000:]
    assert "changed=0" in printed.split("PLAY RECAP")[1]


def test_a_later_lock_alone_moves_nothing(k80, play, later_lock, monkeypatch):
    before = installed(k80)
    monkeypatch.setenv("KEPLER_PROFILES_DIR", str(later_lock))
    status, printed = play()
    assert status != 0
    assert "nvidia_driver_move" in printed, printed[-3000:]
    assert "Run playbooks/upgrade.yml: it moves kernel and driver as one." in printed
    assert installed(k80) == before


def test_the_upgrade_playbook_may_move():
    plays = yaml.safe_load((PROJECT / "playbooks" / "upgrade.yml").read_text())
    (host,) = [play for play in plays if play.get("ansible.builtin.import_playbook") == "host.yml"]
    assert host["vars"]["nvidia_driver_move"] is True
    for name in ("site", "playbooks/host", "playbooks/build", "playbooks/serve"):
        assert "nvidia_driver_move" not in (PROJECT / f"{name}.yml").read_text()


def test_an_upgrade_moves_all_of_it_as_one(k80, lock, play, later_lock, monkeypatch):
    """Last: the host is another one afterwards."""
    monkeypatch.setenv("KEPLER_PROFILES_DIR", str(later_lock))
    arguments = ("-e", '{"nvidia_driver_move": true}')
    status, printed = play(*arguments)
    assert status == 0, printed[-3000:]
    later = repos.later(lock["rpms"])
    assert nevras(later) | kernel(repos.LATER_KERNEL, lock) <= installed(k80)
    # The kernel that was there stays beside the new one, with its headers; of everything else there is one version.
    assert kernel(repos.RUNNING, lock) <= installed(k80)
    assert nevras(lock["rpms"]) & installed(k80) == set()
    locks = k80.file("/etc/dnf/plugins/versionlock.list").content_string
    assert repos.LATER_DRIVER in locks
    assert f"kernel-core-0:{repos.LATER_KERNEL}.*" in locks
    assert repos.RUNNING not in locks
    assert not any(line.startswith("dkms-") for line in locks.splitlines())
    assert next(rpm["version"] for rpm in lock["rpms"] if rpm["name"] == "nvidia-driver") not in locks
    status, printed = play(*arguments)
    assert status == 0, printed[-3000:]
    assert "changed=0" in printed.split("PLAY RECAP")[1]
