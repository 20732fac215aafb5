"""What preflight says of a host whose dnf would not install the locked packages: the module asks, the filter judges."""

from pathlib import Path

import pytest
from ansible_collections.kepler.vllm.plugins.filter.kepler_repositories import (
    bundle_packages,
    message_findings,
    repository_findings,
)
from ansible_collections.kepler.vllm.plugins.module_utils import rpms
from fake_host import FakeHost

CAPTURED = Path(__file__).resolve().parent / "dnf"
DRIVER = "nvidia-driver-3:470.256.02-1.el8.x86_64"
RPMS = [
    {"name": "kernel", "epoch": 0, "version": "4.18.0", "release": "553.el8_10", "arch": "x86_64", "repo": "baseos"},
    {"name": "dkms", "epoch": 0, "version": "3.0.13", "release": "1.el8", "arch": "noarch", "repo": "epel"},
    {"name": "nvidia-driver", "epoch": 3, "version": "470.256.02", "release": "1.el8", "arch": "x86_64",
     "repo": "cuda-rhel8", "module": "nvidia-driver", "stream": "470-dkms"},
]  # fmt: skip
ON_OFFER = {
    "baseos": ["kernel|0|4.18.0|553.el8_10|x86_64", "kernel|0|4.18.0|553.89.1.el8_10|x86_64"],
    "epel": ["dkms|0|3.0.13|1.el8|noarch"],
    "cuda-rhel8": ["nvidia-driver|3|470.256.02|1.el8|x86_64", "nvidia-driver|3|560.35.03|1.el8|x86_64"],
}


@pytest.fixture
def host(tmp_path, monkeypatch, capsys):
    box = FakeHost(tmp_path, monkeypatch, capsys)
    box.world["repos"] = {name: list(lines) for name, lines in ON_OFFER.items()}
    return box


def findings(host, rpms=RPMS, bundle=None, **arguments):
    answer = host.ask(rpms, **arguments)
    return repository_findings(
        answer, rpms, streams=["nvidia-driver:470-dkms"], added=["epel", "cuda-rhel8"], host="k80-1", bundle=bundle
    )


def only(found, severity="error"):
    (item,) = found
    assert item["severity"] == severity
    return item


def test_a_sound_host_has_no_finding(host):
    assert findings(host) == []


def test_dnf_is_asked_past_its_settings_and_then_with_them(host):
    host.write("/etc/yum.repos.d/epel.repo", "[epel]\nmetalink=http://other.example.org\nenabled=0\n")
    findings(host)
    query, streams, install = host.calls()
    assert {"--disableplugin=versionlock", "--disableexcludes=all", "--disable-modular-filtering"} <= set(query)
    assert query[-3:] == ["dkms", "kernel", "nvidia-driver"]
    assert "--assumeno" in streams
    assert streams[-3:] == ["module", "enable", "nvidia-driver:470-dkms"]
    assert {"--assumeno", "--cacheonly", "--setopt=cuda-rhel8.module_hotfixes=1"} <= set(install)
    assert install[-4:] == ["install", "kernel-0:4.18.0-553.el8_10.x86_64", "dkms-0:3.0.13-1.el8.noarch", DRIVER]
    assert not [item for item in install if item.startswith("--disable")]
    repositories = (host.directory / "repos.txt").read_text()
    assert "metalink" not in repositories
    assert "baseurl=http://mirror.example.org/epel/" in repositories
    # A query needs no signature of the metadata, and one repository must not hide the others.
    assert "repo_gpgcheck=1" not in repositories
    assert repositories.count("skip_if_unavailable=1") == 3


def test_settings_of_the_host_stay_as_they_are(host):
    host.write("/etc/yum.repos.d/epel.repo", "[epel]\nbaseurl=x\n")
    before = {path: path.read_bytes() for path in host.root.rglob("*") if path.is_file()}
    findings(host)
    assert {path: path.read_bytes() for path in host.root.rglob("*") if path.is_file()} == before


def test_absent_versions_come_in_one_finding(host):
    host.world["repos"]["epel"] = ["dkms|0|3.2.2|1.el8|noarch", "dkms|0|3.3.0|1.el8|noarch"]
    host.world["repos"]["cuda-rhel8"] = ["nvidia-driver|3|560.35.03|1.el8|x86_64"]
    item = only(findings(host))
    assert item["variable"] == "lock/rpms.yml of the hardware profile"
    assert "2 locked package(s)" in item["found"]
    assert (
        "dkms-0:3.0.13-1.el8.noarch (on offer: 0:3.3.0-1.el8.noarch in epel, 0:3.2.2-1.el8.noarch in epel)"
        in item["found"]
    )
    assert f"{DRIVER} (on offer: 3:560.35.03-1.el8.x86_64 in cuda-rhel8)" in item["found"]
    assert "make lock-rpms HOST=k80-1" in item["next_step"]


