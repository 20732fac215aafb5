"""What of nvidia_driver a container leaves out, run with recorded stand-ins that check their arguments.

DKMS itself is in tests/unit/dkms. No module is loaded here: that needs a host with a K80.
"""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from pathlib import Path

import pytest
import yaml
from rendered import evaluate

ROOT = Path(__file__).resolve().parents[3]
ROLE = ROOT / "roles/nvidia_driver"
LOCK = yaml.safe_load((ROOT / "profiles/k80/lock/rpms.yml").read_text())
KERNEL, NEWER = "4.18.0-553.89.1.el8_10.x86_64", "4.18.0-553.144.1.el8_10.x86_64"
DRIVER = next(entry["version"] for entry in LOCK["rpms"] if entry["name"] == "nvidia-driver")
NOUVEAU = (ROLE / "files/kepler-nouveau.conf").read_text()


def part(name):
    role = {"name": "kepler.vllm.nvidia_driver", "tasks_from": name}
    return [{"name": name.title(), "ansible.builtin.import_role": role}]


def host(**changes):
    """What the role knows of the host; another version is loaded already, so none is loaded here."""
    facts = {
        "kernel": KERNEL, "kernels": [KERNEL],
        "nvidia_version": "1", "modules": [], "secure_boot": False, "runfile": False, "streams": {},
        **changes,
    }  # fmt: skip
    return {"__nvidia_driver_host": {"host": facts}, "__nvidia_driver_kernel": KERNEL}


@pytest.fixture
def log(tmp_path):
    """Reads what the recorded programs were asked for: a list of lines `program arguments`."""
    path = tmp_path / "calls.log"
    return lambda: path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def recorded(tmp_path):
    """A program that writes its name and arguments down, then does `script`."""
    return lambda name, script="": f'echo "{name} $*" >> {tmp_path}/calls.log\n{script}'


def one_line(output):
    return " ".join(output.split())


# The kernel's module, as dkms and modinfo have it, and the kernel that boots.
BUILT = {
    "grubby": f"echo /boot/vmlinuz-{KERNEL}",
    "dkms": f'[ "$*" = "status -m nvidia -v {DRIVER}" ] && echo "nvidia/{DRIVER}, {KERNEL}, x86_64: installed"',
    "modinfo": f'[ "$*" = "-F version -k {KERNEL} nvidia" ] && echo {DRIVER}',
}


def test_a_reboot_that_is_due_is_said_and_not_done(play, recorded, log):
    after = [{"name": "Depends on the driver", "ansible.builtin.command": "depends-on-the-driver"}]
    programs = {**BUILT, **{name: recorded(name) for name in ("depends-on-the-driver", "shutdown", "reboot")}}
    status, output = play(part("load") + after, variables=host(), programs=programs)
    assert status != 0
    message = one_line(output)
    assert "A reboot is due" in message
    assert "nvidia_driver_reboot: true" in message
    assert "changed=0" in output
    assert log() == []


@pytest.mark.parametrize(
    ("given", "said"),
    [("false", "A reboot is due"), ("no", "A reboot is due"), ("true", "would reboot the control node")],
)
def test_only_true_reboots(play, given, said):
    """Ansible refuses to reboot the machine that it runs on, so its refusal shows that it would."""
    status, output = play(part("load"), variables={**host(), "nvidia_driver_reboot": given}, programs=BUILT)
    assert status != 0
    assert said in one_line(output)


def test_no_module_is_loaded_into_another_kernel(play, recorded, log):
    """Its directory has none, and what is due is a reboot: that, and not modprobe's complaint, is said."""
    facts = host(nvidia_version=None, kernel="4.18.0-1.x86_64")
    status, output = play(part("load"), variables=facts, programs={**BUILT, "modprobe": recorded("modprobe")})
    assert status != 0
    message = one_line(output)
    assert f"in the kernel {os.uname().release}; expected nvidia {DRIVER} in {KERNEL}. A reboot is due" in message
    assert log() == []


