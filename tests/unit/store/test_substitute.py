"""Substitutes: the very output of another host, or a refusal before anything is unpacked."""

import base64
import contextlib
import http.server
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from itertools import count
from pathlib import Path

import pytest
from faults import walk
from module_utils.store import address, build, fetch, substitute
from module_utils.store.errors import StoreError
from recipes import PLUGINS, committed, needs_namespaces, recipe, small_disk

pytestmark = [
    needs_namespaces,
    pytest.mark.skipif(not shutil.which("gpg") or not shutil.which("gpgv"), reason="needs gpg and gpgv"),
]

# What archives find hard: a name and a target of more than 100 bytes, a name that is not ASCII, an empty file.
BUILDER = """\
mkdir -p "$out/bin" "$out/%(long)s" "$out/empty"
echo run > "$out/bin/run"; chmod +x "$out/bin/run"
head -c 3000000 /dev/urandom > "$out/%(long)s/data"
printf '' > "$out/nothing"
echo x > "$out/Grüße"
ln -s bin/run "$out/short"
ln -s "%(long)s/data" "$out/far"
ln -s "$out/bin/run" "$out/absolute"
""" % {"long": "/".join(["deeply-nested-directory"] * 6)}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two keys: (GnuPG home, fingerprint, file with the public key) of each."""
    made = []
    for name in ("ours", "theirs"):
        # The agent's socket lies there, whose path may not be long.
        top = tempfile.mkdtemp(prefix="kepler-gpg-", dir="/tmp")
        fingerprint, new = substitute.make_key(top, "kepler %s" % name)
        assert new
        public = tmp_path_factory.mktemp("keys") / (name + ".asc")
        public.write_text(substitute.public_key(str(top), fingerprint))
        made.append((top, fingerprint, str(public)))
    yield made
    for home, _fingerprint, _public in made:
        subprocess.call(["gpgconf", "--homedir", home, "--kill", "all"])
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def made():
    return recipe(builder=BUILDER)


@pytest.fixture
def published(root, made, keys, tmp_path):
    """A directory with the output of `made`, which the store has no more; the files of the original lie in `kept`."""
    directory = tmp_path / "published"
    build.realise(root, made, [], [])
    path = address.output_path(root, made)
    assert substitute.publish(path, str(directory), keys[0][0], keys[0][1]) is True
    os.rename(path, str(tmp_path / "kept"))
    yield directory
    build.remove_tree(str(tmp_path / "kept"))


def files_of(directory, made, root):
    """Archive, manifest and signature of a published output."""
    stem = os.path.basename(address.output_path(root, made))
    return [directory / (stem + ending) for ending in (".tar", ".manifest.json", ".manifest.json.asc")]


def take(root, made, substituters, keys, **options):
    """Realise by substitution; where the output came from."""
    origins = []
    build.realise(
        root, made, [], [], substituters=[str(one) for one in substituters], trusted_keys=keys[0][2],
        origin=origins.append, **options
    )
    return (origins or ["present"])[0]


def picture(top):
    """Every path with all that one can see of it."""
    seen = {}
    for path in [".", *(os.path.relpath(str(one), str(top)) for one in Path(str(top)).rglob("*"))]:
        full = os.path.join(str(top), path)
        status = os.lstat(full)
        content = os.readlink(full) if os.path.islink(full) else None
        if os.path.isfile(full) and not os.path.islink(full):
            content = Path(full).read_bytes()
        seen[path] = (status.st_mode, status.st_uid, status.st_gid, int(status.st_mtime), content)
    return seen


def sign(directory, made, root, key, change):
    """Let `change` work on the signed statement, and sign it again."""
    _archive, manifest, signature = files_of(directory, made, root)
    said = json.loads(manifest.read_text())
    change(said)
    manifest.write_text(json.dumps(said, sort_keys=True))
    signature.unlink()
    substitute.run_gpg(key[0], ["--armor", "--output", str(signature), "--detach-sign", str(manifest)])


def assert_refused(root, made, directory, keys, *parts):
    """The substitute is refused with a message that has each of `parts`; nothing is left and nothing was built."""
    unpacked = []
    original = substitute.unpack
    substitute.unpack = lambda *arguments: unpacked.append(arguments)
    try:
        with pytest.raises(StoreError) as caught:
            take(root, made, [directory], keys)
    finally:
        substitute.unpack = original
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert unpacked == []
    assert os.listdir(os.path.join(root, "build")) == []
    assert os.listdir(os.path.join(root, "store")) == []
    assert os.listdir(os.path.join(root, "sources")) == []
    return str(caught.value)


@pytest.mark.parametrize("scheme", ["directory", "file", "http"])
def test_a_substitute_is_the_very_output(root, made, published, keys, server, tmp_path, scheme):
    base = {"directory": str(published), "file": "file://%s" % published}.get(scheme) or server(published).url
    assert take(root, made, [base], keys) == "substituted"
    assert picture(address.output_path(root, made)) == picture(tmp_path / "kept")
    assert os.listdir(os.path.join(root, "build")) == []
    assert os.listdir(os.path.join(root, "sources")) == []
    assert take(root, made, [base], keys) == "present"


def test_other_programs_can_read_the_archive(root, made, published, tmp_path):
    archive = files_of(published, made, root)[0]
    (tmp_path / "tar").mkdir()
    assert subprocess.call(["tar", "-xpf", str(archive), "-C", str(tmp_path / "tar")]) == 0
    kept = picture(tmp_path / "kept")
    del kept[address.MANIFEST]
    try:
        assert {path: (seen[0], seen[4]) for path, seen in picture(tmp_path / "tar").items() if path != "."} == {
            path: (seen[0], seen[4]) for path, seen in kept.items() if path != "."
        }
    finally:
        build.remove_tree(str(tmp_path / "tar"))


def test_publishing_again_does_nothing_and_gives_the_same_bytes(root, made, published, keys, tmp_path):
    path = address.output_path(root, made)
    os.rename(str(tmp_path / "kept"), path)
    try:
        before = {one: (one.read_bytes(), one.stat().st_mtime) for one in files_of(published, made, root)}
        assert substitute.publish(path, str(published), *keys[0][:2]) is False
        assert {one: (one.read_bytes(), one.stat().st_mtime) for one in files_of(published, made, root)} == before
        archive, manifest, _signature = files_of(published, made, root)
        archive.write_bytes(b"half")
        assert substitute.publish(path, str(published), *keys[0][:2]) is True
        assert (archive.read_bytes(), manifest.read_bytes()) == (before[archive][0], before[manifest][0])
        # By another key, it is not published, though this home knows the first one.
        substitute.run_gpg(keys[1][0], ["--import", keys[0][2]])
        assert substitute.publish(path, str(published), *keys[1][:2]) is True
        assert len(list(published.iterdir())) == 3
    finally:
        os.rename(path, str(tmp_path / "kept"))


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_dead_publisher_leaves_no_stale_signature(root, made, published, keys, tmp_path, monkeypatch, renames):
    """A signature says that all is there: it goes first and comes last."""
    path = address.output_path(root, made)
    os.rename(str(tmp_path / "kept"), path)
    sign(published, made, root, keys[0], lambda said: said.update(note="of an older version"))
    files = files_of(published, made, root)
    files[0].write_bytes(b"half")
    before, rename, done = [one.read_bytes() for one in files], os.rename, []

    def dies(old, new):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(new)
        rename(old, new)

    monkeypatch.setattr(os, "rename", dies)
    try:
        with pytest.raises(KeyboardInterrupt):
            substitute.publish(path, str(published), *keys[0][:2])
    finally:
        monkeypatch.undo()
        os.rename(path, str(tmp_path / "kept"))
    assert not files[2].exists() or [one.read_bytes() for one in files] == before


def test_a_damaged_output_is_not_published(root, keys, tmp_path):
    made = recipe()
    build.realise(root, made, [], [])
    path = Path(address.output_path(root, made))
    (path / "bin" / "where").chmod(0o644)
    (path / "bin" / "where").write_text("other")
    with pytest.raises(StoreError, match="bin/where: found the sha256 .* A damaged output is not published"):
        substitute.publish(str(path), str(tmp_path / "published"), *keys[0][:2])
    assert list((tmp_path / "published").iterdir()) == []


@pytest.mark.parametrize("missing", [".tar", ".manifest.json", ".manifest.json.asc"])
def test_what_is_not_whole_there_is_built(root, made, published, keys, missing, tmp_path):
    next(one for one in files_of(published, made, root) if one.name.endswith(missing)).unlink()
    assert take(root, made, [published], keys) == "built"


def test_the_next_substituter_is_asked(root, made, published, keys, tmp_path):
    assert take(root, made, [tmp_path / "nowhere", published], keys) == "substituted"


def test_manifest_of_second_substituter_is_fetched_from_start(root, made, published, keys, server, tmp_path):
    """The first lost its archive, and its statement is another one."""
    other = tmp_path / "other"
    shutil.copytree(str(published), str(other))
    sign(published, made, root, keys[0], lambda said: said.update(note="a longer one"))
    files_of(other, made, root)[0].unlink()
    first, second = server(other), server(published)
    assert take(root, made, [first.url, second.url], keys) == "substituted"
    assert [wanted for _path, wanted in first.requests + second.requests if wanted] == []


def test_a_trusted_key_that_breaks_off(root, made, published, keys, tmp_path):
    whole = Path(keys[0][2]).read_text()
    lines = whole.splitlines(True)
    broken = tmp_path / "broken.asc"
    for content in (whole[: len(whole) // 2], "".join(lines[:-4]) + "abcde\n" + lines[-1], whole + lines[0]):
        broken.write_text(content)
        with pytest.raises(StoreError, match="trusted_keys: .*broken.asc: found armored keys that break off"):
            build.realise(root, made, [], [], substituters=[str(published)], trusted_keys=str(broken))
    assert not committed(root, made)


@pytest.mark.parametrize("made_before", [False, True])
def test_key_home_is_closed_and_its_parents_are_not(tmp_path, monkeypatch, made_before):
    monkeypatch.setattr(substitute, "run_gpg", lambda home, arguments: b"")
    home = tmp_path / "etc" / "kepler" / "signing"
    if made_before:
        home.mkdir(parents=True)
        home.chmod(0o755)
    substitute.make_key(str(home), "kepler")
    modes = [one.stat().st_mode & 0o777 for one in (home, home.parent, home.parent.parent)]
    assert modes == [0o700, 0o755, 0o755]


def test_substituters_without_a_key_are_refused(root, made, published):
    with pytest.raises(StoreError, match="trusted_keys: found nothing beside substituters"):
        build.realise(root, made, [], [], substituters=[str(published)])
    with pytest.raises(StoreError, match="trusted_keys: /nowhere.*expected a readable keyring"):
        build.realise(root, made, [], [], substituters=[str(published)], trusted_keys="/nowhere")
    assert not committed(root, made)


def test_a_signature_by_another_key(root, made, published, keys):
    sign(published, made, root, keys[1], lambda said: None)
    assert_refused(root, made, published, keys, ".manifest.json", "which is not trusted", keys[0][2], "gpgv printed")


def test_a_manifest_that_was_changed(root, made, published, keys):
    manifest = files_of(published, made, root)[1]
    manifest.write_text(manifest.read_text().replace("bin/run", "bin/rux"))
    assert_refused(root, made, published, keys, "found content that the signature does not fit", "expected")


def test_good_signature_does_not_cover_a_bad_one_beside_it(root, made, published, keys, tmp_path):
    """gpgv says VALIDSIG of the one and ends with a failure for the other."""
    _archive, manifest, signature = files_of(published, made, root)
    (tmp_path / "other").write_text("other content")
    both = b""
    for number, signed in enumerate((manifest, tmp_path / "other")):
        single = tmp_path / ("%d.sig" % number)
        substitute.run_gpg(keys[0][0], ["--output", str(single), "--detach-sign", str(signed)])
        both += single.read_bytes()
    signature.write_bytes(both)
    status = subprocess.Popen(
        ["gpg", "--homedir", keys[0][0], "--batch", "--status-fd", "1", "--verify", str(signature), str(manifest)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ).communicate()[0]
    assert b"VALIDSIG" in status and b"BADSIG" in status
    assert_refused(root, made, published, keys, "found content that the signature does not fit")


def test_a_signature_that_is_none(root, made, published, keys):
    files_of(published, made, root)[2].write_text("signed\n")
    assert_refused(root, made, published, keys, "found no valid signature")


@pytest.mark.parametrize("field", ["key", "name", "version", "references"])
def test_a_manifest_of_another_output(root, made, published, keys, field):
    sign(published, made, root, keys[0], lambda said: said["manifest"].update({field: ["other"]}))
    assert_refused(root, made, published, keys, "found the %s ['other']; expected" % field, "Nothing was unpacked")


def test_an_output_of_another_root(root, made, published, keys):
    sign(published, made, root, keys[0], lambda said: said.update(path="/elsewhere"))
    assert_refused(root, made, published, keys, "an output of /elsewhere", "store_root")


@pytest.mark.parametrize("change", [
    lambda said: said.pop("archive"), lambda said: said["archive"].update(sha256="../x"),
], ids=["no archive", "a path for a hash"])
def test_a_manifest_that_is_none(root, made, published, keys, change):
    sign(published, made, root, keys[0], change)
    assert_refused(root, made, published, keys, "a manifest that cannot be read", "schema 1")


ESCAPES = {
    "above": ({"path": "../x", "type": "directory"}, "../x: found a name that leads out"),
    "absolute": ({"path": "/etc/x", "type": "directory"}, "/etc/x: found a name that leads out"),
    "within": ({"path": "bin/../../x", "type": "directory"}, "found a name that leads out"),
    "two slashes": ({"path": "bin//x", "type": "directory"}, "bin//x: found a name that leads out"),
    "a slash at the end": ({"path": "x/", "type": "directory"}, "x/: found a name that leads out"),
    "a dot": ({"path": "bin/./x", "type": "directory"}, "bin/./x: found a name that leads out"),
    "twice": ({"path": "bin", "type": "directory"}, "bin: found a name that is taken"),
    "manifest": ({"path": address.MANIFEST, "type": "directory"}, "found a name that is taken"),
    "through a link": ({"path": "short/x", "type": "directory"}, "found no directory above it"),
    "absolute link": ({"path": "x", "type": "link", "target": "/etc/shadow"}, "found a link to /etc/shadow"),
    "link beside the store": (
        {"path": "x", "type": "link", "target": "/opt/kepler/store/../x"}, "found a link to"),
    "link above": ({"path": "bin/x", "type": "link", "target": "../../x"}, "found a link to ../../x"),
    "device": ({"path": "x", "type": "device"}, "found the type device"),
}


@pytest.mark.parametrize("case", ESCAPES)
def test_a_signed_manifest_that_escapes(root, made, published, keys, case):
    """Even a trusted key cannot write beside the output."""
    entry, message = ESCAPES[case]
    sign(published, made, root, keys[0], lambda said: said["manifest"]["files"].append(entry))
    assert_refused(root, made, published, keys, message, "Nothing was unpacked")


def test_a_link_that_the_recipe_itself_names(root, keys, tmp_path):
    """An interpreter of the host, which the key knows of."""
    made = recipe(environment={"INTERPRETER": "/usr/bin/env"}, builder='ln -s /usr/bin/env "$out/python"\n')
    above = recipe(name="above", inputs={"below": address.output_path(root, made)}, builder=made["builder"])
    for one in (made, above):
        build.realise(root, one, [], [])
        substitute.publish(address.output_path(root, one), str(tmp_path / "published"), *keys[0][:2])
        build.remove_tree(address.output_path(root, one))
        assert take(root, one, [tmp_path / "published"], keys) == "substituted"


def member(name, kind, **fields):
    made = tarfile.TarInfo(name)
    made.type, made.mode = kind, 0o444
    for field, value in fields.items():
        setattr(made, field, value)
    return made


# Each replaces the first member, the directory `bin`, or stands after the last.
MEMBERS = {
    "above": (member("../x", tarfile.REGTYPE), "found file ../x"),
    "absolute": (member("/etc/x", tarfile.REGTYPE), "found file /etc/x"),
    "absolute link": (member("bin", tarfile.SYMTYPE, linkname="/etc"), "found link bin, mode 0444, 0 bytes, to /etc"),
    "hard link": (member("bin", tarfile.LNKTYPE, linkname="/etc/shadow"), "found hard link bin"),
    "character device": (member("bin", tarfile.CHRTYPE, devmajor=1, devminor=3), "found device bin"),
    "block device": (member("bin", tarfile.BLKTYPE, devmajor=8), "found device bin"),
    "fifo": (member("bin", tarfile.FIFOTYPE), "found fifo bin"),
    "setuid": (member("bin", tarfile.DIRTYPE, mode=0o4555), "found directory bin, mode 4555"),
    "owner": (member("bin", tarfile.DIRTYPE, mode=0o555, uid=1000), "found directory bin, mode 0555"),
    "no header": (None, "found no header"),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_a_member_that_the_manifest_does_not_list(root, made, published, keys, case):
    """The size is right and so is the signed sha256: a publisher that was fooled."""
    wrong, message = MEMBERS[case]
    archive = files_of(published, made, root)[0]
    content = bytearray(archive.read_bytes())
    content[:512] = wrong.tobuf(tarfile.USTAR_FORMAT) if wrong else b"\1" * 512
    archive.write_bytes(bytes(content))
    digest = fetch.sha256_of(str(archive))
    sign(published, made, root, keys[0], lambda said: said["archive"].update(sha256=digest))
    assert_refused(root, made, published, keys, ".tar: ", message, "expected ", "as the signed manifest says")


def test_a_file_too_many(root, made, published, keys):
    archive = files_of(published, made, root)[0]
    with tarfile.open(str(archive), "a") as stream:
        stream.addfile(member("extra", tarfile.REGTYPE, size=3), io.BytesIO(b"abc"))
    size, digest = archive.stat().st_size, fetch.sha256_of(str(archive))
    expected = substitute.layout(json.loads(files_of(published, made, root)[1].read_text())["manifest"]["files"])[1]
    sign(published, made, root, keys[0], lambda said: said["archive"].update(sha256=digest, size=size))
    assert_refused(root, made, published, keys, ".tar: found %d bytes; expected %d" % (size, expected))


@pytest.mark.parametrize("which", ["missing", "extra"])
def test_a_manifest_and_an_archive_that_differ(root, made, published, keys, which):
    def change(said):
        files = said["manifest"]["files"]
        if which == "missing":
            files.append({"path": "zz", "type": "file", "size": 0, "executable": False, "sha256": "0" * 64})
        else:
            files.pop()
        said["archive"]["size"] = substitute.layout(files)[1]

    sign(published, made, root, keys[0], change)
    assert_refused(root, made, published, keys, ".tar: found ", "bytes; expected ", "Nothing was unpacked")


def test_an_archive_whose_content_was_changed(root, made, published, keys):
    archive = files_of(published, made, root)[0]
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(bytes(content))
    files = json.loads(files_of(published, made, root)[1].read_text())["manifest"]["files"]
    data = next(entry for entry in files if entry["path"].endswith("data"))
    assert_refused(
        root, made, published, keys, ".tar: %s: found the sha256 " % data["path"], "expected " + data["sha256"],
        "Nothing was unpacked",
    )


def test_a_file_that_changes_after_the_archive_was_looked_at(root, made, published, keys, monkeypatch):
    """The directory is another's: what is written is hashed once more."""
    archive = files_of(published, made, root)[0]
    check = substitute.check_archive

    def looks_then_changes(*arguments):
        check(*arguments)
        content = bytearray(archive.read_bytes())
        content[len(content) // 2] ^= 1
        archive.write_bytes(bytes(content))

    monkeypatch.setattr(substitute, "check_archive", looks_then_changes)
    with pytest.raises(StoreError, match="data: found the sha256 .* Nothing was committed"):
        take(root, made, [published], keys)
    assert os.listdir(os.path.join(root, "build")) == os.listdir(os.path.join(root, "store")) == []


@pytest.mark.parametrize("plant", [os.symlink, os.link], ids=["link", "hard link"])
def test_unpacking_never_writes_through_what_is_there(root, made, published, keys, tmp_path, monkeypatch, plant):
    """Somebody was faster: a file stands where one is to be written."""
    victim = tmp_path / "victim"
    victim.write_text("not to be touched")
    for_each, out = substitute.for_each, os.path.join(root, "build", address.key(made), "out")

    def planted(members, archive, act):
        if os.path.isdir(os.path.join(out, "bin")):
            plant(str(victim), os.path.join(out, "bin", "run"))
        for_each(members, archive, act)

    monkeypatch.setattr(substitute, "for_each", planted)
    with pytest.raises(StoreError, match="could not be read or unpacked: .*File exists"):
        take(root, made, [published], keys)
    assert victim.read_text() == "not to be touched"
    assert victim.stat().st_mode & 0o222
    assert not committed(root, made)


def test_a_disk_that_cannot_be_read(root, made, published, keys, monkeypatch):
    def broken(archive, offset, size, buffer):
        raise OSError(5, "Input/output error", archive.name)

    monkeypatch.setattr(substitute, "content_of", broken)
    with pytest.raises(StoreError, match=r"hello-1.0.tar: could not be read or unpacked: .Errno 5. Input/output error"):
        take(root, made, [published], keys)
    assert not committed(root, made)


def test_a_manifest_without_end(root, made, published, keys, monkeypatch):
    monkeypatch.setattr(substitute, "LIMIT", 1000)
    with pytest.raises(StoreError, match=r"manifest.json: found more than 0 MB; expected less"):
        take(root, made, [published], keys)
    assert not committed(root, made)


@pytest.mark.parametrize("scheme", ["directory", "http"])
def test_a_truncated_archive(root, made, published, keys, server, scheme):
    archive = files_of(published, made, root)[0]
    archive.write_bytes(archive.read_bytes()[:-700])
    base = str(published) if scheme == "directory" else server(published).url
    size = archive.stat().st_size
    assert_refused(root, made, base, keys, ".tar: found %d bytes; expected %d" % (size, size + 700))


def test_a_download_goes_on_where_a_dead_run_stopped(root, made, published, keys, server):
    archive, manifest, _signature = files_of(published, made, root)
    wanted = json.loads(manifest.read_text())["archive"]["sha256"]
    Path(root, "sources", ".%s.part" % wanted).write_bytes(archive.read_bytes()[:1000])
    served = server(published)
    assert take(root, made, [served.url], keys) == "substituted"
    assert ("/" + archive.name, "bytes=1000-") in served.requests


def test_a_server_that_is_not_there_is_passed_over(root, made, published, keys, monkeypatch):
    monkeypatch.setattr(fetch, "TRIES", 1)
    assert take(root, made, ["http://127.0.0.1:1", published], keys) == "substituted"


def test_a_host_that_does_not_build_says_what_it_misses(root, made, published, keys, tmp_path):
    other = dict(made, version="2.0")
    with pytest.raises(StoreError) as caught:
        take(root, other, [published], keys, build=False)
    said = str(caught.value)
    stem = os.path.basename(address.output_path(root, other))
    assert "hello 2.0: no substituter has the output %s (" % stem in said
    assert "%s.manifest.json" % stem in said
    assert "store_builds: true" in said
    assert not committed(root, other)
    assert take(root, made, [published], keys, build=False) == "substituted"


def test_an_address_with_a_password(root, made, published, keys):
    """It goes into a header and nowhere else."""
    seen = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, self.headers.get("Host"), self.headers.get("Authorization")))
            content = (published / self.path.strip("/")).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            """Say nothing."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        place = "127.0.0.1:%d" % server.server_port
        assert take(root, made, ["http://us%%40er:ge:heim@%s/" % place], keys) == "substituted"
    finally:
        server.shutdown()
        server.server_close()
    credentials = base64.b64encode(b"us@er:ge:heim").decode("ascii")
    assert {(host, header) for _path, host, header in seen} == {(place, "Basic " + credentials)}
    assert len(seen) == 3


def test_a_password_is_not_shown():
    assert fetch.shown(substitute.base_of("http://user:geheim@host/") + "x.tar") == "http://host/x.tar"


def test_a_full_disk_is_said_and_given_back(root, made, published, keys):
    shutil.rmtree(root)
    os.makedirs(root)
    with small_disk(root, "size=2m"):
        with pytest.raises(StoreError, match="disk of .* is full"):
            take(root, made, [published], keys)
        assert os.listdir(os.path.join(root, "build")) == os.listdir(os.path.join(root, "store")) == []


WORKER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from module_utils.store import build
build.LOGS = sys.argv[2]
build.realise(
    sys.argv[3], json.loads(sys.argv[4]), [], [], substituters=[sys.argv[5]], trusted_keys=sys.argv[6], origin=print
)
"""


