"""What of nvidia_driver a container leaves out, run with stand-ins that check their arguments.

No kernel module is built or loaded here: that needs a host with a K80.
"""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
LOAD = [{"name": "Load", "ansible.builtin.import_role": {"name": "nvidia_driver", "tasks_from": "load"}}]
RPMS = {entry["name"]: entry for entry in yaml.safe_load((ROOT / "files/lock/rpms.yml").read_text())["rpms"]}
DRIVER = RPMS["nvidia-driver"]["version"]
KERNEL = "{version}-{release}.{arch}".format(**RPMS["kernel"])
# What the role knows when it comes to loading: another version is loaded already, so none is loaded here.
LOADED = {"__nvidia_driver_host": {"host": {"nvidia_version": "1", "modules": []}}}


def modinfo(answer):
    return {"modinfo": f'[ "$*" = "-F version -k {KERNEL} nvidia" ] || exit 9\n{answer}'}


@pytest.mark.parametrize(
    ("answer", "found"),
    [("echo 1.2.3", "1.2.3"), ("echo 'Module nvidia not found' >&2; exit 1", "Module nvidia not found")],
)
def test_a_module_that_dkms_did_not_build_is_named(play, answer, found):
    status, output = play(LOAD, variables=LOADED, programs=modinfo(answer))
    assert status != 0
    message = " ".join(output.split())
    assert f"found ''{found}''; expected {DRIVER}" in message
    assert f"/var/lib/dkms/nvidia/{DRIVER}/build/make.log" in message
    assert "changed=0" in output


def test_a_reboot_that_is_due_is_said_and_not_done(play):
    status, output = play(LOAD, variables=LOADED, programs=modinfo(f"echo {DRIVER}"))
    assert status != 0
    message = " ".join(output.split())
    assert "A reboot is due" in message
    assert "nvidia_driver_reboot: true" in message
    assert "changed=0" in output


@pytest.mark.parametrize(("container", "called"), [(False, True), (True, False)])
def test_the_initramfs_is_rebuilt_for_the_locked_kernel_unless_in_a_container(play, tmp_path, container, called):
    log = tmp_path / "dracut.log"
    handlers = yaml.safe_load((ROOT / "roles/nvidia_driver/handlers/main.yml").read_text())
    lock = "{{ kepler_lock | locked_driver }}"
    status, output = play(
        [{"name": "Change", "ansible.builtin.command": "true", "notify": "Rebuild the initramfs"}],
        variables={"__nvidia_driver_container": container, "__nvidia_driver_locked": lock},
        programs={"dracut": f'echo "$@" > {log}'},
        handlers=handlers,
    )
    assert status == 0, output
    assert log.exists() == called
    if called:
        assert log.read_text() == f"--force --kver {KERNEL}\n"


def test_the_unit_of_the_uvm_device_runs_before_the_servers():
    unit = (ROOT / "roles/nvidia_driver/files/kepler-nvidia-uvm.service").read_text().splitlines()
    assert "ExecStart=/usr/bin/nvidia-modprobe -u -c=0" in unit
    assert "Before=vllm.target" in unit


def test_clocks_and_power_limits_are_never_touched():
    for path in (ROOT / "roles/nvidia_driver").rglob("*"):
        if path.is_file() and path.suffix != ".md":
            words = path.read_text().replace('"', " ").replace(",", " ").split()
            assert not {"-pl", "--power-limit", "-ac", "--applications-clocks", "-lgc", "-pm"} & set(words), path
