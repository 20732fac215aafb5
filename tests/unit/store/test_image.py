"""Images of small outputs: the same bytes everywhere, layers that are outputs, a bill that fits them."""

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from module_utils.store import address, build, image
from module_utils.store.errors import StoreError
from recipes import PLUGINS, needs_namespaces, recipe

pytestmark = needs_namespaces
CONFIG = {"Env": ["A=1"], "User": "10001:10001", "Entrypoint": ["/bin/sh"], "Labels": {"vllm-kepler.profile": "tiny"}}
LONG = "a/name/that/no/old/header/can/hold/" + "x" * 90
LARGE = """\
mkdir -p "$out/bin" "$out/%s"
head -c 9000000 /dev/zero | tr '\\0' 'a' > "$out/bin/large"
echo text > "$out/%s/file"
echo text > "$out/name with spaces"
chmod +x "$out/bin/large"
ln -s bin/large "$out/link"
""" % (LONG, LONG)
# Builds an image as another host would: its name, clock, paths, umask, zone and working directory are others.
ELSEWHERE = """
import json, os, sys, time
sys.path.insert(0, sys.argv[1])
os.umask(0o077)
time.time = lambda: 2e9
from module_utils.store import image
given = json.loads(sys.argv[2])
made = image.Image(given["directory"], given["compression"])
made.make()
base = image.read_base(made, given["base"], "base", given["digest"])
manifest, _layers, _changed = image.assemble(
    made, given["root"], given["outputs"], base, given["config"], {"/models": "0755"}, {"/opt/x": "/opt/y"}, "tiny:1")
print(manifest["digest"])
"""


@pytest.fixture
def outputs(root):
    """Store paths of a large output and of a small one that needs it."""
    lower = recipe(name="lower", builder=LARGE)
    build.realise(root, lower, [], [])
    upper = recipe(name="upper", inputs={"lower": address.output_path(root, lower)})
    build.realise(root, upper, [], [])
    return {made["name"]: address.output_path(root, made) for made in (lower, upper)}


@pytest.fixture
def base(tmp_path):
    """The tar of a root file system, and its digest."""
    path = tmp_path / "base.tar"
    with tarfile.open(str(path), "w") as archive:
        member = tarfile.TarInfo("etc/os-release")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"ID=x\n"))
    return {"path": str(path), "digest": image.sha256(path.read_bytes())}


@pytest.fixture
def write(root, outputs, base, tmp_path):
    """Function that writes an image: (its directory, descriptor, layers, whether it changed)."""

    def call(directory="image", compression="gzip", **changes):
        made = image.Image(str(tmp_path / directory), compression)
        made.make()
        below = image.read_base(made, base["path"], "base", base["digest"])
        given = {"outputs": [outputs["upper"]], "config": CONFIG, "directories": {"/models": "0755"},
                 "links": {"/opt/x": "/opt/y"}, "name": "tiny:1"}
        given.update(changes)
        return (made,) + image.assemble(
            made, root, given["outputs"], below, given["config"], given["directories"], given["links"], given["name"])

    return call


def content(made, digest):
    return json.loads(Path(made.blob(digest)).read_text())


def plain(made, layer):
    """The tar of a layer."""
    data = Path(made.blob(layer["digest"])).read_bytes()
    return gzip.decompress(data) if layer["mediaType"].endswith("gzip") else data


