"""Locks of the store: root's alone, whoever else has an account."""

import os
import subprocess
from pathlib import Path

import pytest
from module_utils.store import address, build, disk, fetch, generation, substitute
from recipes import needs_namespaces, recipe

pytestmark = needs_namespaces

# Opens the file by the name that it is given and asks for the lock, as any user may ask.
LOCKER = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def test_others_cannot_hold_a_lock(root, tmp_path):
    """Locks of keys, of the generations, of removals, of downloads, of publishers; old ones that were open too."""
    for parent in [tmp_path, *tmp_path.parents][:-2]:
        os.chmod(str(parent), os.stat(str(parent)).st_mode | 0o011)
    build.realise(root, recipe(), [], [])
    outputs = {"hello": address.output_path(root, recipe())}
    wanted = {"outputs": outputs, "kernel": "k", "driver": "d", "lock_hash": "l"}
    generation.ensure(root, wanted)
    part = os.path.join(root, "sources", ".%s.part" % ("0" * 64))
    (tmp_path / "published").mkdir()
    found = [os.path.join(root, "locks", name) for name in os.listdir(os.path.join(root, "locks"))]
    assert len(found) == 3
    for one in found:
        os.chmod(one, 0o644)
    build.realise(root, recipe(), [], [])
    generation.ensure(root, wanted)
    with fetch.exclusive(part, lambda: None), substitute.shared(str(tmp_path / "published")):
        for one in [*found, part, str(tmp_path / "published.lock")]:
            assert os.stat(one).st_mode & 0o777 == 0o600, one
            tried = subprocess.Popen(
                ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/env", "python3", "-c",
                 LOCKER, one], stderr=subprocess.PIPE)
            said = tried.communicate()[1]
            assert b"PermissionError" in said or b"Permission denied" in said, said


def test_download_that_was_open_is_closed(root):
    """A part of an older version."""
    build.Paths(root, recipe()).make()
    part = Path(root, "sources", ".%s.part" % ("0" * 64))
    part.write_text("half")
    part.chmod(0o644)
    with fetch.exclusive(str(part), lambda: None):
        assert part.stat().st_mode & 0o777 == 0o600
        assert part.read_text() == "half"


@pytest.mark.parametrize("mode", [0o644, 0o666, 0o640, 0o604, 0o600])
def test_open_lock_is_closed_when_it_is_taken(tmp_path, mode):
    path = tmp_path / "lock"
    path.touch()
    path.chmod(mode)
    with disk.locked(str(path)) as held:
        assert held
        assert path.stat().st_mode & 0o777 == 0o600
        assert disk.is_locked(str(path))
    assert not disk.is_locked(str(path))


def test_lock_is_closed_whatever_the_umask(tmp_path):
    old = os.umask(0)
    try:
        with disk.locked(str(tmp_path / "lock")):
            assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(old)
