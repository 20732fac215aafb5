"""A finished tree: what its manifest says, and how it is made fit to stay."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

from .errors import StoreError
from .fetch import sha256_of

# 1980-01-01, the earliest time that a zip archive, and so a wheel, can carry.
SOURCE_DATE_EPOCH = 315532800


def entries(top):
    """Paths below `top`, relative to it and sorted; directories included, links not followed."""
    found = []
    for directory, names, files in os.walk(top):
        found += [os.path.relpath(os.path.join(directory, name), top) for name in names + files]
    return sorted(found)


# File types that an output cannot hold: archives cannot carry them, and reading a pipe blocks.
OTHER_KINDS = (
    (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)


def describe(top, path):
    """Manifest entry of one path: type, and what a change would show. Raises StoreError for another kind of file."""
    full = os.path.join(top, path)
    status = os.lstat(full)
    if stat.S_ISLNK(status.st_mode):
        return {"path": path, "type": "link", "target": os.readlink(full)}
    if stat.S_ISDIR(status.st_mode):
        return {"path": path, "type": "directory"}
    for is_kind, kind in OTHER_KINDS:
        if is_kind(status.st_mode):
            raise StoreError("%s: found %s; expected a file, a directory or a link." % (path, kind))
    return {
        "path": path,
        "type": "file",
        "size": status.st_size,
        "executable": bool(status.st_mode & stat.S_IXUSR),
        "sha256": sha256_of(full),
    }


def describe_all(top):
    """Manifest entries of everything below `top`."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(lambda path: describe(top, path), entries(top)))


def freeze_link(path):
    """Set the time of a link."""
    os.utime(path, (SOURCE_DATE_EPOCH, SOURCE_DATE_EPOCH), follow_symlinks=False)


def freeze_one(path, runs):
    """Take the right to write away from one file or directory and set its time. path: or the number of an open file."""
    os.chmod(path, 0o555 if runs else 0o444)
    os.utime(path, (SOURCE_DATE_EPOCH, SOURCE_DATE_EPOCH))


def freeze(top):
    """Take the right to write away from everything below `top`, and set its time."""
    for path in entries(top):
        full = os.path.join(top, path)
        status = os.lstat(full)
        if stat.S_ISLNK(status.st_mode):
            freeze_link(full)
        else:
            freeze_one(full, stat.S_ISDIR(status.st_mode) or status.st_mode & stat.S_IXUSR)
