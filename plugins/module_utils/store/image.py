"""An OCI image of outputs: one layer an output, the same bytes on every machine, from what is in the store.

The directory of an image is an OCI image layout (blobs, index.json). `layers/` in it remembers which blob belongs to
which output, so that a later image writes only what is new.
"""

import collections
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import tarfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

from . import address, disk, sbom, tree
from .disk import full_disk, remove_tree
from .errors import StoreError
from .references import References
from .substitute import CHUNK, END, header, padding

OCI = "application/vnd.oci.image."
MANIFEST, CONFIG = OCI + "manifest.v1+json", OCI + "config.v1+json"
INDEXES = (OCI + "index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
LAYERS = {"none": OCI + "layer.v1.tar", "gzip": OCI + "layer.v1.tar+gzip"}
CYCLONEDX = "application/vnd.cyclonedx+json"
EMPTY, EMPTY_TYPE = b"{}", "application/vnd.oci.empty.v1+json"
PLATFORM = {"architecture": "amd64", "os": "linux"}
CREATED = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(tree.SOURCE_DATE_EPOCH))
# Bytes that one member of a compressed layer holds: processors compress members side by side.
PIECE = 1 << 22
LEVEL = 1
OUTPUT = "vllm-kepler.output"
SBOM_LABEL = "vllm-kepler.sbom"


def canonical(content):
    """JSON of `content`, the same bytes everywhere."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def read_json(path):
    with open(path) as stream:
        return json.load(stream)


# Layers


def of_directory(name, mode=0o755):
    """Header of a directory in a layer."""
    return header({"path": name.strip("/"), "type": "directory"}, mode)


def parents(path):
    """The directories above an absolute path, from the top."""
    parts = path.strip("/").split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def tar_of_output(path):
    """Yield the bytes of the layer of an output, at its own path. Raises StoreError for a file that has changed."""
    described = address.manifest(path)
    for directory in parents(path):
        yield of_directory(directory)
    yield of_directory(path, 0o555)
    for entry in described["files"]:
        yield header(dict(entry, path=path.strip("/") + "/" + entry["path"]))
        if entry["type"] != "file":
            continue
        digest = hashlib.sha256()
        with open(os.path.join(path, entry["path"]), "rb") as source:
            for data in iter(lambda: source.read(CHUNK), b""):
                digest.update(data)
                yield data
        if digest.hexdigest() != entry["sha256"]:
            raise StoreError(
                "%s: %s: found the sha256 %s; expected %s, as its manifest says. A damaged output comes into no image: "
                "remove it and build it again." % (path, entry["path"], digest.hexdigest(), entry["sha256"])
            )
        yield padding(entry["size"])
    yield END


def tar_of_places(directories, links):
    """Yield the bytes of the image's own layer. directories: path to mode, in octal; links: path to target."""
    found = {}
    for path in itertools.chain(directories, links):
        for above in parents(path):
            found.setdefault(above, of_directory(above))
    for path, mode in directories.items():
        found[path.strip("/")] = of_directory(path, int(mode, 8))
    for path, target in links.items():
        found[path.strip("/")] = header({"path": path.strip("/"), "type": "link", "target": target})
    for name in sorted(found):
        yield found[name]
    yield END


def tar_of_file(path):
    with open(path, "rb") as stream:
        for data in iter(lambda: stream.read(CHUNK), b""):
            yield data


def pieces(chunks, size=PIECE):
    """The same bytes in pieces of `size`; boundaries depend on the bytes alone."""
    waiting, count = [], 0
    for chunk in chunks:
        while count + len(chunk) >= size:
            cut = size - count
            yield b"".join(waiting + [chunk[:cut]])
            chunk, waiting, count = chunk[cut:], [], 0
        waiting.append(chunk)
        count += len(chunk)
    if count:
        yield b"".join(waiting)


def member(piece):
    """A piece as one member of a gzip file, without a time or a name."""
    pressed = zlib.compressobj(LEVEL, zlib.DEFLATED, 31)
    return pressed.compress(piece) + pressed.flush()


