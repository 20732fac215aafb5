"""What is pinned does not move with the repositories, and moves as one when an upgrade says so."""

from __future__ import annotations

import shutil

import pytest
import yaml
from conftest import PROJECT
from standin import repos

EXACT = ("nvidia_driver", "cuda_toolkit", "gcc_toolset")


def nevras(rpms, roles=EXACT):
    return {
        f"{rpm['name']}-{rpm['epoch']}:{rpm['version']}-{rpm['release']}.{rpm['arch']}"
        for rpm in rpms if rpm["role"] in roles
    }


def installed(host):
    return set(host.check_output("rpm -qa --qf '%{NAME}-%{EPOCHNUM}:%{VERSION}-%{RELEASE}.%{ARCH}\n'").splitlines())


@pytest.fixture
def later_lock(lock, tmp_path):
    """The lock that somebody makes from the newer packages."""
    directory = tmp_path / "lock"
    shutil.copytree(PROJECT / "files" / "lock", directory)
    (directory / "rpms.yml").write_text(yaml.safe_dump({**lock, "rpms": repos.later(lock["rpms"])}))
    return directory


def test_newer_packages_are_on_offer(k80, lock):
    """The repository is seen, so that what follows means something: without the locks dnf would take them."""
    offered = set(k80.check_output(
        "dnf -q repoquery --disable-modular-filtering --repo later "
        "--qf '%{name}-%{epoch}:%{version}-%{release}.%{arch}' 2>/dev/null"
    ).splitlines())
    assert nevras(repos.later(lock["rpms"])) <= offered
    moved = k80.run("dnf --assumeno --disableplugin=versionlock upgrade kernel nvidia-driver cuda-nvcc-11-4").stdout
    assert repos.LATER_DRIVER in moved


def test_the_locked_versions_were_installed(k80, lock):
    assert nevras(lock["rpms"]) <= installed(k80)


def test_an_upgrade_of_the_host_moves_nothing_pinned(k80, lock):
    before = installed(k80)
    assert k80.run("dnf --assumeyes upgrade").rc == 0
    assert {name for name in before ^ installed(k80) if name in nevras(lock["rpms"])} == set()
    assert not nevras(repos.later(lock["rpms"])) & installed(k80)


def test_automatic_updates_leave_it_alone(k80, lock):
    text = k80.file("/etc/dnf/automatic.conf").content_string
    (line,) = [line for line in text.splitlines() if line.startswith("excludepkgs")]
    assert set(line.partition("=")[2].split()) == {rpm["name"] for rpm in lock["rpms"]}
    # The rest of the file is the operator's.
    assert "apply_updates = yes" in text
    assert "debuglevel = 1" in text


def test_a_run_changes_nothing(play):
    status, printed = play()
    assert status == 0, printed[-3000:]
    assert "changed=0" in printed.split("PLAY RECAP")[1]


def test_a_later_lock_alone_moves_nothing(k80, play, later_lock, monkeypatch):
    before = installed(k80)
    monkeypatch.setenv("KEPLER_LOCK_DIR", str(later_lock))
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
    monkeypatch.setenv("KEPLER_LOCK_DIR", str(later_lock))
    arguments = ("-e", '{"nvidia_driver_move": true}')
    status, printed = play(*arguments)
    assert status == 0, printed[-3000:]
    later = repos.later(lock["rpms"])
    assert nevras(later) <= installed(k80)
    # The kernel that was there stays beside the new one; of everything else there is one version.
    left = {name for name in nevras(lock["rpms"]) & installed(k80) if not name.startswith("kernel")}
    assert left == set()
    locks = k80.file("/etc/dnf/plugins/versionlock.list").content_string
    assert repos.LATER_DRIVER in locks
    assert next(rpm["version"] for rpm in lock["rpms"] if rpm["name"] == "nvidia-driver") not in locks
    status, printed = play(*arguments)
    assert status == 0, printed[-3000:]
    assert "changed=0" in printed.split("PLAY RECAP")[1]