@pytest.mark.parametrize(("version", "kernel", "due"), [
    (DRIVER, KERNEL, False), (DRIVER, "4.18.0-1.x86_64", True), (None, KERNEL, True), ("390.1", KERNEL, True),
])  # fmt: skip
def test_what_makes_a_reboot_due(version, kernel, due):
    loaded = {"host": {"nvidia_version": version, "kernel": kernel}}
    known = {"__nvidia_driver_loaded": loaded, "__nvidia_driver_kernel": KERNEL}
    assert evaluate("nvidia_driver", "{{ __nvidia_driver_due }}", **known) is due
    # The knob alone reboots nothing, and nothing reboots without it.
    (task,) = [
        task for task in yaml.safe_load((ROLE / "tasks/load.yml").read_text()) if "ansible.builtin.reboot" in task
    ]
    for knob in ("true", "false"):
        facts = {**known, "nvidia_driver_reboot": knob}
        reboots = [evaluate("nvidia_driver", f"{{{{ {condition} }}}}", **facts) for condition in task["when"]]
        assert all(reboots) == (due and knob == "true")


@pytest.mark.parametrize(
    ("status_line", "version", "found"),
    [
        ("", "", f"DKMS does not know nvidia/{DRIVER}"),
        (f"nvidia/{DRIVER}: added", "", "no module for this kernel"),
        (f"nvidia/{DRIVER}, {KERNEL}, x86_64: built", "", "the module is built for this kernel, and not installed"),
        (f"nvidia, {DRIVER}, {KERNEL}, x86_64: installed", "1.2.3", "installed, and modinfo says version 1.2.3"),
        (f"nvidia/{DRIVER}, 4.18.0-1.x86_64, x86_64: installed", "", "there is one for 4.18.0-1.x86_64"),
    ],
)
def test_a_module_that_dkms_did_not_install_is_named(play, recorded, log, status_line, version, found):
    programs = {"dkms": recorded("dkms", f'[ "$1" != status ] || echo "{status_line}"'), "modinfo": f"echo {version}"}
    status, output = play(part("load"), variables=host(), programs=programs, gather_facts=False)
    assert status != 0
    assert found in one_line(output)
    assert f"expected version {DRIVER}, installed by DKMS" in one_line(output)
    module = f"-m nvidia -v {DRIVER} -k {KERNEL}"
    installed = f"{KERNEL}, x86_64: installed" in status_line
    tried = [] if installed else [f"dkms build {module}", f"dkms install {module}"]
    assert [line for line in log() if " status " not in line] == tried


def boot(play, tmp_path, recorded, initramfs, default=KERNEL, container=False, options=()):
    """Run boot.yml on a host whose initramfs holds `initramfs`; dracut puts the real file in."""
    if os.geteuid() != 0:
        pytest.skip("the file belongs to root: needs root")
    image = tmp_path / "image"
    image.write_text(initramfs)
    programs = {
        "lsinitrd": recorded("lsinitrd", f"cat {image}"),
        "dracut": recorded("dracut", f"cp {ROLE}/files/kepler-nouveau.conf {image}"),
        "grubby": recorded("grubby", f"[ $1 != --default-kernel ] || echo /boot/vmlinuz-{default}"),
    }
    variables = {
        "__nvidia_driver_container": container, "__nvidia_driver_nouveau_off": str(tmp_path / "nouveau.conf"),
        "__nvidia_driver_kernel": KERNEL,
    }
    return play(part("boot"), "-e", json.dumps(variables), *options, programs=programs, gather_facts=False)


LSINITRD = f"lsinitrd --file etc/modprobe.d/kepler-nouveau.conf --kver {KERNEL}"


def test_an_initramfs_without_nouveau_off_is_rebuilt_and_proven(play, tmp_path, recorded, log):
    status, output = boot(play, tmp_path, recorded, "")
    assert status == 0, output
    assert log() == [LSINITRD, f"dracut --force --kver {KERNEL}", LSINITRD]


def test_an_initramfs_that_has_it_stays(play, tmp_path, recorded, log):
    (tmp_path / "nouveau.conf").write_text(NOUVEAU)
    (tmp_path / "nouveau.conf").chmod(0o644)
    status, output = boot(play, tmp_path, recorded, NOUVEAU)
    assert status == 0, output
    assert "changed=0" in output
    assert log() == [LSINITRD, LSINITRD]