def test_repositories_that_offer_nothing(host):
    host.world["repos"] = {}
    assert "3 locked package(s)" in only(findings(host))["found"]


def test_a_name_that_nobody_has(host):
    host.world["repos"]["epel"] = []
    assert "dkms-0:3.0.13-1.el8.noarch (on offer: nothing)" in only(findings(host))["found"]


@pytest.mark.parametrize(("entry", "fits"), [
    ({"minimum": "0:3.0.13-1.el8"}, True), ({"minimum": "3.0"}, True), ({}, True),
    ({"minimum": "0:3.3.1-1.el8"}, False),
])  # fmt: skip
def test_an_entry_may_ask_for_less_than_a_version(host, entry, fits):
    host.world["repos"]["epel"] = ["dkms|0|3.3.0|1.el8|noarch"]
    found = findings(host, [RPMS[0], {"name": "dkms", "arch": "noarch", "repo": "epel", **entry}])
    assert (found == []) is fits
    if fits:
        assert host.calls()[-1][-1] == ("dkms >= " + entry["minimum"] if entry else "dkms")


def test_a_version_that_is_installed_need_not_be_on_offer(host):
    host.world["repos"]["epel"] = []
    host.installed("dkms|0|3.0.13|1.el8|noarch")
    assert findings(host) == []
    assert "dkms-0:3.0.13-1.el8.noarch" not in host.calls()[-1]


@pytest.mark.parametrize(("line", "hidden"), [
    ("exclude=kernel*", ["kernel-0:4.18.0-553.el8_10.x86_64"]),
    ("excludepkgs=glibc, dkms-3.0.13*", ["dkms-0:3.0.13-1.el8.noarch"]),
    ("exclude=nvidia-driver.x86_64", [DRIVER]),
    ("exclude=*", [entry["name"] for entry in RPMS]),
    ("includepkgs=kernel* dkms", [DRIVER]),
    ("exclude=kernel-core kernel-553 dkms-2* *-debuginfo", []),
])  # fmt: skip
def test_excludes_of_dnf_are_named_by_file_and_line(host, line, hidden):
    host.write("/etc/dnf/dnf.conf", f"[main]\ngpgcheck=1\n{line}\n")
    found = findings(host)
    if not hidden:
        assert found == []
        return
    item = only(found)
    assert "/etc/dnf/dnf.conf, line 3: " in item["found"]
    assert all(name in item["found"] for name in hidden)
    assert "line 3" in item["next_step"]


def test_an_exclude_of_the_one_repository_that_has_it(host):
    host.write("/etc/yum.repos.d/distribution.repo", "[baseos]\nname=b\nbaseurl=http://m.example.org\nexclude=kernel*\n")
    item = only(findings(host))
    assert "/etc/yum.repos.d/distribution.repo, line 4: exclude=kernel* in [baseos]" in item["found"]


def test_exclude_of_another_section_of_dnf_conf_is_no_global_one(host):
    host.write("/etc/dnf/dnf.conf", "[main]\ngpgcheck=1\n[site]\nbaseurl=http://m.example.org\nexclude=kernel* dkms\n")
    assert findings(host) == []


def test_an_exclude_that_leaves_another_source_is_fine(host):
    host.write("/etc/yum.repos.d/site.repo", "[site]\nbaseurl=http://m.example.org\nexcludepkgs=kernel*\n")
    host.world["repos"]["site"] = ["kernel|0|4.18.0|553.el8_10|x86_64"]
    assert findings(host) == []


def test_an_exclude_that_the_roles_would_overwrite_is_named_too(host):
    """They write that section anew: somebody's setting would go without a word."""
    host.write("/etc/yum.repos.d/epel.repo", "[epel]\nbaseurl=http://m.example.org\nexclude=dkms\n")
    assert "/etc/yum.repos.d/epel.repo, line 3: exclude=dkms in [epel]" in only(findings(host))["found"]


