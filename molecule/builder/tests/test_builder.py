"""One host built; the others hold the very same bytes, and would rather fail than build."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
from conftest import PROJECT

STORE = "/opt/kepler/store"
HOSTS = ("k80-builder", "k80-first", "k80-second")
TAKING = HOSTS[1:]
# Type, mode, size, path and target of everything, then what the manifests say of every file's content.
PICTURE = (
    rf"cd {STORE} && {{ find . ! -type d -printf '%y %m %s %p %l\n' -o -printf '%y %m %p\n' | sort; "
    "cat */.kepler-manifest.json; } | sha256sum"
)
# Not the time of the inode's change: files may be hard links of another scenario's, which ends meanwhile.
TOUCHED = f"find {STORE} -printf '%i %m %s %T@ %p\n' | sort | sha256sum"


def test_every_host_holds_the_same_bytes(fleet):
    """The manifests say so, and what is there is what they say."""
    pictures = {name: fleet[name].check_output(PICTURE) for name in HOSTS}
    assert len(set(pictures.values())) == 1, pictures
    assert len(fleet["k80-first"].check_output(f"ls {STORE}").split()) >= 7
    for name in HOSTS:
        fleet[name].check_output("kepler-store verify")


def test_nothing_was_built_where_nothing_is_built(fleet):
    """The builder keeps the sources that it fetched; the others were handed none, not even the port."""
    assert fleet["k80-builder"].check_output("ls /opt/kepler/sources")
    for name in TAKING:
        assert fleet[name].check_output("ls -A /opt/kepler/sources") == ""


def test_hosts_have_a_generation_and_builder_has_none(fleet):
    for name in TAKING:
        assert fleet[name].file("/opt/kepler/current").is_symlink
    assert not fleet["k80-builder"].file("/opt/kepler/current").exists


def test_nothing_is_handed_out_after_the_run(fleet):
    host = fleet["k80-builder"]
    assert host.run("systemctl status kepler-share").rc == 4  # there is no such unit
    assert not host.file("/run/kepler-share.env").exists
    assert ":8199" not in host.check_output("ss -Hltn")


def test_a_limit_without_the_builder_is_told(fleet, build):
    status, printed = build("-l", "k80-first")
    assert status != 0
    assert "k80_builder: found k80-builder, which shared nothing in this run" in printed, printed[-3000:]
    assert "k80-hosts:k80_builder" in printed


@pytest.fixture
def hand_out(fleet, build):
    """Function that runs playbooks/build.yml from where the builder, which has built, hands out at an address."""
    [output] = fleet["k80-builder"].check_output(f"ls -d {STORE}/*-python310-*").split()

    def run(address: str) -> tuple[int, str]:
        said = {"store_outputs": {"python310": output}, "store_share_address": address}
        return build("--start-at-task", "Share the outputs", "-e", json.dumps(said))

    return run


def test_a_port_that_is_taken_is_told(hand_out):
    status, printed = hand_out("192.0.2.1")
    assert status != 0
    assert "store_share_address, store_share_port: found 192.0.2.1 and 8199" in printed, printed[-3000:]


def test_an_address_that_the_hosts_do_not_reach_is_told(hand_out):
    status, printed = hand_out("127.0.0.1")
    assert status != 0
    assert "k80-first cannot reach 127.0.0.1, port 8199" in printed, printed[-3000:]
    assert "--add-port=8199/tcp" in printed


@pytest.fixture(scope="module")
def uneven(fleet, build):
    """One run in which k80-first lacks an output, and k80-second needs another one than the builder makes.

    (exit status, what -vvv printed, whether the store of k80-second was left alone)
    """
    fleet["k80-first"].check_output(f"chmod -R u+w {STORE}/*-vllm_kepler-* && rm -rf {STORE}/*-vllm_kepler-*")
    before = fleet["k80-second"].check_output(TOUCHED)
    status, printed = build("-vvv", "-e", '{"vllm_kernels": "{{ inventory_hostname != \'k80-second\' }}"}')
    return status, printed, fleet["k80-second"].check_output(TOUCHED) == before


def test_another_recipe_is_refused_and_not_built(uneven):
    """The host would need another output than the builder made: hours of building that nobody asked for."""
    status, printed, untouched = uneven
    assert status != 0
    assert ": no substituter has the output" in printed, printed[-3000:]
    assert "store_builds: true" in printed
    assert untouched


def test_the_password_is_in_no_output(fleet, uneven):
    """Not even in what -vvv prints of the modules' arguments, nor in what a host says that finds nothing."""
    _, printed, _ = uneven
    assert re.search(r" k80-first : ok=\d+ changed=[1-9]\d* unreachable=0 failed=0 ", printed), printed[-3000:]
    assert "origin: substituted" in printed
    fleet["k80-first"].check_output(f"ls -d {STORE}/*-vllm_kepler-*")
    assert "http://" in printed
    assert "kepler:" not in printed.replace("vllm_kepler:", "")


def test_two_hosts_build_the_same_from_two_checkouts(fleet, build, tmp_path):
    """Other host name, other time, other checkout: equal keys, and equal bytes of our wheel and our CUDA library."""
    checkout = tmp_path / "elsewhere"
    shutil.copytree(
        PROJECT, checkout, symlinks=True, copy_function=shutil.copy,
        ignore=shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "shared-*"),
    )
    for path in (checkout / "vllm_src").rglob("*"):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)
    names = ("vllm_kepler", "vllm_kernels", "vllm_serving")
    ours = " ".join(f"{STORE}/*-{name}-*" for name in names)
    host = fleet["k80-second"]
    host.check_output(f"chmod -R u+w {ours} && rm -rf {ours} && touch /run/before")
    status, printed = build("-l", "k80-second", "-e", "store_builder=", project=checkout)
    assert status == 0, printed[-3000:]
    for name in names:
        manifests = [
            json.loads(fleet[one].check_output(f"cat {STORE}/*-{name}-*/.kepler-manifest.json"))
            for one in ("k80-builder", "k80-second")
        ]
        assert manifests[0]["key"] == manifests[1]["key"]
        assert manifests[0]["files"] == manifests[1]["files"]
        # It was built there.
        assert host.check_output(f"find /var/log/kepler -newer /run/before -name '*-{name}.log'")