def test_an_initramfs_that_keeps_nouveau_is_an_error(play, tmp_path, recorded):
    keeps = lambda name, script="": recorded(name, "" if name == "dracut" else script)  # noqa: E731
    status, output = boot(play, tmp_path, keeps, "")
    assert status != 0
    assert "found no such file; expected etc/modprobe.d/kepler-nouveau.conf as the host has it" in one_line(output)


def test_a_container_has_no_initramfs(play, tmp_path, recorded, log):
    status, output = boot(play, tmp_path, recorded, "", container=True)
    assert status == 0, output
    assert log() == []


def test_check_mode_asks_and_rebuilds_nothing(play, tmp_path, recorded, log):
    status, output = boot(play, tmp_path, recorded, "", options=("--check",))
    assert status == 0, output
    assert log() == [LSINITRD, LSINITRD]


@pytest.mark.parametrize(
    ("default", "built", "move", "set_to"),
    [
        (KERNEL, "", False, None),
        # dnf brought a newer kernel in, and nothing is built for it: the one with the module boots.
        (NEWER, "", False, KERNEL),
        # An upgrade has prepared it, and the reboot is due.
        (NEWER, NEWER, False, None),
        # weak-modules gave it a module of another kernel.
        (NEWER, f"{NEWER}, x86_64: installed-weak", False, KERNEL),
        ("4.18.0-477.10.1.el8_8.x86_64", "", True, KERNEL),
        (NEWER, NEWER, True, KERNEL),
    ],
)
def test_a_kernel_boots_only_with_its_module(default, built, move, set_to):
    """The driver's kernel is KERNEL; `default` is what would boot."""
    lines = [f"nvidia/{DRIVER}, {KERNEL}, x86_64: installed"]
    if built:
        lines.append(f"nvidia/{DRIVER}, {built}" + ("" if ":" in built else ", x86_64: installed"))
    asked, task = yaml.safe_load((ROLE / "tasks/bootloader.yml").read_text())
    known = {
        "__nvidia_driver_kernel": KERNEL, "nvidia_driver_move": move,
        asked["register"]: {"stdout": f"/boot/vmlinuz-{default}\n"},
        "__nvidia_driver_dkms_status": {"stdout": "\n".join(lines)},
    }
    known.update({name: evaluate("nvidia_driver", value, **known) for name, value in task["vars"].items()})
    due = all(evaluate("nvidia_driver", f"{{{{ {condition} }}}}", **known) for condition in task["when"])
    command = evaluate("nvidia_driver", task["ansible.builtin.command"]["argv"], **known)
    assert (command if due else None) == (set_to and ["grubby", "--set-default", f"/boot/vmlinuz-{set_to}"])


def test_no_kernel_boots_before_the_module_is_proven(play, recorded, log):
    """The build fails: what boots stays as it is."""
    programs = {"dkms": "exit 1", "modinfo": "exit 1", "grubby": recorded("grubby")}
    status, output = play(part("load"), variables=host(), programs=programs, gather_facts=False)
    assert status != 0
    assert f"The nvidia module for kernel {KERNEL}" in one_line(output)
    assert log() == []


def nevras(kernel):
    """The packages of a kernel on a host that has none of the optional ones."""
    names = [entry["name"] for entry in LOCK["rpms"] if entry.get("unit") == "kernel" and not entry.get("optional")]
    return "\n".join(f"{name}-0:{kernel}" for name in names)


