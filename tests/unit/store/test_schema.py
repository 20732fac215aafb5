"""JSON of any content in place of what the store wrote: one line with the file's name, and nothing removed."""

import contextlib
import io
import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from module_utils.store import address, build, collect, generation, schema, verify
from module_utils.store.errors import StoreError
from recipes import PLUGINS, needs_namespaces, recipe

COMMAND = str(PLUGINS.parent / "roles" / "store" / "files" / "kepler-store.py")


@pytest.mark.parametrize(("value", "kind", "found"), [
    ({"a": 1}, {"a": int}, None), ({"a": 1, "b": 2}, {"a": int}, None), ({"a": "1"}, {"a": int}, 'a is "1"'),
    ({}, {"a": int}, "a is missing"), ([], {"a": int}, "it is []"), (None, {"a": int}, "it is null"),
    ({"a": [1, None]}, {"a": [int]}, "a.1 is null"), ({"a": {}}, {"a": [int]}, "a is {}"),
    ({"a": {"x": "y"}}, {"a": {str: str}}, None), ({"a": {"x": 1}}, {"a": {str: str}}, "a.x is 1"),
    ({"a": {"b": {}}}, {"a": {"b": {"c": int}}}, "a.b.c is missing"),
    ({"a": "x" * 99}, {"a": int}, 'a is "' + "x" * 59),
    ({"a": -1}, {"a": schema.is_natural}, "a is -1"), ({"a": True}, {"a": schema.is_natural}, "a is true"),
    ({"a": 1.0}, {"a": schema.is_natural}, "a is 1.0"), ({"a": None}, {"a": schema.is_natural_or_none}, None),
    ({"a": 1.5}, {"a": schema.is_number}, None), ({"a": float("nan")}, {"a": schema.is_number}, "a is NaN"),
    ({"a": float("inf")}, {"a": schema.is_number}, "a is Infinity"),
    ({"a": 1e300}, {"a": schema.is_number}, "a is 1e+300"),
    ({"a": False}, {"a": schema.is_number}, "a is false"),
])
def test_kinds(value, kind, found):
    said = schema.misfit(value, kind)
    assert (said is None) if found is None else said.startswith(found)


@pytest.mark.parametrize("content", [
    b"", b"{", b"\xff\xfe", b"[" * 100000, b'{"a": 1', b"null", b"1", b'"a"', b"[]", b'{"a": "1"}',
])
def test_file_of_another_content(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError):
        schema.read_json(str(tmp_path / "a.json"), {"a": int})


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path), lambda path: None])
def test_what_is_no_file(tmp_path, make):
    """Nobody waits for a pipe."""
    make(str(tmp_path / "a.json"))
    with pytest.raises((OSError, ValueError)):
        schema.read_json(str(tmp_path / "a.json"), {"a": int})


@pytest.fixture
def store(root, tmp_path):
    """Three generations; the last two hold an output that was made from another: (root, path of the upper one)."""
    low = recipe(name="low")
    build.realise(root, low, [], [])
    high = recipe(inputs={"low": address.output_path(root, low)})
    build.realise(root, high, [], [])
    for number, made in enumerate((low, high, high)):
        outputs = {"hello": address.output_path(root, made)}
        generation.ensure(root, {"outputs": outputs, "kernel": "k", "driver": "d", "lock_hash": str(number)})
    return root, address.output_path(root, high)


@pytest.fixture
def command(store, tmp_path, monkeypatch):
    """Function that calls kepler-store in this process: (what ended it, what it printed)."""
    installed = tmp_path / "libexec"
    installed.mkdir()
    shutil.copy(COMMAND, str(installed))
    main = runpy.run_path(str(installed / "kepler-store.py"), run_name="kepler_store")["main"]

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["kepler-store", "--root", store[0], *map(str, arguments)])
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                ended = main()
            except StoreError as error:
                ended = str(error)
        return ended, printed.getvalue()

    return run


COMMANDS = [
    ["list"], ["why", "hello"], ["verify"], ["verify", "--rebuild", "hello"], ["diff", 2, 3], ["diff", 1, 2], ["gc"],
    ["gc", "--dry-run", "--sources"], ["sbom"], ["sbom", 2],
]
GENERATIONS = {
    "outputs a list": {"outputs": []}, "an output's path null": {"outputs": {"hello": None}},
    "an output's path a list": {"outputs": {"hello": []}}, "outputs null": {"outputs": None},
    "time a text": {"time": "now"},
    "time out of this world": {"time": 1e300}, "time not a number": {"time": float("nan")}, "time null": {"time": None},
    "previous a text": {"previous": "1"}, "previous negative": {"previous": -1}, "previous true": {"previous": True},
    "kernel null": {"kernel": None}, "driver a number": {"driver": 470.1}, "lock_hash a list": {"lock_hash": []},
    "packages a text": {"packages": "dkms"}, "a package a number": {"packages": [3]},
}
MANIFESTS = {
    "references null": {"references": None}, "references a text": {"references": "abc"},
    "a reference null": {"references": [None]},
    "files null": {"files": None}, "an empty entry": {"files": [{}]}, "an entry null": {"files": [None]},
    "an entry's path a number": {"files": [{"path": 1, "type": "directory"}]},
    "an entry's size a text": {"files": [{"path": "a", "type": "file", "size": "1", "executable": True, "sha256": ""}]},
    "a link without a target": {"files": [{"path": "a", "type": "link"}]},
    "sources of numbers": {"sources": [1]}, "a short source": {"sources": [["a", "b"]]},
    "sources null": {"sources": None},
    "a source's sha256 a path": {"sources": [["a", "b", "../../etc/passwd"]]},
    "recipe null": {"recipe": None}, "recipe without a toolchain": {"recipe": {}}, "key null": {"key": None},
    "name a list": {"name": []}, "version a number": {"version": 1.0},
}


