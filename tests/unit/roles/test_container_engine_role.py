"""The role container_engine: off unless asked for; what it installs is the lock's."""

from pathlib import Path

import pytest
import yaml
from ansible_collections.kepler.vllm.plugins.filter.kepler_rpms import installed_locks, rpms_to_install
from ansible_collections.kepler.vllm.plugins.plugin_utils.profiles import directory, lock_of, profiles

ROLE = [{"name": "Role", "ansible.builtin.include_role": {"name": "kepler.vllm.container_engine"}}]
NAMES = "{{ repos_packages_locked }}: {{ repos_packages | map(attribute='name') | join(' ') }}"
SHOW = [{"name": "Report the packages", "ansible.builtin.debug": {"msg": NAMES}}]
EACH = pytest.mark.parametrize("name", sorted(profiles(directory())))


@pytest.fixture
def role(play, overlay):
    path = overlay / "roles" / "repos" / "tasks" / "packages.yml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(SHOW))

    def run(**variables):
        return play(ROLE, "--check", variables=variables)

    return run


def test_nothing_is_done_unless_asked(role):
    status, printed = role()
    assert status == 0, printed
    assert "Report the packages" not in printed
    assert "changed=0" in printed


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="needs a machine without the driver")
def test_locked_packages_come_and_devices_after_a_reboot(role):
    status, printed = role(container_engine_install=True)
    assert status == 0, printed
    assert "container_engine: podman libnvidia-container1 " in printed
    assert "/proc/driver/nvidia/version: found nothing on box; expected the driver. Reboot" in " ".join(printed.split())


@EACH
def test_toolkit_is_exact_and_engine_moves_with_distribution(name):
    packages = lock_of(directory() / name)["containers"]["packages"]
    wanted = rpms_to_install(packages, [])
    assert len(wanted) == len(packages)
    there = [
        f"{entry['name']}-0:{entry.get('version', '4.9.4')}-{entry.get('release', '1')}.x86_64" for entry in packages
    ]
    assert rpms_to_install(packages, there) == []
    assert [line.rpartition(":")[0].partition("-0")[0] for line in installed_locks(packages, there)] == [
        entry["name"] for entry in packages if "version" in entry]


@EACH
def test_toolkit_comes_from_the_repository_of_the_driver(name):
    profile = profiles(directory())[name]
    packages = lock_of(directory() / name)["containers"]["packages"]
    assert {entry["repo"] for entry in packages if "nvidia" in entry["name"]} == {profile["platform"]["cuda_repo"]}