def test_concurrent_requests_make_one_substitution(root, made, published, keys, tmp_path):
    command = [sys.executable, "-c", WORKER, str(PLUGINS), str(tmp_path / "log"), root]
    command += [json.dumps(made), str(published), keys[0][2]]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(8)]
    printed = [process.communicate() for process in workers]
    assert [process.returncode for process in workers] == [0] * 8, printed
    assert sorted(out.decode().strip() for out, _said in printed) == [""] * 7 + ["substituted"]


def test_a_kill_at_every_step(root, keys, tmp_path, monkeypatch):
    """Whatever a substitution was at when it died: nothing half-committed, and the next run succeeds."""
    made = recipe(builder='mkdir "$out/d"; echo a > "$out/d/a"; ln -s d/a "$out/l"\n')
    build.realise(root, made, [], [])
    path = address.output_path(root, made)
    directory = str(tmp_path / "published")
    substitute.publish(path, directory, *keys[0][:2])
    expected = picture(path)
    numbers = count()

    def prepare():
        build.remove_tree(root)
        return next(numbers)

    def check(_state):
        assert not os.path.exists(path) or not os.listdir(path) or picture(path) == expected
        assert take(root, made, [directory], keys) in ("substituted", "present")
        assert picture(path) == expected
        assert os.listdir(os.path.join(root, "build")) == []

    assert walk(prepare, lambda _state: take(root, made, [directory], keys), check) > 20