@pytest.mark.parametrize(
    ("facts", "container", "move", "offered", "chosen"),
    [
        ({}, False, False, None, KERNEL),
        # A newer one that is installed, or on offer, waits for an upgrade.
        ({"kernels": [KERNEL, NEWER]}, False, False, None, KERNEL),
        ({}, False, True, NEWER, NEWER),
        ({}, False, True, "4.18.0-553.5.1.el8_10.x86_64", KERNEL),
        ({"kernel": "4.18.0-477.10.1.el8_8.x86_64", "kernels": []}, False, True, NEWER, NEWER),
        # A container's own kernel is its machine's.
        ({"kernel": "6.1.0", "kernels": [KERNEL]}, True, False, None, KERNEL),
        ({"kernel": "6.1.0", "kernels": []}, True, False, NEWER, NEWER),
    ],
)
def test_which_kernel_the_driver_is_built_for(facts, container, move, offered, chosen):
    """offered: the kernel that the repositories have; None if nobody asks them."""
    known = {
        "__nvidia_driver_host": host(**facts)["__nvidia_driver_host"], "nvidia_driver_move": move,
        "__nvidia_driver_container": container,
    }
    tasks = yaml.safe_load((ROLE / "tasks/kernel.yml").read_text())
    assert evaluate("nvidia_driver", f"{{{{ {tasks[0]['when']} }}}}", **known) is (offered is not None)
    there = nevras(KERNEL) if facts.get("kernels", True) else ""
    for task, text in zip(tasks, (offered and nevras(offered), there), strict=False):
        known[task["register"]] = {"stdout_lines": text.splitlines()} if offered else {"skipped": True}
    (fact,) = tasks[2]["ansible.builtin.set_fact"].values()
    assert evaluate("nvidia_driver", fact, **known) == chosen


def test_an_upgrade_asks_the_repositories_that_the_roles_use(play, recorded, log):
    shown = {"name": "Show", "ansible.builtin.debug": {"msg": "chosen: {{ __nvidia_driver_kernel }}."}}
    variables = {
        "__nvidia_driver_host": host()["__nvidia_driver_host"], "nvidia_driver_move": True,
        "__nvidia_driver_container": False, "repos_dnf_options": ["--enablerepo=kepler-offline"],
    }
    programs = {"dnf": recorded("dnf", f"echo '{nevras(NEWER)}'"), "rpm": recorded("rpm", f"echo '{nevras(KERNEL)}'")}
    status, output = play([*part("kernel"), shown], "-e", json.dumps(variables), programs=programs, gather_facts=False)
    assert status == 0, output
    assert f"chosen: {NEWER}." in output
    assert "changed=0" in output
    (asked,) = [line for line in log() if line.startswith("dnf")]
    assert "--enablerepo=kepler-offline --disableplugin=versionlock repoquery" in asked
    assert asked.endswith("kernel kernel-core kernel-modules kernel-modules-extra kernel-devel")


def test_no_kernel_of_the_range_is_said(play, recorded):
    facts = host(kernel="4.18.0-477.10.1.el8_8.x86_64", kernels=[])["__nvidia_driver_host"]
    variables = {"__nvidia_driver_host": facts, "__nvidia_driver_container": False, "nvidia_driver_move": True}
    old = nevras("4.18.0-513.5.1.el8_9.x86_64")
    status, output = play(
        part("kernel"), "-e", json.dumps(variables), programs={"dnf": f"echo '{old}'", "rpm": ":"}, gather_facts=False
    )
    assert status != 0
    assert "found 4.18.0-477.10.1.el8_8.x86_64, and no whole one of the range on offer" in one_line(output)
    assert "expected 4.18.0-553*.el8_10" in one_line(output)


# In place of the module that reads the host: it answers what the test says, and keeps what it was asked.
FACTS = """
import json
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule({{"signing_key": {{"no_log": False}}, "signing_certificate": {{}}}}, supports_check_mode=True)
with open({asked!r}, "w") as stream:
    json.dump(module.params, stream)
module.exit_json(host=json.loads({facts!r}))
"""


def judged(play, tmp_path, facts, programs=None, **variables):
    """Run preflight.yml on a host with these facts: what was asked of it, exit status, output."""
    asked = tmp_path / "asked"
    values = {"__nvidia_driver_container": False, **variables}
    done = play(
        [*part("preflight"), {"name": "Change", "ansible.builtin.command": "changes-the-host"}],
        "-e", json.dumps(values), programs=programs, gather_facts=False,
        modules={"kepler_host_facts": FACTS.format(asked=str(asked), facts=json.dumps(facts))},
    )
    return json.loads(asked.read_text()), *done


READY: dict = {
    "streams": {}, "packages": [], "driver_package": None, "runfile": False, "kernel": KERNEL, "kernels": [KERNEL],
    "secure_boot": False, "signing_key": None, "enrollment": "missing", "modules": [], "nvidia_version": None,
}


