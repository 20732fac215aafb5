"""What dnf's settings say, and what dnf prints; for where the texts come from see dnf/README.md."""

from pathlib import Path

import pytest
from ansible_collections.kepler.vllm.plugins.module_utils import dnf_settings

CAPTURED = Path(__file__).resolve().parent / "dnf"


def captured(name):
    return "".join(path.read_text() for path in (CAPTURED / f"{name}.out", CAPTURED / f"{name}.err") if path.exists())


def test_excludes_have_file_line_and_section():
    text = (
        "# exclude=nothing\n[main]\nexclude=kernel* dkms,gcc\nexcludepkgs =\n    nvidia-driver*\n    cuda-*\n"
        "[other]\nincludepkgs=tar\n"
    )
    found = dnf_settings.exclusions("/etc/dnf/dnf.conf", text)
    assert [(rule["pattern"], rule["line"], rule["section"]) for rule in found] == [
        ("kernel*", 3, "main"), ("dkms", 3, "main"), ("gcc", 3, "main"), ("nvidia-driver*", 5, "main"),
        ("cuda-*", 6, "main"), ("tar", 8, "other"),
    ]  # fmt: skip


def test_repositories_say_what_a_failure_means():
    text = "[a]\nname=a\n[b]\nenabled=0\nskip_if_unavailable = True\n"
    found = dnf_settings.repositories("/r", text)
    assert [(item["id"], item["line"], item["enabled"], item["skip"]) for item in found] == [
        ("a", 1, True, False), ("b", 3, False, True),
    ]  # fmt: skip
    assert dnf_settings.repositories("/r", "[a]\n", skips=True)[0]["skip"]


def test_settings_are_overlaid_and_sections_left_out():
    text = (
        "# mine\n[a]\nbaseurl=x\n  y\nrepo_gpgcheck=1\n[epel]\nmetalink=z\nexclude=dkms\n"
        "[b]\nrepo_gpgcheck =\n  1\nc=d\n"
    )
    assert dnf_settings.overlaid(text, ["epel"], {"repo_gpgcheck": "0"}) == (
        "# mine\n[a]\nrepo_gpgcheck=0\nbaseurl=x\n  y\n[b]\nrepo_gpgcheck=0\nc=d\n"
    )


def test_version_locks_of_the_roles_are_left_out():
    text = (
        "# Added lock on Mon\nglibc-0:2.28-251.el8.*\n# BEGIN vllm-kepler: nvidia_driver\ndkms-0:3.0.13-1.el8.*\n"
        "# END vllm-kepler: nvidia_driver\n!gcc-0:8.5.0-1.*   # why\n\n"
    )
    found = dnf_settings.version_locks("/l", text)
    assert [(lock["line"], lock["pattern"]) for lock in found] == [
        (2, "glibc-0:2.28-251.el8.*"), (6, "!gcc-0:8.5.0-1.*"),
    ]  # fmt: skip


def test_states_of_modules():
    record = "[{0}]\nname={0}\nprofiles=\nstate={1}\nstream={2}\n"
    texts = [record.format("nvidia-driver", "disabled", ""), record.format("nginx", "enabled", "1.24")]
    assert dnf_settings.module_states(texts) == {
        "nvidia-driver": {"state": "disabled", "stream": ""}, "nginx": {"state": "enabled", "stream": "1.24"},
    }


def test_packages_of_a_query():
    found = dnf_settings.packages((CAPTURED / "query.out").read_text() + "not|a package\n")
    assert [(item["name"], item["epoch"], item["version"], item["repo"]) for item in found] == [
        ("dkms", 0, "3.0.13", "epel"), ("kernel", 0, "4.18.0", "baseos"),
        ("nvidia-driver", 3, "470.256.02", "cuda-rhel8"), ("nvidia-driver", 3, "560.35.03", "cuda-rhel8"),
    ]  # fmt: skip


def test_repositories_that_failed_and_why():
    found = dnf_settings.failures(captured("query"))
    assert set(found) == {"half", "gone", "list"}
    assert "primary.xml.gz" in found["half"]
    assert "Couldn't connect to server for http://127.0.0.1:9/x/repodata/repomd.xml" in found["gone"]
    assert "Couldn't resolve host name" in found["list"]
    assert dnf_settings.failures("Ignoring repositories: a, b\n") == {"a": "dnf ignores it", "b": "dnf ignores it"}


def test_what_dnf_refuses():
    assert dnf_settings.refusals(captured("refused")) == {
        "kernel-0:4.18.0-553.el8_10.x86_64": "exclude filtering", "dkms-0:3.0.13-1.el8.noarch": "exclude filtering",
        "nosuch-0:1-1.noarch": "no match",
    }
    assert dnf_settings.refusals(captured("modular")) == {
        "nvidia-driver-3:470.256.02-1.el8.x86_64": "modular filtering"
    }
    assert dnf_settings.refusals(captured("downgrade")) == {}


def test_what_the_transaction_would_do():
    assert dnf_settings.transaction(captured("downgrade")) == {
        "Installing": ["xz"], "Downgrading": ["kernel-headers", "tar"],
    }
    assert dnf_settings.transaction(captured("problem")) == {}


def test_a_long_name_has_a_row_of_its_own():
    rows = " a-very-long-name\n        x86_64   1-1   baseos   1 k\n xz  x86_64 1 b 1 k\n"
    text = f"Dependencies resolved.\nInstalling:\n{rows}"
    assert dnf_settings.transaction(text) == {"Installing": ["a-very-long-name", "xz"]}


@pytest.mark.parametrize(("name", "text"), [
    ("problem", "package kernel-devel-4.18.0-553.el8_10.x86_64 is filtered out by exclude filtering"),
    ("none", "There are no enabled repositories"), ("downgrade", None),
])  # fmt: skip
def test_the_text_of_an_error(name, text):
    found = dnf_settings.error(captured(name))
    assert text in found if text else found == ""


def test_streams_that_nobody_has():
    assert dnf_settings.missing_streams(captured("no-stream")) == ["nvidia-driver:471-dkms"]
    assert dnf_settings.missing_streams("") == []
