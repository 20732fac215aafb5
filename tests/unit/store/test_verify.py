"""Verification finds every kind of change; building again tells what is not built the same twice."""

import errno
import os
from pathlib import Path

import pytest
from module_utils.store import address, build, tree, verify
from module_utils.store.errors import StoreError
from recipes import needs_namespaces, recipe, source

pytestmark = needs_namespaces


@pytest.fixture
def output(root):
    build.realise(root, recipe(), [], [])
    return Path(address.output_path(root, recipe()))


def writable(path):
    os.chmod(str(path), 0o755 if path.is_dir() else 0o644)


def problems(output):
    return {problem["path"]: problem["problem"] for problem in verify.verify(str(output))}


def test_an_output_that_nobody_touched_is_whole(output):
    assert problems(output) == {}


def test_a_changed_file(output):
    where = output / "bin" / "where"
    text = where.read_text()
    where.chmod(0o755)
    where.write_text(text.upper())
    where.chmod(0o555)
    assert problems(output) == {"bin/where": "changed: sha256"}


def test_a_missing_and_an_extra_file(output):
    writable(output / "bin")
    (output / "bin" / "where").rename(output / "bin" / "there")
    (output / "bin").chmod(0o555)
    assert problems(output) == {"bin/where": "missing", "bin/there": "not in the manifest"}


def test_a_link_to_elsewhere(output):
    writable(output)
    (output / "link").unlink()
    (output / "link").symlink_to("/etc/passwd")
    output.chmod(0o555)
    assert problems(output) == {"link": "changed: target"}


def test_a_file_that_the_disk_does_not_give(output, monkeypatch):
    """It is a problem of that file; the others are looked at."""
    (output / "link").unlink()
    hash_of = tree.sha256_of

    def fails(path):
        if path.endswith("where"):
            raise OSError(errno.EIO, "Input/output error", path)
        return hash_of(path)

    monkeypatch.setattr(tree, "sha256_of", fails)
    assert problems(output) == {"bin/where": "cannot be read: Input/output error", "link": "missing"}


@pytest.mark.parametrize("content", ["", '{"key": "', "[]", '{"key": "x"}', None])
def test_a_damaged_manifest(root, output, content):
    """It is a problem of that output, which is found by its name all the same."""
    writable(output)
    manifest = output / address.MANIFEST
    manifest.unlink()
    if content is None:
        manifest.mkdir()
    else:
        manifest.write_text(content)
    assert "found no manifest that can be read" in problems(output)[address.MANIFEST]
    for name in ("hello", output.name, str(output)):
        assert verify.find(root, name) == [str(output)]
    with pytest.raises(StoreError, match="found no manifest that can be read"):
        verify.rebuild(root, str(output))


@pytest.mark.parametrize(("user", "group"), [(1, 0), (0, 1)])
def test_file_of_another_user_or_group_is_found(output, user, group):
    os.chown(str(output / "bin" / "where"), user, group)
    assert problems(output) == {"bin/where": "owner %d:%d instead of 0:0" % (user, group)}


def test_rights(output):
    (output / "bin" / "where").chmod(0o4555)
    os.chown(str(output / "bin"), 1, 1)
    assert problems(output) == {
        "bin/where": "mode 4555, which can be written or has a special bit", "bin": "owner 1:1 instead of 0:0",
    }
    (output / "bin" / "where").chmod(0o444)
    assert problems(output)["bin/where"] == "changed: executable"


def test_a_manifest_of_another_output(root, output):
    other = recipe(version="2")
    build.realise(root, other, [], [])
    writable(output)
    mine, another = output / address.MANIFEST, Path(address.output_path(root, other)) / address.MANIFEST
    mine.unlink()
    mine.write_text(another.read_text())
    assert "is of the key" in problems(output)[address.MANIFEST]


def test_building_again_gives_the_same(root, output, tmp_path):
    assert verify.rebuild(root, str(output)) == []
    assert os.listdir(os.path.join(root, "build")) == []
    assert problems(output) == {}


def test_building_again_finds_what_differs(root):
    made = recipe(builder='echo same > "$out/same"; cat /proc/sys/kernel/random/uuid > "$out/random"')
    build.realise(root, made, [], [])
    path = address.output_path(root, made)
    assert verify.rebuild(root, path) == [{"path": "random", "problem": "changed: sha256"}]
    assert verify.verify(path) == []


def test_building_again_needs_the_sources(root, tmp_path):
    (tmp_path / "a").write_text("a")
    made = recipe(sources=[source(tmp_path / "a")], builder='cp "$src/a" "$out/"')
    build.realise(root, made, [], [])
    path = address.output_path(root, made)
    assert verify.rebuild(root, path) == []
    held = Path(root, "sources", made["sources"][0]["sha256"])
    held.chmod(0o644)
    held.write_text("b")
    for _ in ("changed", "gone"):
        with pytest.raises(StoreError, match=r"its source a \(a\) is not in"):
            verify.rebuild(root, path)
        if held.exists():
            held.unlink()


def test_names(root, output):
    for name in (str(output), output.name, output.name.split("-")[0], "hello"):
        assert verify.find(root, name) == [str(output)]
    with pytest.raises(StoreError, match="found no output nothing in .*; expected a path, a key or one of: hello"):
        verify.find(root, "nothing")
