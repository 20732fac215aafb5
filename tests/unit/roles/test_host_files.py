"""The module that lays several files down in one go."""

import os
import stat
from pathlib import Path

import module_run
import pytest
from recipes import small_disk

TASK = {"name": "Lay down"}


@pytest.fixture
def lay(play, tmp_path):
    """Run the module with `files` under a directory of its own; exit status and output."""

    def run(*options, directories=("place", "place/inner"), files=(), **keywords):
        given = {
            "directories": [str(tmp_path / "host" / path) for path in directories],
            "files": [{**item, "dest": str(tmp_path / "host" / item["dest"])} for item in files],
        }
        return play([{**TASK, "kepler.vllm.host_files": given, **keywords}], *options, gather_facts=False)

    (tmp_path / "files").mkdir()
    (tmp_path / "templates").mkdir()
    return run


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_all_is_there_and_a_second_run_changes_nothing(lay, tmp_path):
    text = "{\"as\": 'it stands'}\n\n{{ not a template }}\n"
    (tmp_path / "files" / "program.py").write_text(text)
    template = "# {{ ansible_managed }}\nName={{ item }}\n{% if true %}\nX\n{% endif %}\n"
    (tmp_path / "templates" / "unit.j2").write_text(template)
    asked = {
        "files": [
            {"dest": "place/program.py", "src": "program.py", "mode": "0755"},
            {"dest": "place/inner/a.unit", "template": "unit.j2"},
            {"dest": "place/said", "content": "[1, 2]\n"},
        ],
        "loop": ["one"],
    }
    status, output = lay(**asked)
    assert status == 0, output
    host = tmp_path / "host" / "place"
    assert (host / "program.py").read_text() == text
    assert (host / "inner" / "a.unit").read_text() == "# Ansible managed\nName=one\nX\n"
    assert (host / "said").read_text() == "[1, 2]\n"
    assert [mode(host / path) for path in ("", "program.py", "inner/a.unit", "said")] == [0o755, 0o755, 0o644, 0o644]
    assert "changed=1" in output
    before = (host / "said").stat().st_ino

    status, output = lay(**asked)
    assert (status, "changed=0" in output) == (0, True), output
    assert (host / "said").stat().st_ino == before


def test_what_differs_is_mended_and_named(lay, tmp_path):
    files = [{"dest": f"place/{name}", "content": f"{name}\n"} for name in "abc"]
    assert lay(files=files)[0] == 0
    host = tmp_path / "host" / "place"
    (host / "a").write_text("other\n")
    (host / "b").chmod(0o600)
    status, output = lay("-v", files=files)
    assert (status, "changed=1" in output) == (0, True), output
    assert ((host / "a").read_text(), mode(host / "b")) == ("a\n", 0o644)
    said = output.partition("paths:")[2].partition("PLAY RECAP")[0]
    assert [name for name in "abc" if str(host / name) in said] == ["a", "b"]
    assert sorted(path.name for path in host.iterdir()) == ["a", "b", "c", "inner"]


def test_a_dry_run_shows_the_difference_and_writes_nothing(lay, tmp_path):
    files = [{"dest": "place/a", "content": "new line\n"}]
    status, output = lay("--check", "--diff", files=files)
    assert (status, "changed=1" in output) == (0, True), output
    assert not (tmp_path / "host").exists()
    assert "+new line" in output

    assert lay(files=[{"dest": "place/a", "content": "old line\n"}])[0] == 0
    status, output = lay("--check", "--diff", files=files)
    assert status == 0
    assert "-old line" in output
    assert "+new line" in output
    assert (tmp_path / "host" / "place" / "a").read_text() == "old line\n"


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"dest": "place/a"}, ["one of the following is required", "src, template, content"]),
        ({"dest": "place/a", "src": "x", "content": "y"}, ["mutually exclusive"]),
        # 0644 without quotes is the number 420 to YAML.
        ({"dest": "place/a", "content": "y", "mode": 420}, ["mode must be one of: 0644, 0755", "420"]),
        ({"dest": "place/a", "src": "missing"}, ["place/a", "missing"]),
        ({"dest": "place/a", "template": "missing.j2"}, ["place/a", "missing.j2"]),
        ({"dest": "place/a", "template": "bad.j2"}, ["place/a", "nobody_set_this"]),
        ({"dest": "place/a", "src": "binary"}, ["place/a", "utf-8"]),
        ({"dest": "nowhere/a", "content": "y"}, ["nowhere/a: cannot be laid down", "Laid down before: "]),
        ({"dest": "place/inner", "content": "y"}, ["place/inner: cannot be laid down", "Laid down before: "]),
    ],
)
def test_what_cannot_be_laid_down_is_said(lay, tmp_path, item, words):
    (tmp_path / "templates" / "bad.j2").write_text("{{ nobody_set_this }}\n")
    (tmp_path / "files" / "binary").write_bytes(b"\xff\xfe\x00")
    status, output = lay(files=[item])
    assert status == 2, output
    said = " ".join(output.split())
    assert [word for word in words if word not in said] == []
    assert "Traceback" not in output
    assert "failed=1" in output


@pytest.fixture
def here(monkeypatch, capsys):
    """Run the module in process on one file with this text; its answer."""
    host_files, mask = module_run.load("host_files"), os.umask(0o022)

    def run(path, text):
        return module_run.run(host_files, monkeypatch, capsys, files=[{"dest": str(path), "content": text}])

    yield run
    os.umask(mask)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@needs_root
def test_file_of_a_user_becomes_that_of_root(here, tmp_path):
    path = tmp_path / "a.service"
    path.write_text("text")
    os.chown(path, 4711, 4712)
    assert here(path, "text")["paths"] == [str(path)]
    assert (path.stat().st_uid, path.stat().st_gid) == (0, 0)
    assert here(path, "text")["changed"] is False


@needs_root
def test_full_disk_leaves_the_old_file_whole(here, tmp_path):
    with small_disk(str(tmp_path), "size=64k"):
        path = Path(tmp_path, "a.service")
        assert here(path, "old")["changed"]
        answer = here(path, "n" * 100_000)
        assert answer["failed"] and "cannot be laid down" in answer["msg"]
        assert path.read_text() == "old"
        assert [one.name for one in tmp_path.iterdir()] == ["a.service"]