def test_a_kill_in_the_middle_of_unpacking(root, made, published, keys, tmp_path):
    """By time instead of by step: wherever it happens to be."""
    command = [sys.executable, "-c", WORKER, str(PLUGINS), str(tmp_path / "log"), root]
    command += [json.dumps(made), str(published), keys[0][2]]
    for part in range(6):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        timer = threading.Timer(0.05 * (part + 1), process.send_signal, [signal.SIGKILL])
        timer.start()
        process.communicate()
        timer.cancel()
    assert take(root, made, [published], keys) in ("substituted", "present")
    assert picture(address.output_path(root, made)) == picture(tmp_path / "kept")
    assert os.listdir(os.path.join(root, "build")) == []


THEN = ("--faked-system-time", "20010115T000000!")
SHORT = ("--default-sig-expire", "seconds=1")


def revoke(home, fingerprint):
    """By the certificate that gpg made beside the key, once its guard is taken off."""
    certificate = Path(home, "openpgp-revocs.d", fingerprint + ".rev")
    certificate.write_text(certificate.read_text().replace(":-----BEGIN", "-----BEGIN"))
    substitute.run_gpg(home, ["--import", str(certificate)])


def wait(_home, _fingerprint):
    time.sleep(2)


def nothing(_home, _fingerprint):
    """The key stays as it is."""


