"""Taking an output that another host built: an archive, a manifest, and a signature over the manifest.

Nothing is parsed that nobody has signed: the signed manifest decides what every header of the archive must be, and
what each file's content. Both are looked at before anything is unpacked, the content once more while it is written.
"""

import base64
import binascii
import contextlib
import errno
import hashlib
import json
import os
import re
import subprocess
import tarfile
import tempfile
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from . import address, disk, fetch, schema, tree
from .address import stem_of
from .errors import StoreError

BLOCK = 512  # of a tar
CHUNK = 1 << 18  # fits a processor's cache: what is hashed is then written from there
# Bytes of a manifest or a signature; 40,000 files make ten million.
LIMIT = 1 << 28
# Two zero blocks end an archive.
END = b"\0" * (2 * BLOCK)
MODES = {"file": 0o444, "executable": 0o555, "directory": 0o555, "link": 0o777}
TYPES = {"file": b"0", "link": b"2", "directory": b"5"}
# Of what is published of an output, in the order in which it gets there: the signature says that all is there.
ENDINGS = (".tar", ".manifest.json", ".manifest.json.asc")
# Kinds of what is signed; see schema.py. Its manifest is looked at once it is known whose it is.
STATEMENT = {"path": str, "manifest": dict, "archive": {"size": schema.is_natural, "sha256": address.is_sha256}}
# gpgv's status words that make a signature worthless, with their meaning. The first one found is reported.
WORTHLESS = (
    ("BADSIG", "content that the signature does not fit"),
    ("REVKEYSIG", "a signature by a key that was revoked"), ("KEYREVOKED", "a signature by a key that was revoked"),
    ("EXPKEYSIG", "a signature by a key that has expired"), ("EXPSIG", "a signature that has expired"),
    ("SIGEXPIRED", "a signature that has expired"), ("ERRSIG", "a signature that cannot be checked"),
)
# Digests by which a signature is worth nothing, as OpenPGP counts them: MD5, SHA-1 and RIPEMD-160.
WEAK_DIGESTS = ("1", "2", "3")
LINKS_FOLLOWED = 40  # as Linux does
# Work directory of a publisher, within the directory of published files.
PUBLISHING = ".publishing-"
BEGIN = b"-----BEGIN PGP PUBLIC KEY BLOCK-----"
# Headers end with an empty line; a line that begins with = is the checksum.
ARMOR = re.compile(
    br"-----BEGIN PGP PUBLIC KEY BLOCK-----[^\n]*\n(?:[^\n]+\n)*?\r?\n"
    br"([A-Za-z0-9+/=\s]*?)\n(?:=.{4}\s*)?-----END"
)


# The archive


def block(name, kind, mode, size, target=b""):
    """One header of a tar (POSIX.1-1988, ustar). name, target: at most 100 bytes."""
    fields = b"".join([
        name.ljust(100, b"\0"), b"%07o\0" % mode, b"0000000\0", b"0000000\0", b"%011o\0" % size, b"%011o\0" % 0,
        b" " * 8, kind, target.ljust(100, b"\0"), b"ustar\0" b"00", b"\0" * 64, b"0000000\0", b"0000000\0",
    ]).ljust(BLOCK, b"\0")
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def record(keyword, value):
    """One record of an extended header (POSIX.1-2001): its length counts itself."""
    rest = b" " + keyword + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def padding(size):
    return b"\0" * (-size % BLOCK)


def header(entry, mode=None):
    """Everything that stands before the content of one manifest entry in the archive. mode: if not the store's own."""
    name, target = os.fsencode(entry["path"]), os.fsencode(entry.get("target", ""))
    kind, size = entry["type"], entry.get("size", 0)
    if kind == "directory":
        name += b"/"
    if mode is None:
        mode = MODES["executable" if entry.get("executable") else kind]
    records = b""
    if len(name) > 100:
        records += record(b"path", name)
    if len(target) > 100:
        records += record(b"linkpath", target)
    if size >= 8 ** 11:
        records += record(b"size", b"%d" % size)
        size = 0
    extended = b""
    if records:
        extended = block(b"PaxHeader", b"x", 0o444, len(records)) + records + padding(len(records))
    return extended + block(name[:100], TYPES[kind], mode, size, target[:100])


