"""The offline bundle: made once for what it is made from, refused where it is anything else."""

import io
import json
import shutil
import tarfile

import pytest
from ansible_collections.kepler.vllm.plugins.plugin_utils import bundle

KEY = "A" * 40
WANTED = {
    "profile": "k80", "lock_hash": "a" * 64, "providers": {"pytorch_provider": "wheel", "python_provider": "source"},
}
METADATA = "---\ndocument: modulemd-defaults\nversion: 1\ndata: {module: demo}\n...\n"


def add(tar, name, content, **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def downloaded(tmp_path):
    """What rpm_download writes, with no package: real ones stand in the stand-in's repositories."""
    path = tmp_path / "rpms.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "modules/appstream-modules.yaml", METADATA.encode())
        add(tar, "keys.json", json.dumps({KEY: "the key"}).encode())
        add(tar, "identity.json", b'{"packages": []}')
    return path


@pytest.fixture
def parts(tmp_path, downloaded):
    """Arguments of `make` behind the path."""
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("")
    artifact = tmp_path / "some-1.0.whl"
    artifact.write_bytes(b"content" * 1000)
    return {
        "identity": bundle.identity_of(downloaded, WANTED, requirements), "downloaded": downloaded,
        "artifacts": [artifact], "requirements": requirements, "report": lambda text: None,
    }


@pytest.fixture
def made(tmp_path, parts, monkeypatch):
    """A whole bundle. pip has nothing to download for requirements that are empty, and says so with an error."""
    run = bundle.run
    monkeypatch.setattr(bundle, "run", lambda *command: None if command[0] == "python" else run(*command))
    path = tmp_path / "out" / "kepler-bundle.tar"
    bundle.make(path, **parts)
    return path


def rewrite(path, change):
    """Write the tar again; `change` gets (member, content) and returns what to write, or None to leave it out."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read() if member.isreg() else b"") for member in tar]
    with tarfile.open(path, "w") as tar:
        for member, content in filter(None, (change(*one) for one in members)):
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_it_holds_what_it_is_made_of(made, tmp_path):
    said = bundle.read_statement(made)
    bundle.check_wanted(said, made, WANTED)
    bundle.check_content(made, lambda text: None)
    names = set(said["files"])
    assert {"artifacts/some-1.0.whl", f"keys/{KEY}.asc", "rpms/repodata/repomd.xml"} <= names
    assert not {name for name in names if "identity" in name or "keys.json" in name}
    with tarfile.open(made) as tar:
        assert tar.getnames()[-1] == bundle.STATEMENT
        tar.extractall(tmp_path / "unpacked", filter="data")
    repository = tmp_path / "unpacked" / "kepler-bundle" / "rpms" / "repodata"
    assert 'type="modules"' in (repository / "repomd.xml").read_text()
    # What Enterprise Linux 8 reads.
    assert {path.suffix for path in repository.iterdir()} == {".xml", ".gz"}


def test_it_is_made_once(made, parts):
    assert bundle.is_made(made, parts["identity"])
    assert not bundle.is_made(made, {**parts["identity"], "rpms": "another solution"})
    assert not bundle.is_made(made.with_name("nothing"), parts["identity"])
    assert [path.name for path in made.parent.iterdir()] == [made.name]


def test_nothing_there(tmp_path):
    with pytest.raises(bundle.BundleError, match=r"found nothing at .*expected a bundle. Make it with `make bundle`"):
        bundle.read_statement(tmp_path / "none.tar")


@pytest.mark.parametrize("keep", [0, 100, 700, 0.5, -1024])
def test_a_copy_that_broke_off(made, keep):
    content = made.read_bytes()
    keep = int(len(content) * keep) if isinstance(keep, float) else keep
    # The two blocks that end a tar may be missing: all files are there.
    made.write_bytes(content[:keep if keep >= 0 else bundle_end(made) + keep])
    with pytest.raises(bundle.BundleError, match=r"which is no whole bundle"):
        bundle.read_statement(made)


def bundle_end(path):
    """Offset at which the statement's content ends."""
    with tarfile.open(path) as tar:
        member = tar.getmember(bundle.STATEMENT)
        return member.offset_data + member.size


def test_something_else(tmp_path):
    path = tmp_path / "other.tar"
    path.write_text("no tar")
    with pytest.raises(bundle.BundleError, match=r"which is no whole bundle"):
        bundle.read_statement(path)


def test_another_schema(made):
    def change(member, content):
        if member.name == bundle.STATEMENT:
            content = content.replace(b'"schema": 1', b'"schema": 2')
        return member, content

    rewrite(made, change)
    with pytest.raises(bundle.BundleError, match=r"of schema 2; expected 1"):
        bundle.read_statement(made)


def test_another_lock(made):
    with pytest.raises(bundle.BundleError, match=r"made from another lock .aaaaaaaaaaaa.; expected .*bbbbbbbbbbbb"):
        bundle.check_wanted(bundle.read_statement(made), made, {**WANTED, "lock_hash": "b" * 64})


@pytest.mark.parametrize(("profile", "other"), [("k80", "volta"), ("volta", "k80")])
def test_bundle_of_another_profile_is_named(made, profile, other):
    statement = {**bundle.read_statement(made), "profile": profile}
    with pytest.raises(bundle.BundleError, match=rf"of the profile {profile}; .* -e bundle_profile={other}`"):
        bundle.check_wanted(statement, made, {**WANTED, "profile": other, "lock_hash": "b" * 64})


def test_bundle_that_names_no_profile_is_taken_by_its_lock(made):
    statement = bundle.read_statement(made)
    del statement["profile"]
    bundle.check_wanted(statement, made, WANTED)
    with pytest.raises(bundle.BundleError, match="made from another lock"):
        bundle.check_wanted(statement, made, {**WANTED, "profile": "volta", "lock_hash": "b" * 64})


def test_another_provider(made):
    wanted = {**WANTED, "providers": {**WANTED["providers"], "pytorch_provider": "source"}}
    with pytest.raises(bundle.BundleError, match=r"made for pytorch_provider: wheel; expected source"):
        bundle.check_wanted(bundle.read_statement(made), made, wanted)


def test_a_file_that_was_changed(made):
    def change(member, content):
        return member, content.replace(b"content", b"c0ntent", 1) if "artifacts/" in member.name else content

    rewrite(made, change)
    with pytest.raises(bundle.BundleError, match=r"found artifacts/some-1.0.whl with the sha256 .* Nothing was"):
        bundle.check_content(made, lambda text: None)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_listed_file_must_be_a_plain_one(made, kind):
    """A link of a listed name would be unpacked, and written through."""

    def change(member, content):
        if "artifacts/" in member.name:
            member.type, member.linkname, content = kind, "/etc/shadow", b""
        return member, content

    rewrite(made, change)
    with pytest.raises(bundle.BundleError, match=r"found the entry that is no plain file .*some-1.0.whl; expected"):
        bundle.check_content(made, lambda text: None)


def test_a_file_that_is_missing(made):
    rewrite(made, lambda member, content: None if "artifacts/" in member.name else (member, content))
    with pytest.raises(bundle.BundleError, match=r"found no artifacts/some-1.0.whl"):
        bundle.check_content(made, lambda text: None)


@pytest.mark.parametrize("fields", [
    {"name": "kepler-bundle/artifacts/more.whl"},
    {"name": "../escaped"},
    {"name": "/etc/escaped"},
    {"name": "kepler-bundle/artifacts/some-1.0.whl", "type": tarfile.SYMTYPE, "linkname": "/etc/shadow"},
    {"name": "kepler-bundle/artifacts/device", "type": tarfile.CHRTYPE},
    {"name": "kepler-bundle/artifacts/some-1.0.whl"},
])
def test_an_entry_that_nobody_listed(made, fields):
    """Another name, a path that leads out, a link, a device, the same name twice."""
    fields = dict(fields)
    with tarfile.open(made, "a") as tar:
        add(tar, fields.pop("name"), b"", **fields)
    with pytest.raises(bundle.BundleError, match=r"expected the files that its bundle.json lists. Nothing"):
        bundle.check_content(made, lambda text: None)


def test_a_program_that_fails_is_quoted(parts, tmp_path):
    parts["requirements"].write_text("kepler-no-such-package==1 --hash=sha256:" + "0" * 64 + "\n")
    with pytest.raises(bundle.BundleError, match=r"python: ended with status 1: .*kepler-no-such-package"):
        bundle.make(tmp_path / "out" / "bundle.tar", **parts)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_without_room_leaves_nothing(parts, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "make_repository", full)
    with pytest.raises(OSError, match=r"No space"):
        bundle.make(tmp_path / "out" / "bundle.tar", **parts)
    assert list((tmp_path / "out").iterdir()) == []
    shutil.rmtree(tmp_path / "out")