FORGED = "a signature over a digest that can be forged"
# Options of gpg when a key is made, until when it is good, options when it signs, what comes then, what is found.
SIGNERS = {
    "key expired": (THEN, "2001-02-01", THEN, nothing, "a signature by a key that has expired"),
    "key revoked": ((), "never", (), revoke, "a signature by a key that was revoked"),
    "signature expired": ((), "never", SHORT, wait, "a signature that has expired"),
    "SHA-1": ((), "never", ("--digest-algo", "SHA1"), nothing, FORGED),
    "RIPEMD-160": ((), "never", ("--digest-algo", "RIPEMD160"), nothing, FORGED),
}


@pytest.fixture
def home():
    """An empty GnuPG home. The agent's socket lies there, whose path may not be long."""
    top = tempfile.mkdtemp(prefix="kepler-gpg-", dir="/tmp")
    yield top
    subprocess.call(["gpgconf", "--homedir", top, "--kill", "all"])
    shutil.rmtree(top, ignore_errors=True)


@pytest.mark.parametrize("case", SIGNERS)
def test_signature_that_is_worth_nothing(root, made, published, home, tmp_path, case):
    """gpgv says VALIDSIG of each and ends with 0: what else it says of the signature and its key counts."""
    makes, until, signs, then, found = SIGNERS[case]
    substitute.run_gpg(home, [*makes, "--quick-generate-key", "kepler", "rsa2048", "sign", until])
    fingerprint = substitute.secret_key(home)
    _archive, manifest, signature = files_of(published, made, root)
    signature.unlink()
    substitute.run_gpg(home, [*signs, "--output", str(signature), "--detach-sign", str(manifest)])
    then(home, fingerprint)
    public = tmp_path / "public.asc"
    public.write_text(substitute.public_key(home, fingerprint))
    assert_refused(root, made, published, [(home, fingerprint, str(public))], "found " + found)
    # Nor does its own publisher take it for published.
    path = address.output_path(root, made)
    os.rename(str(tmp_path / "kept"), path)
    assert not substitute.is_published(path, str(published), home, fingerprint)
    os.rename(path, str(tmp_path / "kept"))