@pytest.mark.parametrize(
    ("changes", "variables", "parts"),
    [
        ({"kernel": "4.18.0-999.x86_64"}, {}, ["the running kernel 4.18.0-999.x86_64", "expected 4.18.0-553*.el8_10"]),
        ({"secure_boot": True}, {}, ["openssl req", "mokutil --import /var/lib/dkms/mok.pub", "Enroll MOK"]),
        ({}, {"nvidia_driver_signing_key": "/k"}, ["nvidia_driver_signing_certificate"]),
        (
            {"signing_key": {"mode": "0644", "owner": 0}, "enrollment": "enrolled"},
            {"nvidia_driver_signing_key": "/k", "nvidia_driver_signing_certificate": "/c"},
            ["/k of mode 0644", "chmod 0400 /k"],
        ),
        ({"runfile": True}, {}, ["nvidia-uninstall"]),
        (
            {"packages": ["kmod-nvidia-latest-dkms", "nvidia-driver"]}, {"nvidia_driver_provider": "runfile"},
            ["runfile, and the packages kmod-nvidia-latest-dkms, nvidia-driver", "dnf module reset nvidia-driver"],
        ),
    ],
    ids=["another kernel", "Secure Boot", "half a pair", "an open key", "a runfile", "packages beside the runfile"],
)
def test_what_stops_the_role_before_anything_changes(play, tmp_path, recorded, log, changes, variables, parts):
    programs = {"changes-the-host": recorded("changes-the-host")}
    _, status, output = judged(play, tmp_path, {**READY, **changes}, programs, **variables)
    assert status != 0
    for text in [*parts, "othing was changed"]:
        assert text in one_line(output)
    assert "changed=0" in output
    assert log() == []


def test_a_ready_host_goes_on(play, tmp_path, recorded, log):
    asked, status, output = judged(play, tmp_path, READY, {"changes-the-host": recorded("changes-the-host")})
    assert status == 0, output
    assert log() == ["changes-the-host "]
    assert asked == {"signing_key": None, "signing_certificate": "/var/lib/dkms/mok.pub"}


@pytest.mark.parametrize(("answer", "state"), [("is already enrolled", "enrolled"), ("is not enrolled", "absent")])
def test_mokutil_is_asked_about_the_certificate(play, tmp_path, recorded, log, answer, state):
    certificate, key = tmp_path / "mok.der", tmp_path / "mok.key"
    certificate.write_text("")
    key.write_text("")
    key.chmod(0o400)
    pair = {"signing_key": str(key), "signing_certificate": str(certificate)}
    shown = "{{ read.host.enrollment }} {{ read.host.signing_key.mode }}"
    tasks = [
        {"name": "Read", "kepler.vllm.kepler_host_facts": pair, "register": "read"},
        {"name": "Show", "ansible.builtin.debug": {"msg": shown}},
    ]
    programs = {"mokutil": recorded("mokutil", f"echo $2 {answer}; exit 1")}
    status, output = play(tasks, programs=programs, gather_facts=False)
    assert status == 0, output
    assert f"msg: {state} 0400" in output
    assert log() == [f"mokutil --test-key {certificate}"]


def write_lock(tmp_path, entry):
    """Profiles whose lock has this entry for NVIDIA's installer, or none."""
    profiles = Path(shutil.copytree(ROOT / "profiles", tmp_path / "profiles"))
    path = profiles / "k80/lock/sources.yml"
    sources = yaml.safe_load(path.read_text())
    sources["sources"].pop("nvidia-runfile")
    if entry:
        sources["sources"]["nvidia-runfile"] = entry
    path.write_text(yaml.safe_dump(sources))
    return profiles


def source(path):
    """Lock entry of the installer at `path`."""
    return {
        "version": DRIVER, "file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "urls": [path.as_uri()], "provenance": "this test", "verified": True,
    }


# As NVIDIA's file is made: a script that takes options of the driver, with an archive behind its last line.
RUNFILE = """#!/bin/sh
{recorded}
set -e
for option in "$@"; do
    case "$option" in
    --silent) silent=1 ;;
    --dkms | --no-x-check | --no-opengl-files) ;;
    --kernel-name=?*) ;;
    *) echo "unrecognized option: $option" >&2; exit 1 ;;
    esac
done
[ "$silent" ] || {{ echo "nobody answers the questions" >&2; exit 1; }}
unpacked="$(mktemp -d)"
trap 'rm -rf "$unpacked"' EXIT
sed '1,/^# payload$/d' "$0" | base64 -d | tar -xzf - -C "$unpacked"
sh "$unpacked/nvidia-installer"
exit {status}
# payload
"""


