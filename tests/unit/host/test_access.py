"""What keeps the servers' user from a model that root can read."""

import os
import pwd
import shutil
import struct
import tempfile

import pytest
from module_utils import access
from module_utils.access import unreadable

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NOBODY = "nobody"
STRANGER = "no-such-user-of-any-host"
both = pytest.mark.parametrize("user", [pytest.param(NOBODY, marks=needs_root), STRANGER])


@pytest.fixture
def home():
    """A directory that everybody can pass through; pytest's own belong to one user."""
    path = tempfile.mkdtemp(prefix="kepler-access-")
    os.chmod(path, 0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def model(home):
    """A model in HOME/ops/license, and a file in a directory of it; all open to everybody."""
    path = os.path.join(home, "ops", "license")
    os.makedirs(os.path.join(path, "part"))
    for name in ("config.json", "model.safetensors", os.path.join("part", "tokenizer.json"), ".cached"):
        with open(os.path.join(path, name), "w"):
            pass
        os.chmod(os.path.join(path, name), 0o644)
    for directory in (os.path.dirname(path), path, os.path.join(path, "part")):
        os.chmod(directory, 0o755)
    return path


@both
def test_open_model_is_readable(model, user):
    assert unreadable(model, user) is None
    assert unreadable(os.path.join(model, "config.json"), user) is None


@both
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("..", 0o700), ("..", 0o754), (".", 0o700), (".", 0o711), (".", 0o744), ("part", 0o750),
        ("model.safetensors", 0o600), ("part/tokenizer.json", 0o640), ("config.json", 0o000),
    ],
)
def test_what_is_closed_is_named_with_its_mode(model, user, name, mode):
    path = os.path.normpath(os.path.join(model, name))
    os.chmod(path, mode)
    found = unreadable(model, user)
    assert found["path"] == path
    assert found["found"] == "mode {:04o}, owner {}".format(mode, pwd.getpwuid(os.geteuid()).pw_name)


@both
def test_hidden_files_and_dangling_links_are_nobodys(model, user):
    os.chmod(os.path.join(model, ".cached"), 0o600)
    os.symlink("nowhere", os.path.join(model, "dangling"))
    os.mkdir(os.path.join(model, "lost+found"), 0o700)
    assert unreadable(model, user) is None


@both
def test_link_leads_through_its_target(home, model, user):
    os.makedirs(os.path.join(home, "srv", "blobs"))
    os.rename(os.path.join(model, "model.safetensors"), os.path.join(home, "srv", "blobs", "a"))
    os.symlink(os.path.join(home, "srv", "blobs", "a"), os.path.join(model, "model.safetensors"))
    os.symlink(model, os.path.join(home, "link"))
    link = os.path.join(home, "link")
    for path in (os.path.join(home, "srv"), os.path.join(home, "srv", "blobs")):
        os.chmod(path, 0o755)
    assert unreadable(link, user) is None
    os.chmod(os.path.join(home, "srv"), 0o700)
    assert unreadable(link, user)["path"] == os.path.join(home, "srv")
    os.chmod(os.path.dirname(model), 0o700)
    assert unreadable(link, user)["path"] == os.path.dirname(model)


@needs_root
def test_group_of_the_user_counts_and_a_strangers_does_not(model):
    group = pwd.getpwnam(NOBODY).pw_gid
    os.chown(os.path.dirname(model), 0, group)
    os.chmod(os.path.dirname(model), 0o750)
    assert unreadable(model, NOBODY) is None
    assert unreadable(model, STRANGER)["path"] == os.path.dirname(model)


@needs_root
def test_acl_of_the_user_counts(model):
    everybody, uid = 0xFFFFFFFF, pwd.getpwnam(NOBODY).pw_uid
    # Owner, the user, group, mask and others, as the kernel stores them.
    entries = [(0x01, 7, everybody), (0x02, 5, uid), (0x04, 0, everybody), (0x10, 5, everybody), (0x20, 0, everybody)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.chmod(os.path.dirname(model), 0o700)
    try:
        os.setxattr(os.path.dirname(model), "system.posix_acl_access", acl)
    except OSError:
        pytest.skip("a file system without ACLs")
    assert unreadable(model, NOBODY) is None
    assert unreadable(model, "daemon")["path"] == os.path.dirname(model)


@needs_root
def test_rights_of_root_are_back_afterwards(model):
    before = os.getresuid(), os.getresgid(), os.getgroups()
    os.chmod(model, 0o700)
    assert unreadable(model, NOBODY)
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before


@both
def test_missing_path_is_no_matter_of_the_user(home, user):
    assert unreadable(os.path.join(home, "none"), user) is None


@needs_root
def test_root_reads_all(model):
    os.chmod(model, 0o700)
    assert unreadable(model, "root") is None


def test_hidden_files_and_more_than_a_model_has_are_not_tried(model, monkeypatch):
    """Caches of a hub, of git and of editors, which nobody serves from."""
    os.mkdir(os.path.join(model, ".cache"))
    open(os.path.join(model, ".cache", "lock"), "w").close()
    open(os.path.join(model, ".hidden"), "w").close()
    found = access.all_below(model)
    assert found and not [path for path, _ in found if "/." in path[len(model):]]
    monkeypatch.setattr(access, "LIMIT", 1)
    assert access.all_below(model) == found[:1]
