"""kepler-store as an operator calls it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from module_utils.store import address, build, generation
from recipes import PLUGINS, needs_namespaces, recipe

pytestmark = needs_namespaces


@pytest.fixture
def command(root, tmp_path):
    """Function that runs the installed command on the store: (exit status, output)."""
    installed = tmp_path / "libexec"
    shutil.copytree(str(PLUGINS / "module_utils" / "store"), str(installed / "module_utils" / "store"))
    for name in ("__init__.py", "errors.py"):
        shutil.copy(str(PLUGINS / "module_utils" / name), str(installed / "module_utils"))
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
    root = store[0].split("/store/")[0]
    build.realise(root, recipe(name="loose"), [], [])
    generation.ensure(root, {"outputs": {"hello": store[0]}, "kernel": "4.18", "driver": "470.2", "lock_hash": "l"})
    status, printed = command("gc", "--dry-run")
    assert status == 0
    assert "-loose-1.0" in printed
    assert "would free" in printed
    assert command("gc")[1] == printed.replace("would free", "freed")
    assert command("gc")[1] == "freed 0 B\n"


def test_gc_of_what_is_published(store, command, tmp_path):
    left = tmp_path / "published" / ".publishing-1"
    left.mkdir(parents=True)
    assert ".publishing-1" in command("gc", "--dry-run", "--published", tmp_path / "published")[1]
    assert left.exists()
    assert ".publishing-1" in command("gc", "--published", tmp_path / "published")[1]
    assert not left.exists()


def test_what_the_command_makes_can_be_read(store, command):
    root = store[0].split("/store/")[0]
    generation.ensure(root, {"outputs": {"hello": store[0]}, "kernel": "4.18", "driver": "470.2", "lock_hash": "l"})
    old = os.umask(0o077)
    try:
        assert "generation" in command("gc", "--keep", 1)[1]
    finally:
        os.umask(old)
    assert os.stat(os.path.join(root, "trash")).st_mode & 0o777 == 0o755


def test_a_damaged_manifest(store, command):
    """One of many: the others are listed, and it is named."""
    name = os.path.basename(store[1])
    os.chmod(store[1], 0o755)
    manifest = os.path.join(store[1], address.MANIFEST)
    os.chmod(manifest, 0o644)
    with open(manifest, "w") as stream:
        stream.write('{"key": ')
    status, printed = command("list")
    assert (status, "%s: damaged" % name in printed, printed.count("hello 1.0"), printed.count("more 1.0")) == (
        0, True, 1, 1)
    assert "  output %s: damaged" % name in command("why", "more")[1]
    assert store[1] in command("why", "hello")[1]
    for arguments in (["verify"], ["verify", "hello"], ["verify", name]):
        status, printed = command(*arguments)
        assert status == 1
        assert "  %s: %s: found no manifest that can be read" % (address.MANIFEST, store[1]) in printed
    for arguments in (["gc"], ["gc", "--dry-run"], ["sbom"], ["verify", "--rebuild", name]):
        status, printed = command(*arguments)
        assert status == 1
        assert printed.startswith("kepler-store: %s: found no manifest that can be read" % store[1])


def test_a_damaged_generation(store, command):
    root = store[0].split("/store/")[0]
    with open(os.path.join(root, "generations", "1", "generation.json"), "w") as stream:
        stream.write('{"outputs": ')
    status, printed = command("list")
    assert (status, "2*  20" in printed, "generation 1: found nothing that can be read" in printed) == (0, True, True)
    status, printed = command("gc")
    assert (status, printed.startswith("kepler-store: generation 1: found nothing that can be read")) == (1, True)


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