def layout(entries):
    """[(offset of the header, header, offset of the content, entry)] of an archive, and its size in bytes."""
    members, offset = [], 0
    for entry in entries:
        before = header(entry)
        content = offset + len(before)
        members.append((offset, before, content, entry))
        size = entry.get("size", 0)
        offset = content + size + -size % BLOCK
    return members, offset + len(END)


# Publishing


def write_archive(path, entries, stream):
    """Write the archive of the output `path`; its sha256. Raises StoreError where a file is not what `entries` say."""
    whole = hashlib.sha256()

    def put(data):
        stream.write(data)
        whole.update(data)

    for _offset, before, _content, entry in layout(entries)[0]:
        put(before)
        if entry["type"] != "file":
            continue
        digest = hashlib.sha256()
        full = os.path.join(path, entry["path"])
        with open(full, "rb") as source:
            for data in iter(lambda: source.read(CHUNK), b""):
                digest.update(data)
                put(data)
        if digest.hexdigest() != entry["sha256"]:
            raise StoreError(
                "%s: found the sha256 %s; expected %s, as its manifest says. A damaged output is not published: "
                "remove it and build it again." % (full, digest.hexdigest(), entry["sha256"])
            )
        put(padding(entry["size"]))
    put(END)
    return whole.hexdigest()