GOOD = (
    "[GNUPG:] NEWSIG\n[GNUPG:] KEY_CONSIDERED AAAA 0\n[GNUPG:] SIG_ID x 2026-01-01 1\n[GNUPG:] GOODSIG BBBB name\n"
    "[GNUPG:] VALIDSIG AAAA 2026-01-01 1 0 4 0 1 %d 00 AAAA\n"
)


@pytest.mark.parametrize(("status", "found"), [
    (GOOD % 8, None), (GOOD % 10 + "[GNUPG:] KEYEXPIRED 1\n", None),
    (GOOD % 1, "can be forged"), (GOOD % 2, "can be forged"), (GOOD % 3, "can be forged"),
    (GOOD % 8 + "[GNUPG:] KEYREVOKED\n", "revoked"), (GOOD % 8 + "[GNUPG:] EXPKEYSIG BBBB name\n", "expired"),
    (GOOD % 8 + "[GNUPG:] ERRSIG BBBB 1 8 00 1 9\n", "cannot be checked"),
    ((GOOD % 8).replace("GOODSIG", "EXPSIG"), "has expired"), ((GOOD % 8).replace("GOODSIG", "REVKEYSIG"), "revoked"),
    ((GOOD % 8).replace("GOODSIG", "TRUSTED"), "no valid"), ("[GNUPG:] GOODSIG BBBB name\n", "no valid"),
    ("[GNUPG:] GOODSIG B name\n[GNUPG:] VALIDSIG AAAA\n", "no valid"), ("", "no valid"), ("[GNUPG:] \n", "no valid"),
    ((GOOD % 8).replace("[GNUPG:] ", ""), "no valid"),
])
def test_what_gpgv_says(status, found):
    said = substitute.worthless(status)
    assert (said is None) if found is None else (found in said)