def side_by_side(act, items):
    """Yield act(item) in the order of the items, computed by all processors."""
    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        waiting = collections.deque()
        for item in items:
            waiting.append(pool.submit(act, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Image:
    """The directory of an image."""

    def __init__(self, directory, compression="gzip"):
        self.directory, self.compression = directory, compression
        self.blobs = os.path.join(directory, "blobs", "sha256")
        self.remembered = os.path.join(directory, "layers")

    def make(self):
        for directory in (self.blobs, self.remembered):
            os.makedirs(directory, exist_ok=True)

    def blob(self, digest):
        return os.path.join(self.blobs, digest.partition(":")[2])

    def put(self, data):
        """Store bytes. Returns their digest."""
        digest = sha256(data)
        if not os.path.exists(self.blob(digest)):
            self.write(self.blob(digest), [data])
        return digest

    def put_json(self, content, kind):
        """Store JSON. Returns its descriptor."""
        data = canonical(content)
        return {"mediaType": kind, "digest": self.put(data), "size": len(data)}

    def write(self, path, chunks):
        """Write a file whole or not at all. Returns the digest of its content and its size."""
        digest, size = hashlib.sha256(), 0
        temporary = "%s.new-%d" % (path, os.getpid())
        try:
            with open(temporary, "wb") as stream:
                for data in chunks:
                    digest.update(data)
                    size += len(data)
                    stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.rename(temporary, path)
        except OSError as error:
            raise full_disk("image", self.directory, error)
        finally:
            remove_tree(temporary)
        return "sha256:" + digest.hexdigest(), size

    def note(self, name):
        """Path of the file that remembers a layer."""
        return os.path.join(self.remembered, "%s.%s.json" % (name, self.compression))

    def remember(self, name):
        """Return the layer that was written of `name` if its blob is there; else None."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            layer = read_json(self.note(name))
            if os.path.getsize(self.blob(layer["digest"])) == layer["size"]:
                return layer
        return None

    def layer(self, name, chunks):
        """Write a layer if it is not there: chunks of its tar. Returns its digest, size, media type and diff_id."""
        known = self.remember(name)
        if known:
            return known
        plain = hashlib.sha256()

        def watched():
            for piece in pieces(chunks):
                plain.update(piece)
                yield piece

        data = side_by_side(member, watched()) if self.compression == "gzip" else watched()
        part = os.path.join(self.blobs, ".layer-%d" % os.getpid())
        digest, size = self.write(part, data)
        os.rename(part, self.blob(digest))
        layer = {"mediaType": LAYERS[self.compression], "digest": digest, "size": size,
                 "diff_id": "sha256:" + plain.hexdigest()}
        disk.write_atomically(self.note(name), layer)
        return layer


def output_layer(image, path):
    """The layer of an output of the store, written if it is not there."""
    return image.layer(address.name_of(path), tar_of_output(path))


# Order


def in_order(root, outputs):
    """Paths of `outputs` and all that they refer to, those first that change most rarely: the largest."""
    references = References(root)
    names = references.closure({address.name_of(path) for path in outputs})

    def size(name):
        return sum(entry.get("size", 0) for entry in address.manifest(references.path(name))["files"])

    return [references.path(name) for name in sorted(names, key=lambda name: (-size(name), name))]


# Base


class Base:
    """What lies below the outputs.

    name, digest: as labels name it; layers: as `Image.layer` returns them; history: entries of the config.
    """

    def __init__(self, name, digest, layers, history):
        self.name, self.digest, self.layers, self.history = name, digest, layers, history


def no_base(path, found):
    return StoreError(
        "base: %s: found %s; expected an OCI image, as a directory or an archive (skopeo copy --all "
        "docker://NAME@DIGEST oci-archive:FILE), or the tar of a root file system. Name another one." % (path, found)
    )


def check_digest(path, found, wanted):
    if found != wanted:
        raise StoreError("base: %s: found the digest %s; expected %s. Fetch that one, or correct the digest."
                         % (path, found, wanted))


def read_base(image, path, name, digest):
    """The base in the file or directory `path`, with its blobs in the image. digest: of its manifest, or of the tar.

    Raises StoreError for another one.
    """
    if os.path.isdir(path):
        return base_of_layout(image, path, name, digest, lambda part: open(os.path.join(path, part), "rb"))
    try:
        with tarfile.open(path, "r:") as archive:
            first = archive.next()
            names = {first.name} if first else set()
            # An archive of skopeo begins with its blobs; a root file system has no such name.
            if any(one.startswith(("blobs", "oci-layout", "index.json")) for one in names):
                return base_of_layout(image, path, name, digest, archive.extractfile)
    except (OSError, tarfile.TarError) as error:
        raise no_base(path, error)
    layer = image.layer("base-" + digest.partition(":")[2], tar_of_file(path))
    check_digest(path, layer["diff_id"], digest)
    return Base(name, digest, [layer], [{"created": CREATED, "created_by": "base " + name}])


def base_of_layout(image, path, name, digest, opened):
    """The base in an OCI image layout. opened(part): an open file of it."""

    def content(wanted):
        try:
            with opened("blobs/sha256/" + wanted.partition(":")[2]) as stream:
                data = stream.read()
        except (OSError, KeyError) as error:
            raise no_base(path, error)
        check_digest(path, sha256(data), wanted)
        return json.loads(data.decode("utf-8"))

    with opened("index.json") as stream:
        index = json.loads(stream.read().decode("utf-8"))
    found = [one["digest"] for one in index["manifests"]]
    if digest not in found:
        check_digest(path, ", ".join(found) or "none", digest)
    manifest = content(digest)
    if "layers" not in manifest:
        of_platform = [one["digest"] for one in manifest["manifests"]
                       if all(one.get("platform", {}).get(key) == PLATFORM[key] for key in PLATFORM)]
        if not of_platform:
            raise no_base(path, "no manifest for %(os)s on %(architecture)s" % PLATFORM)
        manifest = content(of_platform[0])
    config = content(manifest["config"]["digest"])
    layers = []
    for number, described in enumerate(manifest["layers"]):
        target = image.blob(described["digest"])
        if not os.path.exists(target):
            with opened("blobs/sha256/" + described["digest"].partition(":")[2]) as stream:
                got, _size = image.write(target + ".part", iter(lambda: stream.read(CHUNK), b""))
            check_digest(path, got, described["digest"])
            os.rename(target + ".part", target)
        kind = described["mediaType"].replace("application/vnd.docker.image.rootfs.diff.tar.gzip", LAYERS["gzip"])
        layers.append({"mediaType": kind, "digest": described["digest"], "size": described["size"],
                       "diff_id": config["rootfs"]["diff_ids"][number]})
    return Base(name, digest, layers, config.get("history", []))


# Image


def bill(paths, layers, base, config):
    """The bill of materials of an image: a component for each output, with its layer; a mapping."""
    components = []
    for path in paths:
        layer = layers[path]
        component = sbom.component_of(path)
        component["hashes"] = [{"alg": "SHA-256", "content": layer["diff_id"].partition(":")[2]}]
        component["properties"] = [{"name": "kepler:layer", "value": layer["diff_id"]}]
        components.append(component)
    lowest = {
        "type": "container", "bom-ref": "base", "name": base.name, "version": base.digest,
        "properties": [{"name": "kepler:layer", "value": layer["diff_id"]} for layer in base.layers],
    }
    title = config["Labels"].get("org.opencontainers.image.title", "image")
    return sbom.numbered({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": "image", "name": title}},
        "components": [lowest] + components,
        "dependencies": [
            {"ref": "image", "dependsOn": ["base"] + sorted(address.key_of_path(path) for path in paths)},
        ] + sbom.dependencies(paths),
    })


def assemble(image, root, outputs, base, config, directories, links, name):
    """Write the image of `outputs`. Returns (its manifest's descriptor, its layers, whether the index was another).

    base: a Base. config: what an OCI config has below `config`. directories, links: of the image's own layer. name:
    repository and tag.
    """
    paths = in_order(root, outputs)
    upper = {path: output_layer(image, path) for path in paths}
    places = b"".join(tar_of_places(directories, links))
    own = image.layer("places-" + hashlib.sha256(places).hexdigest(), [places])
    layers = base.layers + [upper[path] for path in paths] + [own]
    config = dict(config, Labels=dict(config.get("Labels") or {}))
    config["Labels"].update({
        "org.opencontainers.image.base.name": base.name, "org.opencontainers.image.base.digest": base.digest,
    })
    document = image.put_json(bill(paths, upper, base, config), CYCLONEDX)
    config["Labels"][SBOM_LABEL] = document["digest"]
    titles = [address.name_of(path) for path in paths] + ["places"]
    described = image.put_json(dict(
        PLATFORM, created=CREATED, config=config,
        rootfs={"type": "layers", "diff_ids": [layer["diff_id"] for layer in layers]},
        history=base.history + [{"created": CREATED, "created_by": "kepler-store " + title} for title in titles],
    ), CONFIG)
    names = [None] * len(base.layers) + titles
    manifest = dict(image.put_json({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": described,
        "layers": [descriptor_of(layer, names[number]) for number, layer in enumerate(layers)],
    }, MANIFEST), platform=PLATFORM)
    nothing = {"mediaType": EMPTY_TYPE, "digest": image.put(EMPTY), "size": len(EMPTY)}
    referrer = dict(image.put_json({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": CYCLONEDX, "config": nothing, "layers": [document],
        "subject": {key: manifest[key] for key in ("mediaType", "digest", "size")},
    }, MANIFEST), artifactType=CYCLONEDX)
    tag = name.rpartition(":")[2]
    index = {
        "schemaVersion": 2, "mediaType": INDEXES[0],
        "manifests": [dict(manifest, annotations={
            "org.opencontainers.image.ref.name": tag, "io.containerd.image.name": name,
        }), referrer],
    }
    changed = write_index(image, index)
    blobs = [document, described, manifest, nothing, referrer] + layers
    clean(image, {image.blob(one["digest"]) for one in blobs})
    return manifest, layers, changed


def descriptor_of(layer, title):
    """The descriptor of a layer in the manifest; its output is an annotation."""
    found = {key: layer[key] for key in ("mediaType", "digest", "size")}
    return dict(found, annotations={OUTPUT: title}) if title else found


def write_index(image, index):
    """Make the layout name the image. Returns whether it named another one."""
    path = os.path.join(image.directory, "index.json")
    with contextlib.suppress(OSError, ValueError):
        if read_json(path) == index:
            return False
    image.write(os.path.join(image.directory, "oci-layout"), [canonical({"imageLayoutVersion": "1.0.0"})])
    image.write(path, [canonical(index)])
    return True


def clean(image, wanted):
    """Remove blobs that no longer belong to the image, and what it remembers of them."""
    for name in os.listdir(image.blobs):
        path = os.path.join(image.blobs, name)
        if path not in wanted:
            remove_tree(path)
    for name in os.listdir(image.remembered):
        path = os.path.join(image.remembered, name)
        with contextlib.suppress(OSError, ValueError, KeyError):
            if not os.path.exists(image.blob(read_json(path)["digest"])):
                os.unlink(path)


def archive(image, path):
    """Write the image as one file that docker, podman and skopeo load. Returns whether it was another one."""
    index = read_json(os.path.join(image.directory, "index.json"))
    manifest = read_json(image.blob(index["manifests"][0]["digest"]))
    name = index["manifests"][0]["annotations"]["io.containerd.image.name"]

    def blob(digest):
        return "blobs/sha256/" + digest.partition(":")[2]

    # For docker before release 25, which reads no OCI layout.
    legacy = canonical([{
        "Config": blob(manifest["config"]["digest"]), "RepoTags": [name],
        "Layers": [blob(layer["digest"]) for layer in manifest["layers"]],
    }])
    marker = os.path.join(image.directory, "archive.json")
    state = {"path": path, "index": sha256(canonical(index))}
    with contextlib.suppress(OSError, ValueError):
        if read_json(marker) == dict(state, size=os.path.getsize(path)):
            return False

    def chunks():
        for name in ("blobs", "blobs/sha256"):
            yield of_directory(name)
        for name in sorted(os.listdir(image.blobs)):
            full = os.path.join(image.blobs, name)
            yield header({"path": "blobs/sha256/" + name, "type": "file", "size": os.path.getsize(full)})
            for data in tar_of_file(full):
                yield data
            yield padding(os.path.getsize(full))
        for name, data in (
            ("index.json", canonical(index)), ("manifest.json", legacy),
            ("oci-layout", canonical({"imageLayoutVersion": "1.0.0"})),
        ):
            yield header({"path": name, "type": "file", "size": len(data)})
            yield data + padding(len(data))
        yield END

    needed = sum(os.path.getsize(os.path.join(image.blobs, name)) for name in os.listdir(image.blobs))
    directory = os.path.dirname(os.path.abspath(path))
    os.makedirs(directory, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise StoreError("archive: found %.1f GB free in %s; expected %.1f. Make room, or name another place."
                         % (free / 1e9, directory, needed / 1e9))
    _digest, size = image.write(path, chunks())
    disk.write_atomically(marker, dict(state, size=size))
    return True
