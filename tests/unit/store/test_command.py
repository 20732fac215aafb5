"""kepler-store as an operator calls it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from recipes import PLUGINS, needs_namespaces, recipe
from store import address, build, generation

pytestmark = needs_namespaces


@pytest.fixture
def command(root, tmp_path):
    """Function that runs the installed command on the store: (exit status, output)."""
    installed = tmp_path / "libexec"
    shutil.copytree(str(PLUGINS / "module_utils" / "store"), str(installed / "store"))
    shutil.copy(str(PLUGINS.parent / "roles" / "store" / "files" / "kepler-store.py"), str(installed))

    def run(*arguments):
        process = subprocess.Popen(
            [sys.executable, str(installed / "kepler-store.py"), "--root", root] + [str(a) for a in arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
        )
        printed = process.communicate()[0]
        assert "Traceback" not in printed
        return process.returncode, printed

    return run


@pytest.fixture
def store(root):
    """Two generations; the second has a newer output, another driver and one output more."""
    paths = []
    for made in (recipe(), recipe(version="2.0"), recipe(name="more")):
        build.realise(root, made, [], [])
        paths.append(address.output_path(root, made))
    for outputs, driver in (({"hello": paths[0]}, "470.1"), ({"hello": paths[1], "more": paths[2]}, "470.2")):
        generation.ensure(root, {"outputs": outputs, "kernel": "4.18", "driver": driver, "lock_hash": "l"})
    return paths


def test_list(store, command):
    status, printed = command("list")
    assert status == 0
    assert "1   20" in printed
    assert "2*  20" in printed
    assert "4.18, 470.2" in printed
    assert printed.count("hello") == 2


def test_diff(store, command):
    status, printed = command("diff", 1, 2)
    assert status == 0
    lines = printed.splitlines()
    assert lines[0] == "driver: 470.1 -> 470.2"
    assert lines[1].startswith("hello: hello 1.0 (")
    assert "-> hello 2.0 (" in lines[1]
    assert lines[2].startswith("more: none -> more 1.0 (")
    assert command("diff", 1, 7)[0] != 0


def test_why(store, command):
    status, printed = command("why", "more")
    assert status == 0
    assert printed.splitlines() == [store[2], "  generation 2"]


def test_verify(store, command):
    assert command("verify")[0] == 0
    status, printed = command("verify", "--rebuild", "more")
    assert status == 0
    assert "whole" in printed
    os.chmod(store[0] + "/bin/where", 0o755)
    status, printed = command("verify")
    assert status == 1
    assert "  bin/where: mode 0755, which can be written" in printed


def test_gc(store, command):
    generation.switch(store[0].split("/store/")[0], 2, "4.18", "470.2")
    build.realise(store[0].split("/store/")[0], recipe(name="loose"), [], [])
    status, printed = command("gc", "--dry-run")
    assert status == 0
    assert "-loose-1.0" in printed
    assert "would free" in printed
    assert command("gc")[1] == printed.replace("would free", "freed")
    assert command("gc")[1] == "freed 0 B\n"


def test_sbom(store, command):
    status, printed = command("sbom")
    assert status == 0
    assert json.loads(printed)["metadata"]["component"]["version"] == "2"
    assert json.loads(command("sbom", 1)[1])["metadata"]["component"]["version"] == "1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["why", "nothing"], "kepler-store: found no output nothing"),
        (["sbom", "9"], "kepler-store: generation: found 9, and generations 1, 2"),
        (["gc", "--keep", "0"], "kepler-store: keep: found 0; expected at least 1"),
        (["--root", "/nowhere", "list"], "kepler-store: --root: found no store in /nowhere"),
        (["undo"], "invalid choice: 'undo'"),
        ([], "required"),
    ],
)
def test_what_is_wrong(store, command, arguments, message):
    status, printed = command(*arguments)
    assert status != 0
    assert message in printed
