"""Fetching sources: the only stage with a network. Nothing is taken whose sha256 does not match."""

import base64
import contextlib
import errno
import fcntl
import hashlib
import html
import http.client
import json
import os
import re
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from ..errors import reason_of
from . import disk, schema
from .errors import StoreError

BLOCK = 1 << 20
PARALLEL = 4
TRIES = 4
TIMEOUT = 60
ANCHOR = re.compile(r"""<a\s[^>]*?href\s*=\s*["']([^"']+)["'][^>]*>([^<]*)</a>""", re.IGNORECASE)
# Bytes of one project's page; the largest of the public index have some ten million.
INDEX_LIMIT = 1 << 26
INDEX_TYPES = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"


def sha256_of(path):
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


class Progress:
    """Counts files and bytes over threads and hands one line of text to `report`."""

    def __init__(self, files, report):
        self.files, self.done, self.bytes, self.report = files, 0, 0, report
        self.lock, self.reported = threading.Lock(), 0.0

    def text(self):
        return "%d of %d files, %.0f MB" % (self.done, self.files, self.bytes / 1e6)

    def add(self, size, files=0):
        with self.lock:
            self.bytes += size
            self.done += files
            if time.monotonic() - self.reported > 0.5:
                self.reported = time.monotonic()
                self.report(self.text())

    def say(self, text):
        with self.lock:
            self.report(text)


def is_the_file(stream, path):
    """Return whether an open file still lies at `path`."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def exclusive(part, waits):
    """Lock the partial file `part`, made if it is missing, against other writers.

    The kernel releases the lock when its owner dies. waits: called if another process has it. A file that is still
    empty in the end is removed.
    """
    while True:
        if disk.is_no_file(part):
            disk.remove_tree(part)
        stream = os.fdopen(disk.open_private(part, os.O_RDWR | os.O_APPEND), "ab")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(stream, fcntl.LOCK_EX)
        # The owner of the partial file may have finished the download.
        if is_the_file(stream, part):
            break
        stream.close()
    try:
        yield
    finally:
        if is_the_file(stream, part) and not os.path.getsize(part):
            os.unlink(part)
        stream.close()


def is_abandoned(part, act=lambda path: None):
    """Return True if a partial download has no owner, after calling `act` on it."""
    try:
        if disk.is_no_file(part):
            act(part)
            return True
        with open(part, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not is_the_file(stream, part):
                return False
            act(part)
            return True
    except (BlockingIOError, FileNotFoundError):
        return False


def index_entries(address):
    """Files of one project's page of a Python package index: mapping of file name to address.

    address: of the page, with its last slash. HTML (PEP 503) and JSON (PEP 691) are read.
    """
    if address.startswith("file:"):
        page = os.path.join(urllib.request.url2pathname(urllib.parse.urlparse(address).path), "index.html")
        with open(page, "rb") as stream:
            kind, body = "text/html", stream.read()
    else:
        with opened(request(address, {"Accept": INDEX_TYPES})) as answer:
            kind, body, address = answer.headers.get("Content-Type", ""), answer.read(INDEX_LIMIT + 1), answer.geturl()
        if len(body) > INDEX_LIMIT:
            raise ValueError("found more than %d MB; expected the page of one project" % (INDEX_LIMIT / 1e6))
    if "json" in kind:
        listed = json.loads(body.decode("utf-8"))
        wrong = schema.misfit(listed, {"files": [{"filename": str, "url": str}]})
        if wrong:
            raise ValueError(wrong)
        found = {entry["filename"]: entry["url"] for entry in listed["files"]}
    else:
        found = {name.strip(): html.unescape(link) for link, name in ANCHOR.findall(body.decode("utf-8"))}
    return {name: urllib.parse.urljoin(address, link) for name, link in found.items()}


def addresses(source, index_urls):
    """Addresses of a source, found as they are asked for; with each the reason why one could not be had.

    Yields (address, None) or (None, reason).
    """
    for url in source.get("urls") or []:
        yield url, None
    index = source.get("index")
    if not index:
        return
    project = re.sub("[-_.]+", "-", index["project"]).lower()
    for base in index_urls:
        page = "%s/%s/" % (base.rstrip("/"), project)
        try:
            entries = index_entries(page)
        except (OSError, http.client.HTTPException, ValueError) as error:
            yield None, "%s: %s" % (page, reason_of(error))
            continue
        if source["file"] in entries:
            yield entries[source["file"]], None
        else:
            yield None, "%s: no file %s there" % (page, source["file"])


def request(address, headers):
    """The request for an address; a name and password in it go into a header (RFC 7617)."""
    parts = urllib.parse.urlsplit(address)
    credentials, at, place = parts.netloc.rpartition("@")
    if at:
        address = urllib.parse.urlunsplit(parts._replace(netloc=place))
        plain = urllib.parse.unquote(credentials).encode("utf-8")
        headers = dict(headers, Authorization="Basic " + base64.b64encode(plain).decode("ascii"))
    return urllib.request.Request(address, headers=headers)


def origin_of(address):
    """(scheme, host, port) of an address."""
    parts = urllib.parse.urlsplit(address)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect; credentials stay with the scheme, host and port that they were given for (RFC 9110, 15.4)."""

    def redirect_request(self, asked, stream, code, message, headers, address):
        follows = super().redirect_request(asked, stream, code, message, headers, address)
        if follows is not None and origin_of(address) != origin_of(asked.full_url):
            follows.remove_header("Authorization")
        return follows