@pytest.mark.parametrize(("line", "hits"), [
    ("dkms-0:2.8.6-1.el8.*", True), ("kernel-0:4.18.0-477*", True), ("!dkms-0:3.0.13-1.el8.*", True),
    ("kernel", False), ("dkms-0:3.0.13-1.el8.*", False), ("glibc-0:2.28-251.el8.*", False),
    ("!dkms-0:3.3.0-1.*", False),
])  # fmt: skip
def test_version_locks_of_others_are_named(host, line, hits):
    host.write("/etc/dnf/plugins/versionlock.list", f"# by hand\n{line}\n")
    found = findings(host)
    if not hits:
        assert found == []
        return
    item = only(found)
    assert f"/etc/dnf/plugins/versionlock.list, line 2: {line}" in item["found"]
    assert "sed -i 2d /etc/dnf/plugins/versionlock.list" in item["next_step"]


def test_version_locks_elsewhere_and_of_the_roles(host):
    host.write("/etc/dnf/plugins/versionlock.conf", "[main]\nenabled=1\nlocklist = /etc/dnf/locks\n")
    host.write("/etc/dnf/locks", "# BEGIN vllm-kepler: nvidia_driver\ndkms-0:1-1.*\n# END vllm-kepler: nvidia_driver\n")
    assert findings(host) == []
    host.write("/etc/dnf/locks", "dkms-0:1-1.*\n")
    assert "/etc/dnf/locks, line 1" in only(findings(host))["found"]


@pytest.mark.parametrize(("setting", "severity"), [("", "error"), ("skip_if_unavailable=1\n", "warning")])
def test_a_repository_that_does_not_answer_is_named(host, setting, severity):
    host.write("/etc/yum.repos.d/site.repo", f"[site]\nbaseurl=http://127.0.0.1:9/x\n{setting}")
    host.world["failing"] = ["site"]
    item = only(findings(host), severity)
    assert "the repository site (/etc/yum.repos.d/site.repo, line 1): Curl error (7)" in item["found"]
    assert "makecache" in item["next_step"]
    # What it would have offered is no part of the dry run.
    assert "--disablerepo=site" in host.calls()[-1]


def test_dnf_that_does_not_answer_at_all(host, monkeypatch):
    (host.directory / "programs" / "dnf").write_text(f"#!/bin/sh\ncat {CAPTURED}/none.err >&2\nexit 1\n")
    item = only(findings(host))
    assert "There are no enabled repositories" in item["found"]
    assert "preflight_repositories: false" in item["next_step"]


def test_a_stream_that_nobody_offers(host):
    host.world["streams"] = []
    assert "the module stream nvidia-driver:470-dkms" in only(findings(host))["found"]


def test_a_disabled_module(host):
    record = "[nvidia-driver]\nname=nvidia-driver\nstate=disabled\nstream=\n"
    host.write("/etc/dnf/modules.d/nvidia-driver.module", record)
    assert "the module nvidia-driver is disabled" in only(findings(host), "warning")["found"]


def test_a_repository_of_the_same_name_in_another_file(host):
    host.write("/etc/yum.repos.d/mirror.repo", "[epel]\nbaseurl=http://m.example.org\n")
    assert "/etc/yum.repos.d/mirror.repo, line 1: a repository [epel]" in only(findings(host))["found"]


@pytest.mark.parametrize(("capture", "severity", "text"), [
    ("modular", "error", f"{DRIVER} (modular filtering)"),
    ("problem", "error", "kernel-devel-4.18.0-553.el8_10.x86_64 is filtered out by exclude filtering"),
    ("downgrade", "error", "dnf would downgrade kernel-headers, tar"),
])  # fmt: skip
def test_whatever_else_dnf_says_is_reported(host, capture, severity, text):
    """With what the real dnf printed."""
    prints = "".join(
        f"cat {path} >&{1 if path.suffix == '.out' else 2}\n" for path in sorted(CAPTURED.glob(f"{capture}.*"))
    )
    program = host.directory / "programs" / "dnf"
    case = f'case "$*" in *\\ install\\ *) {prints} exit 1;; esac\nexec'
    program.write_text(program.read_text().replace("exec", case))
    assert text in only(findings(host), severity)["found"]


BUNDLE = [
    "kernel-4.18.0-553.el8_10.x86_64.rpm", "dkms-3.0.13-1.el8.noarch.rpm", "nvidia-driver-470.256.02-1.el8.x86_64.rpm",
]


RUNNING, NEWER = "4.18.0-553.89.1.el8_10", "4.18.0-553.144.1.el8_10"


def kernel_entries(release=RUNNING):
    """What a host that runs this kernel needs, as the lock has it."""
    entries = [
        {"name": name, "arch": "x86_64", "repo": "baseos", "unit": "kernel"} for name in ("kernel-core", "kernel-devel")
    ]
    return [rpms.of_kernel(entry, "4.18.0-553*.el8_10", f"{release}.x86_64") for entry in entries]