def entries(*links):
    """Manifest entries of directories p, p/q and bin, and links."""
    found = [{"path": path, "type": "directory"} for path in ("bin", "p", "p/q")]
    return found + [{"path": path, "type": "link", "target": target} for path, target in links]


STORE = "/opt/kepler/store"
CHAINS_OUT = {
    "the chain of the report": [("p/q/up", "../.."), ("x", "p/q/up/../../etc")],
    "declared after": [("a", "z/../../etc"), ("p/q/up", "../.."), ("z", "p/q/up")],
    "through two": [("one", "p"), ("p/two", "q"), ("x", "one/two/../../../etc")],
    "by a link to the top": [("top", "."), ("p/q/x", "../../top/../etc")],
    "by a link to itself above": [("p/up", ".."), ("p/q/x", "../up/up/../..")],
    "behind an absolute one": [("a", STORE + "/other/bin"), ("x", "a/../../../etc")],
    "behind what the host names": [("a", "/usr/bin"), ("x", "a/other")],
    "absolute with dots": [("x", STORE + "/other/link/../../x")],
    "absolute, lexically within": [("x", STORE + "/a/../b")],
}
CHAINS_WITHIN = {
    "up and down": [("p/q/up", "../.."), ("x", "p/q/up/bin")],
    "to the top": [("p/q/up", "../.."), ("p/top", "..")],
    "through a link that is shorter": [("short", "p/q"), ("x", "short/../../bin")],
    "a circle": [("a", "b"), ("b", "a"), ("c", "c")],
    "dangling": [("x", "p/none/of/these")],
    "absolute": [("x", STORE + "/other/bin/python")],
    "behind an absolute one": [("a", STORE + "/other"), ("x", "a/bin/python")],
    "what the host names": [("a", "/usr/bin/env"), ("x", "a")],
    "slashes and dots": [("x", "./p//q/./../")],
}