def run_gpg(home, arguments):
    """Run gpg in batch mode. Raises StoreError with its message."""
    command = ["gpg", "--homedir", home, "--batch", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""]
    done = subprocess.Popen(
        command + arguments,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    printed, errors = done.communicate()
    if done.returncode:
        raise StoreError(
            "gpg %s: ended with status %d: %s. Expected a secret key without a passphrase in %s."
            % (arguments[0], done.returncode, errors.decode("utf-8", "replace").strip(), home)
        )
    return printed


def secret_key(home):
    """Fingerprint of the first secret key in a GnuPG home; None where there is none."""
    if not os.path.isdir(home):
        return None
    for line in run_gpg(home, ["--list-secret-keys", "--with-colons"]).decode("ascii", "replace").splitlines():
        fields = line.split(":")
        if fields[0] == "fpr":
            return fields[9]
    return None


def make_key(home, name):
    """Make sure that a GnuPG home, readable by root alone, has a secret key. Returns (fingerprint, whether made)."""
    found = secret_key(home)
    if found:
        return found, False
    home = os.path.abspath(home)
    # Before Python 3.7 new parents get the mode as well.
    os.makedirs(os.path.dirname(home), exist_ok=True)
    if not os.path.isdir(home):
        os.mkdir(home, 0o700)
    os.chmod(home, 0o700)
    run_gpg(home, ["--quick-generate-key", name, "rsa3072", "sign", "never"])
    return secret_key(home), True


def public_key(home, fingerprint):
    """The public key, armored."""
    return run_gpg(home, ["--armor", "--export", fingerprint]).decode("ascii")


def read_output(path):
    """The manifest of a committed output. Raises StoreError where there is none."""
    if not address.is_committed(path):
        raise StoreError("%s: found no output; expected a committed one. Build it first." % path)
    return address.manifest(path)


def is_published(path, directory, home, fingerprint):
    """Return whether an output lies in `directory` whole, byte for byte, signed by the key `fingerprint`."""
    try:
        manifest = read_output(path)
        base = os.path.join(directory, stem_of(manifest))
        statement = schema.read_json(base + ".manifest.json", STATEMENT)
        if statement["manifest"] != manifest or statement["path"] != path:
            return False
        status = run_gpg(home, ["--status-fd", "1", "--verify", base + ".manifest.json.asc", base + ".manifest.json"])
        status = status.decode("ascii", "replace")
        if worthless(status) or ("VALIDSIG " + fingerprint) not in status:
            return False
        if os.path.getsize(base + ".tar") != statement["archive"]["size"]:
            return False
        return fetch.sha256_of(base + ".tar") == statement["archive"]["sha256"]
    except (OSError, ValueError, StoreError):
        return False


def lock_of_directory(directory):
    """Path of the lock of a directory that is published into: beside it, since others may open the directory."""
    return os.path.abspath(directory) + ".lock"


@contextlib.contextmanager
def shared(directory):
    """Hold a directory with others that publish into it: the garbage collection sees that somebody is at work there."""
    with disk.locked(lock_of_directory(directory), shared=True):
        yield


def publish(path, directory, home, fingerprint):
    """Publish a committed output into `directory`, signed. Returns whether that had to be done.

    home: GnuPG home with the secret key `fingerprint`. What is there whole stays as it is. Raises StoreError.
    """
    if is_published(path, directory, home, fingerprint):
        return False
    manifest = read_output(path)
    size = layout(manifest["files"])[1]
    check_entries(manifest, stem_of(manifest))
    os.makedirs(directory, exist_ok=True)
    base = os.path.join(directory, stem_of(manifest))
    with shared(directory), tempfile.TemporaryDirectory(prefix=PUBLISHING, dir=directory) as temporary:
        new = os.path.join(temporary, "new")
        with open(new + ".tar", "wb") as stream:
            digest = write_archive(path, manifest["files"], stream)
            stream.flush()
            os.fsync(stream.fileno())
        statement = {
            "schema": 1, "path": path, "manifest": manifest,
            "archive": {"file": stem_of(manifest) + ".tar", "size": size, "sha256": digest},
        }
        with open(new + ".manifest.json", "w") as stream:
            json.dump(statement, stream, sort_keys=True)
            stream.flush()
            os.fsync(stream.fileno())
        run_gpg(home, [
            "--local-user", fingerprint, "--armor", "--output", new + ".manifest.json.asc",
            "--detach-sign", new + ".manifest.json",
        ])
        # An old signature must not stand over new content; the new one says that all is there.
        if os.path.exists(base + ".manifest.json.asc"):
            os.unlink(base + ".manifest.json.asc")
        for ending in ENDINGS:
            os.chmod(new + ending, 0o644)
            os.rename(new + ending, base + ending)
    return True


# Substituting


class Progress(fetch.Progress):
    """Counts the bytes done of the bytes that there are."""

    def __init__(self, what, total, report):
        super().__init__(0, report)
        self.what, self.total = what, total

    def text(self):
        return "%s%d of %d MB" % (self.what, self.bytes / 1e6, self.total / 1e6)


def check_configuration(substituters, trusted_keys):
    """Raise StoreError for substituters that nobody vouches for."""
    if substituters and not trusted_keys:
        raise StoreError(
            "trusted_keys: found nothing beside substituters (%s); expected the path of a keyring on the host. An "
            "output of others is taken only with a signature by a key of that keyring." % ", ".join(substituters)
        )


def base_of(substituter):
    """Address that names of files are put behind."""
    if "://" not in substituter:
        substituter = "file://" + urllib.request.pathname2url(os.path.abspath(substituter))
    return substituter.rstrip("/") + "/"


def keyring(trusted_keys, directory):
    """Path of a binary keyring with the trusted keys, armored or not. Raises StoreError."""
    try:
        with open(trusted_keys, "rb") as stream:
            content = stream.read()
    except OSError as error:
        raise StoreError(
            "trusted_keys: %s: %s; expected a readable keyring of public keys. Put it there, or take the substituters "
            "away." % (trusted_keys, error.strerror)
        )
    armored = ARMOR.findall(content)
    if BEGIN in content:
        try:
            keys = b"".join(base64.b64decode(body) for body in armored)
        except binascii.Error:
            keys = b""
        if not keys or len(armored) != content.count(BEGIN):
            raise StoreError(
                "trusted_keys: %s: found armored keys that break off; expected whole ones (`gpg --armor --export`). "
                "Export them again." % trusted_keys
            )
        content = keys
    if not content:
        raise StoreError("trusted_keys: %s is empty; expected public keys (`gpg --export`)." % trusted_keys)
    path = os.path.join(directory, "keyring.gpg")
    with open(path, "wb") as stream:
        stream.write(content)
    return path


def worthless(status):
    """Reason why gpg or gpgv rejects a signature; None if it is good."""
    lines = [line.split()[1:] for line in status.splitlines() if line.startswith("[GNUPG:] ")]
    status_lines = {line[0]: line[1:] for line in lines if line}
    if "NO_PUBKEY" in status_lines:
        return "a signature by the key %s, which is not trusted" % status_lines["NO_PUBKEY"][0]
    for word, found in WORTHLESS:
        if word in status_lines:
            return found
    # Its fields: fingerprint, date, time, expiry, version, reserved, algorithm of the key, digest.
    if "GOODSIG" not in status_lines or len(status_lines.get("VALIDSIG", ())) < 8:
        return "no valid signature"
    if status_lines["VALIDSIG"][7] in WEAK_DIGESTS:
        return "a signature over a digest that can be forged"
    return None


def check_signature(signed, signature, trusted, where, trusted_keys, home):
    """Raise StoreError where no trusted key has signed the file `signed`."""
    command = ["gpgv", "--homedir", home, "--keyring", trusted, "--status-fd", "1", signature, signed]
    done = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    status, errors = (stream.decode("utf-8", "replace") for stream in done.communicate())
    found = worthless(status)
    if done.returncode == 0 and not found:
        return
    raise StoreError(
        "%s: found %s; expected a signature by a key of %s. Nothing was unpacked. Publish it again with the right key, "
        "or remove that substituter. gpgv printed: %s"
        % (fetch.shown(where), found or "no valid signature", trusted_keys, " ".join(errors.split()))
    )


def check_wanted(statement, recipe, final, where):
    """Raise StoreError where the signed manifest is of another output than the one wanted."""
    manifest = statement["manifest"]
    expected = {
        "key": address.key(recipe), "name": recipe["name"], "version": recipe["version"],
        "references": sorted(recipe["inputs"].values()),
    }
    for field, wanted in sorted(expected.items()):
        if manifest.get(field) != wanted:
            raise StoreError(
                "%s: found the %s %s; expected %s. Nothing was unpacked. Publish the output that belongs there, or "
                "remove that substituter." % (where, field, manifest.get(field), wanted)
            )
    if statement["path"] != final:
        raise StoreError(
            "%s: found an output of %s; expected one of %s: outputs hold their own path. Build with the same "
            "store_root as the builder." % (where, statement["path"], final)
        )


def destination(links, path):
    """Target of a link of an output: None outside the store, "" within the output, else its absolute path.

    links: target of each link by its path. Links that it leads through are followed, for they decide what ".." means. A
    circle leads nowhere, and so not outside.
    """
    done, todo, followed = path.split("/")[:-1], links[path].split("/"), 0
    if links[path].startswith("/"):
        return links[path]
    while todo:
        part = todo.pop(0)
        if part in ("", "."):
            continue
        if part != "..":
            done.append(part)
        elif done:
            done.pop()
        else:
            return None
        target = links.get("/".join(done))
        if target is None:
            continue
        followed += 1
        if followed > LINKS_FOLLOWED:
            return ""
        if target.startswith("/"):
            rest = [one for one in todo if one not in ("", ".")]
            return "/".join([target.rstrip("/"), *rest])
        done.pop()
        todo[:0] = target.split("/")
    return ""


def check_entries(manifest, where, store=None, known=lambda: ()):
    """Raise StoreError for an entry that could lead a writer out of the output.

    store: directory that absolute links may lead into; None: any. known: further targets that the host itself names.
    """

    def refuse(path, found, expected):
        raise StoreError(
            "%s: %s: found %s; expected %s. Nothing was unpacked. Build that output on this host: remove that "
            "substituter." % (where, path, found, expected)
        )

    links = {entry["path"]: entry["target"] for entry in manifest["files"] if entry["type"] == "link"}
    directories, seen = {""}, set()
    for entry in manifest["files"]:
        path, kind = entry["path"], entry["type"]
        if path.startswith("/") or path in ("", ".") or os.path.normpath(path) != path or ".." in path.split("/"):
            refuse(path, "a name that leads out of the output", "a plain path below it")
        if "\0" in path or path == address.MANIFEST or path in seen:
            refuse(path, "a name that is taken", "each name once")
        if os.path.dirname(path) not in directories:
            refuse(path, "no directory above it", "its directory before it")
        if kind not in TYPES:
            refuse(path, "the type %s" % kind, "a file, a directory or a link")
        seen.add(path)
        if kind == "directory":
            directories.add(path)
        elif kind == "link":
            target = destination(links, path)
            outside = target is None
            if target and store is not None and target not in known():
                # The meaning of ".." behind another output's links is not known here.
                outside = not target.startswith(store + "/") or ".." in target.split("/")
            if outside:
                refuse(path, "a link to %s" % entry["target"], "a target in the output or in the store")


def targets_known(recipe):
    """Absolute paths outside the store that this host's own recipe and its inputs name: an interpreter, say."""
    found = set(recipe["environment"].values())
    for path in recipe["inputs"].values():
        found.update(entry["target"] for entry in read_output(path)["files"] if entry["type"] == "link")
    return found


def describe_header(stream, offset):
    """Describe the entry at an offset of an archive, for a message."""
    try:
        stream.seek(offset)
        member = tarfile.TarFile(fileobj=stream).next()
    except (tarfile.TarError, ValueError, OSError):
        member = None
    if member is None:
        return "no header"
    kinds = {
        b"0": "file", b"1": "hard link", b"2": "link", b"3": "device", b"4": "device", b"5": "directory", b"6": "fifo",
    }
    text = "%s %s, mode %04o, %d bytes" % (
        kinds.get(member.type, "member of type %r" % member.type), member.name, member.mode, member.size
    )
    return text + (", to %s" % member.linkname if member.linkname else "")


def describe_entry(entry):
    """Describe a manifest entry in the same words."""
    mode = MODES["executable" if entry.get("executable") else entry["type"]]
    text = "%s %s, mode %04o, %d bytes" % (entry["type"], entry["path"], mode, entry.get("size", 0))
    return text + (", to %s" % entry["target"] if entry["type"] == "link" else "")


def content_of(archive, offset, size, buffer):
    """Views of the content of one file, each good until the next is asked for; fewer bytes where the archive ends."""
    archive.seek(offset)
    whole = memoryview(buffer)
    while size:
        found = archive.readinto(whole[: min(size, len(whole))])
        if not found:
            return
        yield whole[:found]
        size -= found


def check_content(entry, digest, where, done):
    """Raise StoreError where the sha256 of a file is not the one of the manifest. done: what was not, till then."""
    if digest.hexdigest() != entry["sha256"]:
        raise StoreError(
            "%s: %s: found the sha256 %s; expected %s, as the signed manifest says. Nothing was %s. Do not trust that "
            "origin; publish the output again." % (where, entry["path"], digest.hexdigest(), entry["sha256"], done)
        )


def check_header(archive, offset, before, entry, where):
    """Raise StoreError where a header of the archive is not the one that the signed manifest stands for."""
    archive.seek(offset)
    if archive.read(len(before)) != before:
        raise StoreError(
            "%s: found %s; expected %s, as the signed manifest says. Nothing was unpacked. Do not trust that origin; "
            "publish the output again." % (where, describe_header(archive, offset), describe_entry(entry))
        )


def for_each(members, archive, act):
    """Call act(open archive, buffer, member) for each member, as many at once as there are processors."""
    # Threads share one iterator, so that the archive is read from its beginning to its end.
    todo = iter(members)

    def work(_number):
        buffer = bytearray(CHUNK)
        with open(archive, "rb", buffering=0) as stream:
            for member in todo:
                act(stream, buffer, member)

    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


def check_archive(archive, members, size, where):
    """Raise StoreError where an archive is not what the signed manifest says: size, headers, content."""
    found = os.path.getsize(archive)
    if found != size:
        raise StoreError(
            "%s: found %d bytes; expected %d. Nothing was unpacked. Publish the output again." % (where, found, size)
        )

    def check(stream, buffer, member):
        offset, before, content, entry = member
        check_header(stream, offset, before, entry, where)
        if entry["type"] == "file":
            digest = hashlib.sha256()
            for data in content_of(stream, content, entry["size"], buffer):
                digest.update(data)
            check_content(entry, digest, where, "unpacked")

    for_each(members, archive, check)
    with open(archive, "rb") as stream:
        stream.seek(size - len(END))
        if stream.read() != END:
            raise StoreError(
                "%s: found %s after the last file; expected the end. Nothing was unpacked. Do not trust that origin; "
                "publish the output again." % (where, describe_header(stream, size - len(END)))
            )


def unpack(archive, members, out, where, report):
    """Write what the archive holds below `out`, frozen. The content is hashed once more: the archive is another's."""
    files = [member for member in members if member[3]["type"] == "file"]
    progress = Progress("", sum(entry["size"] for _offset, _before, _content, entry in files), report)

    def write(stream, buffer, member):
        _offset, _before, content, entry = member
        path = os.path.join(out, entry["path"])
        digest = hashlib.sha256()
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            for data in content_of(stream, content, entry["size"], buffer):
                digest.update(data)
                progress.add(len(data))
                while data:
                    data = data[os.write(target, data) :]
            tree.freeze_one(target, entry["executable"])
        finally:
            os.close(target)
        check_content(entry, digest, where, "committed")

    os.makedirs(out)
    directories = [entry["path"] for _offset, _before, _content, entry in members if entry["type"] == "directory"]
    for path in directories:
        os.mkdir(os.path.join(out, path), 0o755)
    for_each(files, archive, write)
    # Last, so that no file is ever written through one.
    for _offset, _before, _content, entry in members:
        if entry["type"] == "link":
            path = os.path.join(out, entry["path"])
            os.symlink(entry["target"], path)
            tree.freeze_link(path)
    for path in directories:
        tree.freeze_one(os.path.join(out, path), True)


def local(where):
    """Path of a file:// address; None for others."""
    parts = urllib.parse.urlparse(where)
    return urllib.request.url2pathname(parts.path) if parts.scheme == "file" else None


def take(base, recipe, paths, trusted, trusted_keys, report):
    """Unpack the output from one substituter into `out` of the build directory.

    Returns (manifest, None), or (None, reason) where that substituter does not have it. Raises StoreError for one that
    has something else.
    """
    stem = os.path.basename(paths.final)
    fetched = os.path.join(paths.build, "substitute")
    quiet = Progress("", 0, lambda text: None)
    for ending in (".manifest.json.asc", ".manifest.json"):
        # Remove the file of an earlier substituter: a download resumes at the end of an existing file.
        if os.path.exists(fetched + ending):
            os.unlink(fetched + ending)
        reason = fetch.download_patiently(base + urllib.parse.quote(stem + ending), fetched + ending, quiet, LIMIT)
        if reason:
            return None, reason
    where = fetch.shown(base + stem + ".manifest.json")
    signed = fetched + ".manifest.json"
    check_signature(signed, signed + ".asc", trusted, where, trusted_keys, paths.build)
    try:
        statement = schema.read_json(signed, STATEMENT)
        manifest = statement["manifest"]
        check_wanted(statement, recipe, paths.final, where)
        wrong = schema.misfit(manifest, address.FIELDS)
        if wrong:
            raise ValueError(wrong)
        check_entries(manifest, where, paths.store, lambda: targets_known(recipe))
        members, size = layout(manifest["files"])
    except ValueError as error:
        raise StoreError(
            "%s: found a manifest that cannot be read (%s); expected one of schema 1. Publish the output again with "
            "this version of the project." % (where, error)
        )
    origin = base + urllib.parse.quote(stem + ".tar")
    where = fetch.shown(base + stem + ".tar")
    out, archive = os.path.join(paths.build, "out"), local(origin)
    if archive is not None:
        if not os.path.exists(archive):
            return None, "%s: no such file" % where
        put_in_place(archive, members, size, out, where, report)
        return manifest, None
    # Beside the sources: the partial file survives an interrupted run, and the next run resumes it.
    part = os.path.join(paths.sources, ".%s.part" % statement["archive"]["sha256"])
    with fetch.exclusive(part, lambda: report("waiting for the archive, which another run fetches")):
        try:
            if os.path.getsize(part) != size:
                reason = fetch.download_patiently(origin, part, Progress("fetching ", size, report), size)
                if reason:
                    return None, reason
            put_in_place(part, members, size, out, where, report)
        except StoreError:
            os.unlink(part)
            raise
        os.unlink(part)
    return manifest, None


def put_in_place(archive, members, size, out, where, report):
    """Look at an archive and unpack it. Raises StoreError where it is not what it must be, or cannot be read."""
    try:
        check_archive(archive, members, size, where)
        unpack(archive, members, out, where, report)
    except OSError as error:
        # Keep the partial file of a full disk: the next run resumes it.
        if error.errno == errno.ENOSPC:
            raise
        raise StoreError(
            "%s: could not be read or unpacked: %s. Nothing was committed. Look at the disks (`journalctl -k`), then "
            "run again." % (where, error)
        )


def substitute(recipe, paths, substituters, trusted_keys, report=lambda text: None):
    """Unpack the output of `recipe` into `out` of its build directory, from the first substituter that has it.

    The caller holds the key's lock and commits. Returns (manifest, reasons): the manifest is None where nobody has the
    output, and the reasons say of each who has not why. Raises StoreError for one that is not what it must be.
    """
    os.makedirs(paths.build, exist_ok=True)
    trusted = keyring(trusted_keys, paths.build)
    reasons = []
    for substituter in substituters:
        manifest, reason = take(base_of(substituter), recipe, paths, trusted, trusted_keys, report)
        if manifest:
            return manifest, reasons
        reasons.append(fetch.shown(reason))
        report("not at %s" % reasons[-1])
    return None, reasons