def opened(asked):
    """The answer to a request."""
    return urllib.request.build_opener(Redirects).open(asked, timeout=TIMEOUT)


def shown(address):
    """An address without its password."""
    return re.sub("://[^/@ ]*@", "://", address)


def download(address, part, progress, limit=None):
    """Download to the file `part`, going on from what is there already.

    limit: bytes after which StoreError is raised: the size that was signed, or one for what nobody has vouched for yet.
    """
    have = os.path.getsize(part) if os.path.exists(part) else 0
    if limit is not None and have > limit:
        os.truncate(part, 0)
        have = 0
    asked = request(address, {"Range": "bytes=%d-" % have} if have else {})
    with opened(asked) as answer:
        # A server that does not know ranges sends the whole file.
        resumed = have and getattr(answer, "status", None) == 206
        with open(part, "ab" if resumed else "wb") as stream:
            progress.add(have if resumed else 0)
            missing = int(answer.headers.get("Content-Length") or 0)
            for block in iter(lambda: answer.read(BLOCK), b""):
                if limit is not None and stream.tell() + max(len(block), missing) > limit:
                    raise StoreError(
                        "%s: found more than %d MB; expected less. Do not trust that origin."
                        % (shown(address), limit / 1e6)
                    )
                stream.write(block)
                progress.add(len(block))
                missing -= len(block)
            # http.client says nothing of a connection that ended early.
            if missing > 0:
                raise OSError("the connection ended %d bytes early" % missing)


def download_patiently(address, part, progress, limit=None):
    """Download with retries. Returns None, or the reason why it could not be done."""
    reason = None
    for attempt in range(TRIES):
        if attempt:
            time.sleep(2 ** (attempt - 1))
        try:
            download(address, part, progress, limit)
            return None
        except urllib.error.HTTPError as error:
            reason = "%s: %s" % (address, error)
            if error.code == 416:
                os.truncate(part, 0)
            elif error.code < 500:
                break
        except (OSError, http.client.HTTPException, ValueError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise
            reason = "%s: %s" % (address, reason_of(error))
            if address.startswith("file:") or isinstance(error, http.client.InvalidURL):
                break
    return reason


def accept(part, source, final, origin):
    """Move a fetched file to its place if its digest matches; else move it aside and raise StoreError."""
    found = sha256_of(part)
    if found == source["sha256"]:
        os.chmod(part, 0o444)
        os.rename(part, final)
        return
    aside = "%s.rejected-%s" % (final, found[:16])
    os.rename(part, aside)
    raise StoreError(
        "source %s: %s has the sha256 %s; expected %s. The file was moved to %s and nothing was built. If the lock is "
        "wrong, correct it in the lock; if not, do not trust that origin."
        % (source["name"], origin, found, source["sha256"], aside)
    )


def is_there(final, source, progress):
    """Return whether the file `final` holds `source` already."""
    try:
        if sha256_of(final) != source["sha256"]:
            return False
    except FileNotFoundError:
        return False
    progress.add(os.path.getsize(final), 1)
    return True


def fetch_one(source, final, artifacts, index_urls, progress):
    """Make sure that the file `final` holds `source`."""
    if is_there(final, source, progress):
        return
    part = os.path.join(os.path.dirname(final), ".%s.part" % source["sha256"])
    with exclusive(part, lambda: progress.say("waiting for %s, which another run fetches" % source["file"])):
        # The former owner of the lock may have fetched the file.
        if not is_there(final, source, progress):
            if os.path.exists(final):
                os.rename(final, "%s.rejected-%s" % (final, sha256_of(final)[:16]))
            fetch_into(part, final, source, artifacts, index_urls, progress)


def fetch_into(part, final, source, artifacts, index_urls, progress):
    """Fetch `source` over the unfinished file `part`, which the caller holds. Raises StoreError."""
    for directory in artifacts:
        candidate = os.path.join(directory, source["file"])
        if os.path.exists(candidate):
            shutil.copyfile(candidate, part)
            accept(part, source, final, candidate)
            progress.add(os.path.getsize(final), 1)
            return
    reasons = []
    for address, reason in addresses(source, index_urls):
        reason = reason or download_patiently(address, part, progress)
        if reason is None:
            accept(part, source, final, address)
            progress.add(0, 1)
            return
        # An index's address may hold a password.
        reasons.append(shown(reason))
    raise StoreError(
        "source %s: the file %s could not be had: %s. Put it into a directory of store_artifacts, or correct the "
        "network, proxy or index of this host."
        % (source["name"], source["file"], "; ".join(reasons) or "the lock names no address and no index is configured")
    )


def fetch_sources(sources, directory, artifacts, index_urls, report=lambda text: None, name="sha256"):
    """Make sure that every source is in `directory` under its `name`: "sha256" in a store, "file" in a cache.

    Raises StoreError for the first that cannot be had or does not match its digest.
    """
    os.makedirs(directory, exist_ok=True)
    progress = Progress(len(sources), report)
    with ThreadPoolExecutor(PARALLEL) as pool:
        pending = [
            pool.submit(fetch_one, source, os.path.join(directory, source[name]), artifacts, index_urls, progress)
            for source in sources
        ]
        try:
            for future in pending:
                future.result()
        except BaseException:
            for future in pending:
                future.cancel()
            raise