@pytest.mark.parametrize("case", CHAINS_OUT)
def test_chain_of_links_that_leaves_an_output(case):
    with pytest.raises(StoreError, match=r"found a link to .*; expected a target in the output or in the store"):
        substitute.check_entries({"files": entries(*CHAINS_OUT[case])}, "w", STORE, lambda: {"/usr/bin"})


@pytest.mark.parametrize("case", CHAINS_WITHIN)
def test_chain_of_links_within_an_output(case):
    substitute.check_entries({"files": entries(*CHAINS_WITHIN[case])}, "w", STORE, lambda: {"/usr/bin/env"})
    # A publisher looks at the relative ones alone.
    substitute.check_entries({"files": entries(*CHAINS_WITHIN[case])}, "w")


@pytest.mark.parametrize("seed", range(4))
def test_links_lead_where_the_kernel_says(tmp_path, seed):
    """Random links: what is taken never leads out."""
    chance, taken = random.Random(seed), 0
    for number in range(30):
        top = tmp_path / str(number) / "top"
        (top / "p" / "q").mkdir(parents=True)
        (top / "bin").mkdir()
        parts = ["..", "..", "p", "q", "bin", "l0", "l1", "l2", "."]
        links = []
        for name in range(3):
            place = chance.choice(["", "p/", "p/q/"])
            links.append((place + "l%d" % name, "/".join(chance.choice(parts) for _ in range(chance.randint(1, 5)))))
        for path, target in links:
            os.symlink(target, str(top / path))
        try:
            substitute.check_entries({"files": entries(*links)}, "w", STORE)
        except StoreError:
            continue
        taken += 1
        for path, _target in links:
            with contextlib.suppress(OSError):
                os.stat(str(top / path))
                assert (os.path.realpath(str(top / path)) + "/").startswith(str(top) + "/"), links
    assert taken


