"""One host built; the others hold the very same bytes, and would rather fail than build."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from conftest import PROJECT

STORE = "/opt/kepler/store"
HOSTS = ("k80-builder", "k80-first", "k80-second")
TAKING = HOSTS[1:]
# Type, mode, path and target of everything, then the content of every file.
PICTURE = (
    rf"cd {STORE} && {{ find . -printf '%y %m %p %l\n' | sort; "
    "find . -type f -print0 | sort -z | xargs -0 sha256sum; } | sha256sum"
)


def test_every_host_holds_the_same_bytes(fleet):
    pictures = {name: fleet[name].check_output(PICTURE) for name in HOSTS}
    assert len(set(pictures.values())) == 1, pictures
    assert len(fleet["k80-first"].check_output(f"ls {STORE}").split()) >= 7


@pytest.mark.parametrize("name", TAKING)
def test_what_was_taken_holds(fleet, name):
    assert fleet[name].run("kepler-store verify").rc == 0


def test_nothing_was_built_where_nothing_is_built(fleet):
    """The builder keeps the sources that it fetched; the others were handed none, not even the port."""
    assert fleet["k80-builder"].check_output("ls /opt/kepler/sources")
    for name in TAKING:
        assert fleet[name].check_output("ls -A /opt/kepler/sources") == ""


def test_the_taking_hosts_have_a_generation_and_the_builder_has_none(fleet):
    for name in TAKING:
        assert fleet[name].file("/opt/kepler/current").is_symlink
    assert not fleet["k80-builder"].file("/opt/kepler/current").exists


def test_nothing_is_handed_out_after_the_run(fleet):
    host = fleet["k80-builder"]
    assert host.run("systemctl status kepler-share").rc == 4  # there is no such unit
    assert not host.file("/run/kepler-share.env").exists
    assert ":8199" not in host.check_output("ss -Hltn")


def test_another_recipe_is_refused_and_not_built(fleet, build):
    """The host would need another output than the builder made: hours of building that nobody asked for."""
    before = fleet["k80-first"].check_output(PICTURE)
    status, printed = build("-e", '{"vllm_kernels": "{{ inventory_hostname == store_builder }}"}')
    assert status != 0
    assert ": no substituter has the output" in printed, printed[-3000:]
    assert "store_builds: true" in printed
    assert fleet["k80-first"].check_output(PICTURE) == before


def test_a_limit_without_the_builder_is_told(fleet, build):
    status, printed = build("-l", "k80-first")
    assert status != 0
    assert "k80_builder: found k80-builder, which handed nothing out in this run" in printed, printed[-3000:]
    assert "k80-hosts:k80_builder" in printed


def test_a_port_that_is_taken_is_told(fleet, build):
    status, printed = build("-e", "store_share_address=192.0.2.1")
    assert status != 0
    assert "store_share_address, store_share_port: found 192.0.2.1 and 8199" in printed, printed[-3000:]


def test_an_address_that_the_hosts_do_not_reach_is_told(fleet, build):
    status, printed = build("-e", '{"store_share_address": "127.0.0.1"}')
    assert status != 0
    assert "k80-first cannot reach 127.0.0.1, port 8199" in printed, printed[-3000:]
    assert "--add-port=8199/tcp" in printed


def test_the_password_is_in_no_output(fleet, build):
    """Not even in what -vvv prints of the modules' arguments."""
    fleet["k80-first"].check_output(f"chmod -R u+w {STORE}/*-vllm_kepler-* && rm -rf {STORE}/*-vllm_kepler-*")
    status, printed = build("-vvv")
    assert status == 0, printed[-3000:]
    assert "origin: substituted" in printed
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
    ours = f"{STORE}/*-vllm_kepler-* {STORE}/*-vllm_kernels-*"
    host = fleet["k80-second"]
    host.check_output(f"chmod -R u+w {ours} && rm -rf {ours} && touch /run/before")
    status, printed = build("-l", "k80-second", "-e", "store_builder=", project=checkout)
    assert status == 0, printed[-3000:]
    for name in ("vllm_kepler", "vllm_kernels"):
        manifests = [
            json.loads(fleet[one].check_output(f"cat {STORE}/*-{name}-*/.kepler-manifest.json"))
            for one in ("k80-builder", "k80-second")
        ]
        assert manifests[0]["key"] == manifests[1]["key"]
        assert manifests[0]["files"] == manifests[1]["files"]
        # It was built there.
        assert host.check_output(f"find /var/log/kepler -newer /run/before -name '*-{name}.log'")