def line(name, release):
    return f"{name}|0|4.18.0|{release.partition('-')[2]}|x86_64"


def test_headers_of_the_kernel_that_runs_are_on_offer(host):
    host.installed(line("kernel-core", RUNNING), line("kernel-core", NEWER))
    host.world["repos"]["baseos"] = [line("kernel-devel", RUNNING), line("kernel-devel", NEWER)]
    assert findings(host, kernel_entries()) == []
    assert host.calls()[-1][-1] == f"kernel-devel-0:{RUNNING}.x86_64"


def test_a_kernel_whose_headers_are_gone_is_told_the_ways_out(host):
    """A mirror that keeps the newest alone."""
    host.installed(line("kernel-core", RUNNING))
    host.world["repos"]["baseos"] = [line(name, NEWER) for name in ("kernel-core", "kernel-devel")]
    item = only(findings(host, kernel_entries()))
    assert f"the kernel {RUNNING}.x86_64, and kernel-devel-0:{RUNNING}.x86_64, which is not on offer" in item["found"]
    assert f"(on offer: 0:{NEWER}.x86_64 in baseos)" in item["found"]
    assert item["next_step"].startswith(f"Run playbooks/upgrade.yml, which takes {NEWER}.x86_64 and makes it boot")
    assert "vault" in item["next_step"]
    # A newer one that is installed needs a reboot only.
    host.installed(line("kernel-core", RUNNING), line("kernel-core", NEWER))
    item = only(findings(host, kernel_entries()))
    assert item["next_step"].startswith(f"Boot {NEWER}.x86_64, which is installed (grubby --set-default")


def test_kernel_without_headers_gets_place_of_old_packages(host):
    host.installed(line("kernel-core", NEWER))
    host.world["repos"]["baseos"] = [line("kernel-devel", RUNNING), line("kernel-devel", "4.18.0-600.el8_11")]
    item = only(findings(host, kernel_entries(NEWER)))
    assert item["next_step"].startswith(f"Install kernel-devel-0:{NEWER}.x86_64 from the distribution's archive")


def test_an_upgrade_takes_any_kernel_of_the_range(host):
    entry = {key: value for key, value in kernel_entries()[1].items() if key not in ("epoch", "version", "release")}
    host.world["repos"]["baseos"] = [line("kernel-devel", NEWER)]
    assert findings(host, [entry]) == []
    assert host.calls()[-1][-1] == "kernel-devel-4.18.0-553*.el8_10.x86_64"
    host.world["repos"]["baseos"] = [line("kernel-devel", "4.18.0-477.10.1.el8_8")]
    item = only(findings(host, [entry]))
    assert "kernel-devel-4.18.0-553*.el8_10.x86_64 (on offer: 0:4.18.0-477.10.1" in item["found"]


@pytest.mark.parametrize(("there", "offered", "said"), [
    # A mirror that is half synced.
    ([], [("kernel-core", NEWER), ("kernel-devel", RUNNING)], f"kernel-core (0:{NEWER}.x86_64 in baseos); kernel-devel "
                                                              f"(0:{RUNNING}.x86_64 in baseos)"),
    ([("kernel-core", RUNNING)], [("kernel-core", NEWER), ("kernel-devel", NEWER + ".99")], None),
    ([("kernel-core", RUNNING)], [("kernel-core", NEWER), ("kernel-devel", RUNNING)], ""),
    ([("kernel-core", RUNNING), ("kernel-devel", NEWER)], [], f"kernel-devel (0:{NEWER}.x86_64 in installed)"),
    ([], [("kernel-core", RUNNING), ("kernel-core", NEWER), ("kernel-devel", NEWER), ("kernel-devel", RUNNING)], ""),
])
def test_an_upgrade_needs_one_kernel_whole(host, there, offered, said):
    entries = [
        {key: value for key, value in entry.items() if key not in ("epoch", "version", "release")}
        for entry in kernel_entries()
    ]
    host.installed(*(line(*one) for one in there))
    host.world["repos"]["baseos"] = [line(*one) for one in offered]
    found = findings(host, entries)
    if said == "":
        assert found == []
    else:
        item = only(found)
        assert (said or "kernel-devel-4.18.0-553*.el8_10.x86_64 (on offer: 0:") in item["found"]
        assert ("mirror" if said else "lock-rpms") in item["next_step"]


