"""The role repos: proxies that the inventory names, and version locks that hold what is installed."""

import http.server
import json
import sys
import threading
from pathlib import Path

import pytest
import yaml

REPOS = Path(__file__).resolve().parents[3] / "roles" / "repos"
PLAYBOOKS = Path(__file__).resolve().parents[3] / "playbooks"
# What dnf ends with in a dry run.
ABORTED = "echo Operation aborted. >&2; exit 1"
DKMS = {"name": "dkms", "epoch": 0, "version": "3.0.13", "release": "1.el8", "arch": "noarch"}


@pytest.fixture
def proxy():
    """Address of a proxy that answers 502 to everything, and what it was asked for."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_error(502)

        def log_message(self, *arguments):
            """Say nothing."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def test_a_key_is_fetched_through_the_proxy(play, proxy, monkeypatch):
    address, seen = proxy
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    key = {"key": "http://keys.example.org/key.asc", "fingerprint": "A" * 40, "variable": "repos_epel_gpgkey"}
    status, printed = play(
        [{"name": "Import", "kepler.vllm.rpm_signing_keys": {"keys": [key]}}], "--check", gather_facts=False,
        environment={"http_proxy": address},
    )
    assert status != 0
    assert "repos_epel_gpgkey: found" in printed
    assert seen == ["http://keys.example.org/key.asc"]


@pytest.mark.parametrize("name", ["host", "build", "builder", "bundle"])
def test_every_play_that_installs_passes_the_proxy_on(name):
    plays = [play for play in yaml.safe_load((PLAYBOOKS / f"{name}.yml").read_text()) if "roles" in play]
    assert plays
    for play in plays:
        assert play["environment"] == "{{ proxy_env | default({}) }}", play["name"]


def test_locks_are_written_after_the_installation():
    """Before it they would hide from everybody which versions are on offer."""
    (block,) = [task for task in yaml.safe_load((REPOS / "tasks/packages.yml").read_text()) if "always" in task]
    released, asked, answered, refused, installed = block["block"]
    assert released["ansible.builtin.blockinfile"]["state"] == "absent"
    assert "--assumeno" in asked["kepler.vllm.long_command"]["argv"]
    assert "__repos_dry_run" in answered["vars"]["__repos_answer"]
    assert "downgrades" in refused["vars"]["__repos_downgrades"]
    assert "--assumeyes" in installed["kepler.vllm.long_command"]["argv"]
    read, locked = block["always"]
    assert read["register"] == "__repos_installed"
    assert "__repos_installed.stdout_lines" in locked["vars"]["__repos_locks"]
    for path in REPOS.parent.glob("*/tasks/*.yml"):
        if "blockinfile" in path.read_text() and "versionlock" in path.read_text():
            assert path.parent.parent.name == "repos", path


@pytest.mark.parametrize(
    ("before", "installed", "after"),
    [
        # An upgrade that fails.
        ("dkms-0:2.8-1.el8.*", ["dkms-0:2.8-1.el8.noarch"], "dkms-0:2.8-1.el8.*"),
        # A lock of a version that never came, as an earlier release of this role wrote it.
        ("dkms-0:3.0.13-1.el8.*", [], ""),
    ],
)
def test_a_failed_installation_locks_what_is_there(play, tmp_path, before, installed, after):
    listed = tmp_path / "versionlock.list"
    mark = "# {} vllm-kepler: nvidia_driver\n"
    others = "glibc-0:2.28-251.el8.*\n"
    listed.write_text(others + (f"{mark.format('BEGIN')}{before}\n{mark.format('END')}" if before else ""))
    tasks = [{"name": "Install",
              "ansible.builtin.include_role": {"name": "kepler.vllm.repos", "tasks_from": "packages"},
              "vars": {"repos_packages": [DKMS], "repos_packages_locked": "nvidia_driver"}}]
    status, output = play(
        tasks, "-e", json.dumps({"__repos_versionlock_list": str(listed)}), gather_facts=False,
        programs={
            "rpm": f"printf '%s' '{''.join(line + chr(10) for line in installed)}'", "dnf": ABORTED,
        },
    )
    assert status != 0
    assert "Install the missing packages" in output
    wanted = f"{mark.format('BEGIN')}{after}\n{mark.format('END')}" if after else ""
    assert listed.read_text() == others + wanted


def test_version_locks_of_a_roles_old_name_are_released(play, tmp_path):
    """Before the installation: they would hide the versions of another lock."""
    listed = tmp_path / "versionlock.list"
    listed.write_text("# BEGIN vllm-kepler: gcc_toolset\ndkms-0:2.8-1.el8.*\n# END vllm-kepler: gcc_toolset\n")
    tasks = [{"name": "Install",
              "ansible.builtin.include_role": {"name": "kepler.vllm.repos", "tasks_from": "packages"},
              "vars": {"repos_packages": [DKMS], "repos_packages_locked": "compiler"}}]
    status, output = play(
        tasks, "-e", json.dumps({"__repos_versionlock_list": str(listed)}), gather_facts=False,
        programs={"rpm": ":", "dnf": ABORTED},
    )
    assert status != 0
    assert "Install the missing packages" in output
    assert listed.read_text() == ""


def test_what_another_play_installs_meanwhile_is_there(play, tmp_path):
    """Its dnf runs between the look at what is installed and the one that is asked for the rest."""
    tasks = [{"name": "Install",
              "ansible.builtin.include_role": {"name": "kepler.vllm.repos", "tasks_from": "packages"},
              "vars": {"repos_packages": [DKMS]}}]
    there = f"[ -e {tmp_path}/there ] && echo dkms-0:3.0.13-1.el8.noarch; touch {tmp_path}/there"
    status, output = play(tasks, gather_facts=False, programs={"rpm": there, "dnf": "echo Nothing to do."})
    assert status == 0, output


