"""source_archive: equal content gives equal bytes, whatever the checkout looks like."""

import hashlib
import io
import os
import tarfile

import module_run
import pytest
from ansible_collections.kepler.vllm.plugins.modules import source_archive


def checkout(root, order, mtime, mode=0o644):
    for name in order:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}\n")
        path.chmod(mode)
        os.utime(path, (mtime, mtime))
    return root


def packed(root, exclude=()):
    stream = io.BytesIO()
    source_archive.pack(str(root), "port", list(exclude), stream)
    return stream.getvalue()


NAMES = ["pyproject.toml", "pkg/__init__.py", "pkg/ops/norm.py"]


def test_two_checkouts_give_the_same_bytes(tmp_path):
    one = checkout(tmp_path / "one", NAMES, 1_000_000_000)
    two = checkout(tmp_path / "two", reversed(NAMES), 1_700_000_000, 0o600)
    assert packed(one) == packed(two)


def test_other_content_gives_other_bytes(tmp_path):
    one = checkout(tmp_path / "one", NAMES, 1)
    two = checkout(tmp_path / "two", NAMES, 1)
    (two / NAMES[1]).write_text("other\n")
    assert packed(one) != packed(two)


def test_patterns_exclude_names_and_paths(tmp_path):
    root = checkout(tmp_path / "one", [*NAMES, "upstream/a.py", "pkg/__pycache__/x.pyc", "pkg/upstream.py"], 1)
    with tarfile.open(fileobj=io.BytesIO(packed(root, ["upstream", "__pycache__"]))) as archive:
        assert archive.getnames() == [f"port/{name}" for name in sorted([*NAMES, "pkg/upstream.py"])]


def test_links_are_packed_as_files_and_directories_they_name(tmp_path):
    root = checkout(tmp_path / "one", NAMES, 1)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/read.py").write_text("shared\n")
    (root / "pkg/one.py").symlink_to("../../shared/read.py")
    (root / "pkg/shared").symlink_to("../../shared")
    with tarfile.open(fileobj=io.BytesIO(packed(root))) as archive:
        for name in ("port/pkg/one.py", "port/pkg/shared/read.py"):
            assert archive.getmember(name).isreg()
            assert archive.extractfile(name).read() == b"shared\n"


def test_program_stays_one_whoever_else_may_start_it(tmp_path):
    root = checkout(tmp_path / "one", NAMES, 1)
    (root / NAMES[0]).chmod(0o700)
    (root / NAMES[1]).chmod(0o655)
    with tarfile.open(fileobj=io.BytesIO(packed(root))) as archive:
        assert [archive.getmember(f"port/{name}").mode for name in NAMES] == [0o755, 0o644, 0o644]


@pytest.fixture
def archive(monkeypatch, capsys):
    """Function that runs the module."""
    return lambda **arguments: module_run.run(source_archive, monkeypatch, capsys, **arguments)


def test_archive_is_named_by_its_content_and_open_to_all(tmp_path, archive):
    root, dest = checkout(tmp_path / "one", NAMES, 1), tmp_path / "cache" / "archives"
    first, again = (archive(path=str(root), prefix="port", dest=str(dest)) for _ in range(2))
    assert (first["written"], again["written"]) == (True, False)
    (file,) = dest.iterdir()
    assert first["file"] == again["file"] == str(file) and first["sha256"] in file.name
    assert file.stat().st_mode & 0o777 == 0o644
    assert hashlib.sha256(file.read_bytes()).hexdigest() == first["sha256"]


def test_missing_tree_is_named_and_leaves_nothing(tmp_path, archive):
    answer = archive(path=str(tmp_path / "none"), prefix="port", dest=str(tmp_path / "cache"))
    assert "found no directory; expected the source tree of port" in answer["msg"]
    assert list(tmp_path.iterdir()) == []