def members(made, layer):
    with tarfile.open(fileobj=io.BytesIO(plain(made, layer))) as archive:
        return archive.getmembers()


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_another_host_writes_the_same_digest(root, outputs, base, write, tmp_path, compression):
    _made, manifest, _layers, _changed = write(compression=compression)
    given = {"directory": str(tmp_path / "elsewhere" / "deep"), "compression": compression, "base": base["path"],
             "digest": base["digest"], "root": root, "outputs": [outputs["upper"]], "config": CONFIG}
    moved = tmp_path / "moved.tar"
    shutil.copy(base["path"], str(moved))
    given["base"] = str(moved)
    command = ["unshare", "--uts", "/bin/sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]
    printed = subprocess.check_output(
        command + [sys.executable, "-c", ELSEWHERE, str(PLUGINS), json.dumps(given)], cwd="/",
        env=dict(os.environ, TZ="Asia/Tokyo", HOME="/nonexistent", LC_ALL="C", PYTHONHASHSEED="3"),
    )
    assert printed.decode().strip() == manifest["digest"]


def test_each_output_is_one_layer_the_largest_first(outputs, write):
    made, manifest, layers, _changed = write()
    described = content(made, manifest["digest"])["layers"]
    titles = [layer.get("annotations", {}).get(image.OUTPUT) for layer in described]
    assert titles == [None, os.path.basename(outputs["lower"]), os.path.basename(outputs["upper"]), "places"]
    for path, layer in ((outputs["lower"], layers[1]), (outputs["upper"], layers[2])):
        found = [member.name for member in members(made, layer) if not member.isdir()]
        wanted = [entry["path"] for entry in address.manifest(path)["files"] if entry["type"] != "directory"]
        assert found == [path.strip("/") + "/" + name for name in wanted]


def test_layers_name_no_user_time_or_build_of_a_host(write):
    made, _manifest, layers, _changed = write()
    for member in (one for layer in layers[1:] for one in members(made, layer)):
        assert (member.uid, member.gid, member.uname, member.gname, member.mtime) == (0, 0, "", "", 0)
        assert not member.name.endswith(address.MANIFEST)
        assert member.issym() or not member.mode & 0o022


def test_config_has_the_layers_and_what_was_given(write, base):
    made, manifest, layers, _changed = write()
    config = content(made, content(made, manifest["digest"])["config"]["digest"])
    assert config["rootfs"]["diff_ids"] == [layer["diff_id"] for layer in layers]
    assert config["rootfs"]["diff_ids"] == [image.sha256(plain(made, layer)) for layer in layers]
    assert {key: config["config"][key] for key in ("Env", "User", "Entrypoint")} == {
        key: CONFIG[key] for key in ("Env", "User", "Entrypoint")}
    labels = config["config"]["Labels"]
    assert labels["org.opencontainers.image.base.digest"] == base["digest"]
    assert labels["vllm-kepler.profile"] == "tiny"
    assert len(config["history"]) == len(layers)


def test_blobs_have_their_digests_and_sizes(write):
    made, manifest, _layers, _changed = write()
    for name in os.listdir(made.blobs):
        assert hashlib.sha256(Path(made.blobs, name).read_bytes()).hexdigest() == name
    described = content(made, manifest["digest"])
    for one in described["layers"] + [described["config"], manifest]:
        assert os.path.getsize(made.blob(one["digest"])) == one["size"]


def test_bill_of_materials_matches_the_layers(outputs, write):
    made, manifest, layers, _changed = write()
    index = json.loads(Path(made.directory, "index.json").read_text())
    referrer = content(made, index["manifests"][1]["digest"])
    assert referrer["subject"]["digest"] == manifest["digest"] == index["manifests"][0]["digest"]
    bill = content(made, referrer["layers"][0]["digest"])
    config = content(made, content(made, manifest["digest"])["config"]["digest"])
    assert config["config"]["Labels"][image.SBOM_LABEL] == referrer["layers"][0]["digest"]
    named = {component["bom-ref"]: component["hashes"][0]["content"]
             for component in bill["components"] if component["bom-ref"] != "base"}
    found = {address.key_of_path(one["annotations"][image.OUTPUT]): hashlib.sha256(plain(made, one)).hexdigest()
             for one in content(made, manifest["digest"])["layers"]
             if one.get("annotations", {}).get(image.OUTPUT, "places") != "places"}
    assert named == found
    assert set(named) == {address.key_of_path(path) for path in outputs.values()}
    assert bill["components"][0]["properties"][0]["value"] == layers[0]["diff_id"]


def test_second_run_writes_nothing(write):
    made, manifest, _layers, changed = write()
    before = {name: os.stat(os.path.join(made.blobs, name)).st_mtime_ns for name in os.listdir(made.blobs)}
    assert changed
    _made, again, _layers, changed = write()
    assert (again, changed) == (manifest, False)
    assert {name: os.stat(os.path.join(made.blobs, name)).st_mtime_ns for name in os.listdir(made.blobs)} == before


def test_another_small_output_changes_its_own_layer(root, outputs, write):
    made, _manifest, layers, _changed = write()
    other = recipe(name="upper", version="2", inputs={"lower": outputs["lower"]})
    build.realise(root, other, [], [])
    _made, _manifest, after, _changed = write(outputs=[address.output_path(root, other)])
    assert [after[number] == layer for number, layer in enumerate(layers)] == [True, True, False, True]
    assert after[2]["size"] < 10000
    assert not os.path.exists(made.blob(layers[2]["digest"])), "of an image that is gone"
    assert len(os.listdir(made.remembered)) == 4


def test_changed_file_comes_into_no_image(root, outputs, write):
    path = os.path.join(outputs["lower"], "bin", "large")
    os.chmod(path, 0o755)
    with open(path, "r+b") as stream:
        stream.write(b"b")
    with pytest.raises(StoreError, match="bin/large: found the sha256 .* expected .* as its manifest says"):
        write()
    assert not [name for name in os.listdir(os.path.join(root, "..", "image", "blobs", "sha256")) if "new" in name]


def test_base_with_another_digest_is_refused(write, base):
    base["digest"] = "sha256:" + "0" * 64
    with pytest.raises(StoreError, match="base: .*base.tar: found the digest sha256:.*; expected sha256:0000"):
        write()


def test_base_that_is_no_archive_is_refused(write, base, tmp_path):
    (tmp_path / "text").write_text("no archive")
    base["path"] = str(tmp_path / "text")
    with pytest.raises(StoreError, match="base: .*/text: found .*; expected an OCI image"):
        write()


@pytest.mark.parametrize("form", ["directory", "archive"])
def test_an_oci_image_can_be_the_base(write, base, tmp_path, form):
    below, manifest, layers, _changed = write("below")
    path = Path(below.directory)
    if form == "archive":
        path = tmp_path / "below.tar"
        image.archive(below, str(path))
    base.update(path=str(path), digest=manifest["digest"])
    made, _manifest, found, _changed = write("above")
    assert found[:4] == layers
    assert all(os.path.exists(made.blob(layer["digest"])) for layer in layers)


def test_archive_has_what_old_and_new_engines_read(write, tmp_path):
    made, manifest, layers, _changed = write()
    path = tmp_path / "archives" / "image.tar"
    assert image.archive(made, str(path))
    assert not image.archive(made, str(path)), "it is there"
    with tarfile.open(str(path)) as archive:
        (old,) = json.loads(archive.extractfile("manifest.json").read().decode())
        assert old["RepoTags"] == ["tiny:1"]
        assert [image.sha256(gzip.decompress(archive.extractfile(name).read())) for name in old["Layers"]] == [
            layer["diff_id"] for layer in layers]
        index = json.loads(archive.extractfile("index.json").read().decode())
        assert index["manifests"][0]["digest"] == manifest["digest"]
        assert json.loads(archive.extractfile("oci-layout").read().decode()) == {"imageLayoutVersion": "1.0.0"}


def test_compressed_layer_is_one_that_every_gunzip_reads(write):
    made, _manifest, layers, _changed = write()
    for layer in layers:
        assert subprocess.check_output(["gzip", "-dc", made.blob(layer["digest"])]) == plain(made, layer)


def test_archive_names_the_room_that_it_needs(write, tmp_path, monkeypatch):
    made, _manifest, _layers, _changed = write()
    monkeypatch.setattr(image.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 1000))
    with pytest.raises(StoreError, match="archive: found 0.0 GB free in .*; expected 0.0"):
        image.archive(made, str(tmp_path / "image.tar"))


def test_pieces_depend_on_the_bytes_alone():
    data = bytes(range(256)) * 10
    for step in (1, 7, 256, 4096):
        assert list(image.pieces((data[at : at + step] for at in range(0, len(data), step)), 100)) == list(
            image.pieces([data], 100))
    assert time.strftime("%Y", time.strptime(image.CREATED, "%Y-%m-%dT%H:%M:%SZ")) == "1980"