PRINTED = Path(__file__).resolve().parents[1] / "preflight" / "dnf" / "downgrade.out"


@pytest.mark.parametrize(("offline", "step"), [("", "Bring the repositories up to date"), ("/b", "`make bundle`")])
def test_nothing_is_installed_that_downgrades_a_package(play, tmp_path, offline, step):
    """What the real dnf printed."""
    tasks = [{"name": "Install",
              "ansible.builtin.include_role": {"name": "kepler.vllm.repos", "tasks_from": "packages"},
              "vars": {"repos_packages": [DKMS], "repos_offline": offline}}]
    status, output = play(
        tasks, "-e", json.dumps({"__repos_versionlock_list": str(tmp_path / "versionlock.list")}), gather_facts=False,
        programs={"rpm": ":", "dnf": f'echo "$LC_ALL $*" > {tmp_path}/asked; cat {PRINTED}; {ABORTED}'},
    )
    assert status != 0
    told = " ".join(output.split())
    assert "found that it would downgrade kernel-headers, tar for dkms-0:3.0.13-1.el8.noarch" in told
    assert step in told
    assert "Install the missing packages" not in output
    only = "--disablerepo=* --enablerepo=kepler-offline " if offline else ""
    checked = "--setopt=gpgcheck=1 --setopt=sslverify=1"
    asked = f"C.UTF-8 {checked} {only}--assumeno install dkms-0:3.0.13-1.el8.noarch"
    assert (tmp_path / "asked").read_text().strip() == asked


@pytest.mark.parametrize(
    ("dnf", "found"),
    [
        # What dnf 4.14 says if metadata has to be signed and its key was not taken yet.
        ("echo 'repomd.xml GPG signature verification error: Bad GPG signature' >&2; exit 1", "Bad GPG signature"),
        ("echo 'Error: Problem: nothing provides kernel-devel-matched' >&2; exit 1", "nothing provides kernel-devel"),
        ("kill -9 $$", "expected the transaction"),
    ],
)
def test_nothing_is_installed_if_dnf_cannot_simulate(play, tmp_path, dnf, found):
    """A dry run without an answer shows no downgrade."""
    tasks = [{"name": "Install",
              "ansible.builtin.include_role": {"name": "kepler.vllm.repos", "tasks_from": "packages"},
              "vars": {"repos_packages": [DKMS]}}]
    status, output = play(
        tasks, "-e", json.dumps({"__repos_versionlock_list": str(tmp_path / "versionlock.list")}), gather_facts=False,
        programs={"rpm": ":", "dnf": dnf},
    )
    assert status != 0
    told = " ".join(output.split())
    assert found in told
    assert "expected the transaction that it prints for dkms-0:3.0.13-1.el8.noarch. Nothing was installed" in told
    assert "Install the packages that are missing" not in output


def test_a_host_that_has_newer_packages_keeps_them(play, tmp_path):
    """No dnf is started, nothing is changed, and what has no exact version is not held."""
    entries = [
        {"name": "tar", "minimum": "2:1.30", "arch": "x86_64"}, {"name": "dkms", "minimum": "3.0.13", "arch": "noarch"},
        {"name": "config-common", "arch": "noarch"},
    ]
    there = ["tar-2:1.34-1.el8_10.x86_64", "dkms-0:3.4.3-2.el8.noarch", "config-common-0:13.0.1-1.noarch"]
    listed = tmp_path / "versionlock.list"
    tasks = [{"name": "Install",
              "ansible.builtin.include_role": {"name": "kepler.vllm.repos", "tasks_from": "packages"},
              "vars": {"repos_packages": entries, "repos_packages_locked": "python"}}]
    status, output = play(
        tasks, "-e", json.dumps({"__repos_versionlock_list": str(listed)}), gather_facts=False,
        programs={"rpm": f"printf '%s\\n' {' '.join(there)}", "dnf": "exit 1"},
    )
    assert status == 0, output
    assert "changed=0" in output
    assert not listed.exists()


def test_preflight_reports_what_dnf_and_the_keys_say(play, tmp_path):
    """In check mode, as without it: nothing is changed, and all of it comes at once."""
    (tmp_path / "world.json").write_text(json.dumps({"repos": {"epel": ["dkms|0|3.3.0|1.el8|noarch"]}}))
    (tmp_path / "key.asc").write_text("no key")
    fake = Path(__file__).resolve().parents[1] / "preflight" / "fake_dnf.py"
    wanted = {**DKMS, "repo": "epel"}
    tasks = [
        {"name": "Ask", "ansible.builtin.include_role": {"name": "kepler.vllm.repos", "tasks_from": "preflight"},
         "vars": {"repos_wanted": [wanted]}},
        {"name": "Show", "ansible.builtin.debug": {"msg": "{{ repos_findings | kepler.vllm.findings_report }}"}},
    ]
    variables = {f"repos_{name}_gpgkey": str(tmp_path / "key.asc") for name in ("epel", "cuda")}
    status, output = play(
        tasks, "--check", gather_facts=False, variables=variables,
        programs={"dnf": f"FAKE_DNF={tmp_path} exec {sys.executable} {fake} \"$@\"", "rpm": ":"},
    )
    assert status == 0, output
    assert "changed=0" in output
    told = " ".join(output.split())
    assert "dkms-0:3.0.13-1.el8.noarch (on offer: 0:3.3.0-1.el8.noarch in epel)" in told
    assert "make lock-rpms HOST=box" in told
    for name in ("epel", "cuda"):
        assert f"error: repos_{name}_gpgkey: found" in told