def change(path, fields):
    path.chmod(0o644)
    path.write_text(json.dumps(dict(json.loads(path.read_text()), **fields)))


def outputs_of(root):
    return sorted(os.listdir(os.path.join(root, "store"))), sorted(os.listdir(os.path.join(root, "generations")))


@pytest.mark.parametrize("case", GENERATIONS)
def test_generation_of_wrong_kinds(tmp_path, case):
    described = {"outputs": {}, "kernel": "k", "driver": "d", "lock_hash": "l", "previous": None, "time": 1.5,
                 "packages": []}
    path = tmp_path / "generations" / "3" / "generation.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(described))
    assert generation.read(str(tmp_path), 3) == described
    change(path, GENERATIONS[case])
    with pytest.raises(StoreError, match="generation 3: found nothing that can be read .* in %s" % path):
        generation.read(str(tmp_path), 3)


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifest_of_wrong_kinds(tmp_path, case):
    described = {"key": "k", "sources": [["a", "b", "0" * 64]], "references": [], "recipe": recipe(), "files": []}
    described.update(name="n", version="1")
    path = tmp_path / address.MANIFEST
    path.write_text(json.dumps(described))
    assert address.manifest(str(tmp_path)) == described
    change(path, MANIFESTS[case])
    with pytest.raises(StoreError, match="%s: found no manifest that can be read" % tmp_path):
        address.manifest(str(tmp_path))
    assert [one["path"] for one in verify.verify(str(tmp_path))] == [address.MANIFEST]


@needs_namespaces
def test_commands_name_a_generation_of_wrong_kinds(store, command):
    """The active one: whoever needs it names it, the others do their work; the next run makes another."""
    root, path = store
    described = Path(root, "generations", "3", "generation.json")
    change(described, GENERATIONS["outputs a list"])
    before = outputs_of(root)
    for arguments in COMMANDS:
        ended, printed = command(*arguments)
        said = "%s%s" % (ended, printed)
        if arguments[0] in ("list", "why", "gc") or arguments in (["diff", 2, 3], ["sbom"]):
            assert "generation 3: found nothing that can be read" in said, arguments
            assert str(described) in said
            assert "Traceback" not in said
    assert outputs_of(root) == before
    with pytest.raises(StoreError, match="generation 3: found nothing that can be read"):
        generation.switch(root, "previous", "k", "d")
    wanted = {"outputs": {"hello": path}, "kernel": "k", "driver": "d", "lock_hash": "l"}
    assert generation.ensure(root, wanted) == (4, True)


@needs_namespaces
def test_commands_name_a_manifest_of_wrong_kinds(store, command):
    root, path = store
    change(Path(path, address.MANIFEST), MANIFESTS["references null"])
    before = outputs_of(root)
    for arguments in COMMANDS:
        ended, printed = command(*arguments)
        if arguments[0] in ("gc", "sbom") or "--rebuild" in arguments:
            assert ended.startswith("%s: found no manifest that can be read" % path), arguments
        elif arguments == ["verify"]:
            assert "%s: found no manifest that can be read" % path in printed
            assert ended == 1
        elif arguments[0] == "list":
            assert "%s: damaged" % os.path.basename(path) in printed
    assert outputs_of(root) == before


@needs_namespaces
@pytest.mark.parametrize("make", [os.mkdir, lambda path: Path(path).touch()], ids=["directory", "file"])
def test_generations_are_numbered_by_plain_digits(store, command, make):
    """What others put beside them is none, and stays."""
    root, _path = store
    others = ["²", "٣", "007", "0", "1.0", "-1", " 1", "1\n", "1e3", "old"]
    for name in others:
        make(os.path.join(root, "generations", name))
    for arguments in (["list"], ["gc"], ["sbom"]):
        ended, _printed = command(*arguments)
        assert not ended, (arguments, ended)
    assert generation.numbers(root) == [1, 2, 3]
    assert set(others) < set(os.listdir(os.path.join(root, "generations")))


@pytest.mark.parametrize("name", ["²", "٣"])
def test_active_generation_is_no_other_digit(tmp_path, name):
    current = tmp_path / "current"
    current.symlink_to("generations/" + name)
    assert generation.number_of(str(current)) is None
    with pytest.raises(StoreError, match="found no link to a generation"):
        collect.plan(str(tmp_path))