def lock_with_runfile(tmp_path, recorded, status=0):
    """A lock whose sources hold an installer that writes its arguments down and lays down what it carries."""
    archive = io.BytesIO()
    program = f"echo the library > {tmp_path}/installed\n".encode()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        member = tarfile.TarInfo("nvidia-installer")
        member.size = len(program)
        tar.addfile(member, io.BytesIO(program))
    path = tmp_path / f"NVIDIA-Linux-x86_64-{DRIVER}.run"
    payload = base64.encodebytes(archive.getvalue()).decode()
    path.write_text(RUNFILE.format(recorded=recorded("installer"), status=status) + payload)
    return path, write_lock(tmp_path, source(path))


@pytest.mark.parametrize(
    "entry", [None, {
        "version": "470.239.06", "file": "NVIDIA-Linux-x86_64-470.239.06.run", "sha256": "0" * 64,
        "urls": ["file:///none"], "provenance": "this test", "verified": True,
    }], ids=["none", "another version"],
)
def test_an_installer_that_the_lock_does_not_name_is_refused(play, tmp_path, monkeypatch, entry):
    monkeypatch.setenv("KEPLER_PROFILES_DIR", str(write_lock(tmp_path, entry)))
    _, status, output = judged(play, tmp_path, READY, {}, nvidia_driver_provider="runfile")
    assert status != 0
    found = entry["version"] if entry else "nothing"
    for text in [f"nvidia-runfile: found {found}; expected version {DRIVER}", "nvidia_driver_provider: module_stream"]:
        assert text in one_line(output)
    assert "changed=0" in output


def test_the_lock_names_the_installer_of_the_locked_driver(play, tmp_path):
    _, status, output = judged(play, tmp_path, READY, {"changes-the-host": ""}, nvidia_driver_provider="runfile")
    assert status == 0, output