def test_rare_package_moves_with_kernel_if_installed(host):
    optional = {**kernel_entries(NEWER)[0], "name": "kernel-modules-extra", "optional": True}
    host.installed(line("kernel-core", NEWER), line("kernel-devel", NEWER))
    assert findings(host, [*kernel_entries(NEWER), optional]) == []
    host.installed(*(line(f"kernel-{part}", NEWER) for part in ("core", "devel")), line(optional["name"], RUNNING))
    host.world["repos"]["baseos"] = []
    item = only(findings(host, [*kernel_entries(NEWER), optional]))
    assert f"kernel-modules-extra-0:{NEWER}.x86_64" in item["found"]
    host.world["repos"]["baseos"] = [line(optional["name"], NEWER)]
    assert findings(host, [*kernel_entries(NEWER), optional]) == []
    assert host.calls()[-1][-1] == f"kernel-modules-extra-0:{NEWER}.x86_64"


@pytest.mark.parametrize(("there", "version"), [("4|470.256.02|1.el8", "4:470.256.02-1.el8"),
                                                ("3|470.256.03|1.el8", "3:470.256.03-1.el8")])
def test_a_package_that_is_newer_than_the_lock_is_not_downgraded(host, there, version):
    host.installed(f"nvidia-driver|{there}|x86_64")
    item = only(findings(host))
    assert f"nvidia-driver-{version} (the lock names 3:470.256.02-1.el8)" in item["found"]
    assert "no run downgrades" in item["expected"]


def test_host_above_every_minimum_needs_nothing(host):
    entries = [{"name": name, "minimum": minimum, "arch": "x86_64", "repo": "baseos"} for name, minimum in (
        ("openssl-devel", "1:1.1.1k"), ("tar", "2:1.30"), ("gcc", "8.5.0-22.el8_10"),
    )]  # fmt: skip
    host.installed("openssl-devel|1|1.1.1k|14.el8_10|x86_64", "tar|2|1.30|11.el8_10|x86_64",
                   "gcc|0|8.5.0|28.el8_10|x86_64")
    # An older one is on offer, and nobody asks for it.
    host.world["repos"]["baseos"] = ["openssl-devel|1|1.1.1k|12.el8_9|x86_64"]
    assert findings(host, entries) == []
    assert len(host.calls()) == 1
    host.installed("openssl-devel|1|1.1.1g|15.el8_3|x86_64", "tar|2|1.30|4.el8|x86_64")
    host.world["repos"]["baseos"] = ["openssl-devel|1|1.1.1g|16.el8_3|x86_64", "tar|2|1.30|9.el8|x86_64"]
    item = only(findings(host, entries))
    assert "2 locked package(s)" in item["found"]
    assert "openssl-devel >= 1:1.1.1k (on offer: 1:1.1.1g-16.el8_3.x86_64 in baseos)" in item["found"]
    assert "gcc >= 8.5.0-22.el8_10 (on offer: nothing)" in item["found"]


def test_a_bundle_without_the_headers_of_the_kernel_is_made_anew(host):
    host.installed(line("kernel-core", RUNNING))
    packages = bundle_packages([f"kernel-{part}-{NEWER}.x86_64.rpm" for part in ("core", "devel")])
    item = only(findings(host, kernel_entries(), bundle=packages, query=False))
    assert f"bundle_kernels={RUNNING}.x86_64" in item["next_step"]
    assert f"Run playbooks/upgrade.yml, which takes {NEWER}.x86_64" in item["next_step"]


def test_an_offline_host_is_judged_by_its_bundle(host):
    host.world["repos"] = {}
    packages = bundle_packages(BUNDLE)
    assert findings(host, bundle=packages, query=False) == []
    assert host.calls() == []
    item = only(findings(host, bundle=packages[:1] + packages[2:], query=False))
    assert "dkms-0:3.0.13-1.el8.noarch (on offer: nothing)" in item["found"]
    assert "make bundle" in item["next_step"]
    assert "instance of the port" in item["next_step"]
    host.write("/etc/dnf/dnf.conf", "[main]\nexclude=dkms\n")
    assert "line 2: exclude=dkms" in only(findings(host, bundle=packages, query=False))["found"]


def test_messages_of_other_modules_become_findings():
    message = "repos_epel_gpgkey: found ABC in 'https://k.example.org'; expected the one key DEF. Nothing changed. Look"
    item = only(message_findings(["", message]))
    assert (item["variable"], item["found"]) == ("repos_epel_gpgkey", "ABC in 'https://k.example.org'")
    assert item["expected"] == "the one key DEF"
    assert only(message_findings(["something else"]))["found"] == "something else"