class Endless(http.server.BaseHTTPRequestHandler):
    """Serves a directory, and instead of an archive more than was asked for."""

    def do_GET(self):
        path = self.server.directory / self.path.strip("/")
        self.send_response(200)
        if path.suffix != ".tar":
            content = path.read_bytes()
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return
        if self.server.length:
            self.send_header("Content-Length", str(self.server.length))
        self.end_headers()
        with contextlib.suppress(OSError):
            while self.server.sent < 64 << 20:
                self.wfile.write(b"x" * (1 << 20))
                self.server.sent += 1 << 20

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.mark.parametrize("length", [None, 64 << 20])
def test_archive_without_end(root, made, published, keys, length):
    """Plain http vouches for nothing; the size was signed."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Endless)
    server.directory, server.length, server.sent = published, length, 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(StoreError, match=r"\.tar: found more than 3 MB; expected less. Do not trust that origin"):
            take(root, made, ["http://127.0.0.1:%d" % server.server_port], keys)
    finally:
        server.shutdown()
        server.server_close()
    # What it sent went into the buffers between the two.
    assert server.sent < 32 << 20
    assert os.listdir(os.path.join(root, "sources")) == os.listdir(os.path.join(root, "build")) == []


def test_part_that_is_longer_than_what_was_signed(root, made, published, keys, server):
    """An older version, or another substituter, left it: it is begun anew."""
    archive, manifest, _signature = files_of(published, made, root)
    wanted = json.loads(manifest.read_text())["archive"]["sha256"]
    Path(root, "sources", ".%s.part" % wanted).write_bytes(b"x" * (archive.stat().st_size + 1))
    served = server(published)
    assert take(root, made, [served.url], keys) == "substituted"
    assert ("/" + archive.name, None) in served.requests


@pytest.mark.parametrize("limit", [0, 999, 1000, 1001])
def test_download_never_writes_more_than_its_limit(tmp_path, limit):
    (tmp_path / "whole").write_bytes(b"x" * 1000)
    part = tmp_path / "part"
    progress = fetch.Progress(1, lambda text: None)
    if limit < 1000:
        with pytest.raises(StoreError, match="found more than 0 MB"):
            fetch.download("file://%s/whole" % tmp_path, str(part), progress, limit)
        assert part.stat().st_size <= limit
    else:
        fetch.download("file://%s/whole" % tmp_path, str(part), progress, limit)
        assert part.stat().st_size == 1000


@pytest.mark.parametrize("place", ["beginning", "content", "end"])
def test_damaged_archive_is_published_again(root, made, published, keys, tmp_path, place):
    """Though its size is the same."""
    path = address.output_path(root, made)
    os.rename(str(tmp_path / "kept"), path)
    archive = files_of(published, made, root)[0]
    whole = archive.read_bytes()
    damaged = bytearray(whole)
    damaged[{"beginning": 0, "content": len(whole) // 2, "end": -1}[place]] ^= 1
    archive.write_bytes(bytes(damaged))
    try:
        assert substitute.publish(path, str(published), *keys[0][:2]) is True
        assert archive.read_bytes() == whole
        assert substitute.publish(path, str(published), *keys[0][:2]) is False
    finally:
        os.rename(path, str(tmp_path / "kept"))
    assert take(root, made, [published], keys) == "substituted"


@pytest.mark.parametrize("content", [
    '{"path": 1, "manifest": {}, "archive": {}}', "{", "[" * 200000,
], ids=["kinds", "half", "deep"])
def test_damaged_statement_is_published_again(root, made, published, keys, tmp_path, content):
    path = address.output_path(root, made)
    os.rename(str(tmp_path / "kept"), path)
    files_of(published, made, root)[1].write_text(content)
    try:
        assert substitute.publish(path, str(published), *keys[0][:2]) is True
    finally:
        os.rename(path, str(tmp_path / "kept"))
    assert take(root, made, [published], keys) == "substituted"


# The kinds of their fields have tests of their own.
WRONG_KINDS = {
    "archive a list": lambda said: said.update(archive=[]),
    "size negative": lambda said: said["archive"].update(size=-1),
    "sha256 with a newline": lambda said: said["archive"].update(sha256="a" * 64 + "\n"),
    "manifest a list": lambda said: said.update(manifest=[]),
    "no files": lambda said: said["manifest"].pop("files"),
    "a negative size": lambda said: said["manifest"]["files"].append(
        {"path": "x", "type": "file", "size": -1, "executable": False, "sha256": "0" * 64}),
}


@pytest.mark.parametrize("case", WRONG_KINDS)
def test_signed_manifest_of_wrong_kinds(root, made, published, keys, case):
    sign(published, made, root, keys[0], WRONG_KINDS[case])
    assert_refused(root, made, published, keys, ".manifest.json: found a manifest that cannot be read", "schema 1")