def runfile(play, tmp_path, lock, recorded, *options, **facts):
    """Run installer.yml with this lock."""
    if os.geteuid() != 0:
        pytest.skip("what is fetched belongs to root: needs root")
    variables = {
        **host(**facts), "nvidia_driver_reboot": False, "__nvidia_driver_cache": str(tmp_path / "cache"),
        "__nvidia_driver_installer_log": str(tmp_path / "installer.log"),
        "__nvidia_driver_installed": str(tmp_path / "installed"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEPLER_PROFILES_DIR", str(lock))
        return play(part("installer"), "-e", json.dumps(variables), *options, gather_facts=False)


def test_the_installer_runs_by_its_hash_and_asks_nobody(play, tmp_path, recorded, log):
    _, lock = lock_with_runfile(tmp_path, recorded)
    status, output = runfile(play, tmp_path, lock, recorded)
    assert status == 0, output
    assert log() == [f"installer --silent --dkms --kernel-name={KERNEL} --no-x-check --no-opengl-files"]
    assert (tmp_path / "installed").read_text() == "the library\n"
    # A second run finds the driver and nvidia-uninstall, and leaves them alone; with --check as well.
    for options in ([], ["--check"]):
        status, output = runfile(play, tmp_path, lock, recorded, *options, runfile=True)
        assert status == 0, output
        assert "changed=0" in output
    assert len(log()) == 1


def test_installer_present_on_host_needs_no_network(play, tmp_path, recorded, log):
    path, lock = lock_with_runfile(tmp_path, recorded)
    (tmp_path / "cache").mkdir()
    path.rename(tmp_path / "cache" / path.name)
    status, output = runfile(play, tmp_path, lock, recorded)
    assert status == 0, output
    assert len(log()) == 1


def test_an_installer_of_another_hash_does_not_run(play, tmp_path, recorded, log):
    path, lock = lock_with_runfile(tmp_path, recorded)
    path.write_text(path.read_text() + "# changed\n")
    status, output = runfile(play, tmp_path, lock, recorded)
    assert status != 0
    assert "checksum" in output
    assert log() == []


def test_an_installer_that_fails_shows_the_end_of_its_log(play, tmp_path, recorded):
    _, lock = lock_with_runfile(tmp_path, recorded, status=1)
    (tmp_path / "installer.log").write_text("ERROR: Unable to build the NVIDIA kernel module.\n")
    status, output = runfile(play, tmp_path, lock, recorded)
    assert status != 0
    assert "found exit status 1; expected 0" in one_line(output)
    assert "Unable to build the NVIDIA kernel module" in output


def test_the_installer_waits_until_nouveau_is_gone(play, tmp_path, recorded, log):
    _, lock = lock_with_runfile(tmp_path, recorded)
    status, output = runfile(play, tmp_path, lock, recorded, modules=["nouveau"])
    assert status != 0
    assert "reboot is due before NVIDIA's installer runs" in one_line(output).replace("''", "'")
    assert log() == []


def test_check_mode_says_what_the_installer_would_do(play, tmp_path, recorded, log):
    _, lock = lock_with_runfile(tmp_path, recorded)
    status, output = runfile(play, tmp_path, lock, recorded, "--check")
    assert status == 0, output
    assert f"would install: NVIDIA-Linux-x86_64-{DRIVER}.run" in output
    assert log() == []


def test_the_runfile_leaves_the_streams_packages_out():
    found = evaluate("nvidia_driver", "{{ __nvidia_driver_packages }}", **host(), nvidia_driver_provider="runfile")
    assert [entry["name"] for entry in found] == ["kernel-core", "kernel-devel", "kernel-headers", "dkms"]


def test_the_kernel_that_runs_gets_its_headers_and_is_held():
    packages = "{{ %s | kepler.vllm.rpms_to_install(there) }}"
    there = [*nevras(KERNEL).splitlines()[:3], "dkms-0:3.3.0-1.el8.noarch", "kernel-headers-0:" + NEWER]
    found = evaluate("nvidia_driver", packages % "__nvidia_driver_packages", **host(), there=there)
    assert found[0] == f"kernel-devel-0:{KERNEL}"
    assert not [spec for spec in found[1:] if spec.startswith(("kernel", "dkms"))]
    locks = "{{ __nvidia_driver_held | kepler.vllm.installed_locks(there) }}"
    held = evaluate("nvidia_driver", locks, **host(), there=there)
    assert held == [f"{name}-0:{KERNEL.rpartition('.')[0]}.*" for name in ("kernel", "kernel-core", "kernel-modules")]


def test_a_kernel_that_is_to_come_comes_whole():
    known = {**host(), "__nvidia_driver_kernel": NEWER}
    found = evaluate("nvidia_driver", "{{ __nvidia_driver_packages | kepler.vllm.rpms_to_install([]) }}", **known)
    assert found[:4] == nevras(NEWER).splitlines()


@pytest.mark.parametrize("fails", [False, True])
def test_new_kernel_is_not_default_before_verification(play, tmp_path, recorded, log, fails):
    default = tmp_path / "default"
    default.write_text(f"/boot/vmlinuz-{KERNEL}")
    tasks = yaml.safe_load((ROLE / "tasks/install.yml").read_text())
    (before,) = [task for task in tasks if task.get("register") == "__nvidia_driver_default_before"]
    (install,) = [task for task in tasks if "always" in task]
    install["block"] = [{"name": "Install a kernel", "ansible.builtin.command": "install-a-kernel"}]
    programs = {
        "install-a-kernel": f"echo /boot/vmlinuz-{NEWER} > {default}; {'exit 1' if fails else 'true'}",
        "grubby": recorded("grubby", f"[ $1 = --default-kernel ] && cat {default} || echo $2 > {default}"),
    }
    variables = {"__nvidia_driver_container": False}
    status, output = play(
        [before, install], "-e", json.dumps(variables), programs=programs, gather_facts=False
    )
    assert (status != 0) is fails, output
    assert default.read_text().strip() == f"/boot/vmlinuz-{KERNEL}"
    assert log()[-1] == f"grubby --set-default /boot/vmlinuz-{KERNEL}"


def sign(play, tmp_path, key, certificate, *options):
    directory = tmp_path / "framework.conf.d"
    values = {"nvidia_driver_signing_key": key, "nvidia_driver_signing_certificate": certificate,
              "__nvidia_driver_framework": str(directory)}
    status, output = play(part("sign"), "-e", json.dumps(values), *options, gather_facts=False)
    assert status == 0, output
    return directory / "kepler-signing.conf", output


def test_the_signing_pair_is_what_dkms_reads(play, tmp_path):
    path, _ = sign(play, tmp_path, "/etc/pki/mok.key", "/etc/pki/mok.der")
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ['mok_signing_key="/etc/pki/mok.key"', 'mok_certificate="/etc/pki/mok.der"']
    assert "changed=0" in sign(play, tmp_path, "/etc/pki/mok.key", "/etc/pki/mok.der")[1]
    assert not sign(play, tmp_path, "", "")[0].exists()
    assert "changed=0" in sign(play, tmp_path, "", "")[1]


def test_a_dry_run_names_no_pair_where_nothing_is_there_yet(play, tmp_path):
    path, _ = sign(play, tmp_path, "/etc/pki/mok.key", "/etc/pki/mok.der", "--check", "--diff")
    assert not path.parent.exists()


def test_the_unit_of_the_uvm_device_runs_before_the_servers():
    unit = (ROLE / "files/kepler-nvidia-uvm.service").read_text().splitlines()
    assert "ExecStart=/usr/bin/nvidia-modprobe -u -c=0" in unit
    assert "Before=vllm.target" in unit


def test_persistence_daemon_runs_before_uvm_and_servers():
    unit = (ROLE / "files/kepler-persistenced.conf").read_text().splitlines()
    assert "Before=kepler-nvidia-uvm.service vllm.target" in unit
    start = [line for line in unit if line.startswith("ExecStart=")]
    daemon = "/usr/bin/nvidia-persistenced --user nvidia-persistenced --persistence-mode"
    assert start == ["ExecStart=", f"ExecStart={daemon}"]
    tasks = yaml.safe_load((ROLE / "tasks/configure.yml").read_text())
    (files,) = [task["kepler.vllm.host_files"]["files"] for task in tasks if "kepler.vllm.host_files" in task]
    (dest,) = [item["dest"] for item in files if item["src"] == "kepler-persistenced.conf"]
    assert dest == "{{ __nvidia_driver_dropin }}"
    dropin = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__nvidia_driver_dropin"]
    assert dropin == "/etc/systemd/system/nvidia-persistenced.service.d/kepler.conf"


# Options of nvidia-smi that set clocks, power, compute mode or reset a die.
SETTING = {
    "-pl", "--power-limit", "-ac", "--applications-clocks", "-rac", "--reset-applications-clocks", "-lgc",
    "--lock-gpu-clocks", "-rgc", "-lmc", "--lock-memory-clocks", "-pm", "--persistence-mode=1", "-r", "--gpu-reset",
}


def test_nouveau_neither_loads_nor_sets_a_mode():
    assert {"blacklist nouveau", "options nouveau modeset=0"} <= set(NOUVEAU.splitlines())


def test_another_driver_that_is_there_is_replaced():
    there = [*nevras(KERNEL).splitlines(), "nvidia-driver-3:470.239.06-1.el8.x86_64"]
    packages = "{{ __nvidia_driver_packages | kepler.vllm.rpms_to_install(there) }}"
    assert f"nvidia-driver-3:{DRIVER}-1.el8.x86_64" in evaluate("nvidia_driver", packages, **host(), there=there)


def test_clocks_and_power_limits_are_never_touched():
    asked = 0
    for path in [*ROOT.glob("roles/**/*"), *ROOT.glob("playbooks/*.yml"), *ROOT.glob("plugins/**/*.py")]:
        if not path.is_file() or path.suffix in (".md", ".pyc") or "nvidia-smi" not in path.read_text():
            continue
        asked += 1
        for call in re.findall(r"nvidia-smi[^\n]*", path.read_text()):
            assert not SETTING & set(re.split(r"[\s\"',\[\]=]+", call)), (os.fspath(path), call)
    assert asked > 1
