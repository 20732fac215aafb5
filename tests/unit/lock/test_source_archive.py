"""source_archive: equal content gives equal bytes, whatever the checkout looks like."""

import io
import os
import tarfile

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
