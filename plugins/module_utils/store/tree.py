"""A finished tree: what its manifest says, and how it is made fit to stay."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

from .fetch import sha256_of


def entries(top):
    """Paths below `top`, relative to it and sorted; directories included, links not followed."""
    found = []
    for directory, names, files in os.walk(top):
        found += [os.path.relpath(os.path.join(directory, name), top) for name in names + files]
    return sorted(found)


def describe(top, path):
    """Manifest entry of one path: type, and what a change would show."""
    full = os.path.join(top, path)
    status = os.lstat(full)
    if stat.S_ISLNK(status.st_mode):
        return {"path": path, "type": "link", "target": os.readlink(full)}
    if stat.S_ISDIR(status.st_mode):
        return {"path": path, "type": "directory"}
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


def freeze(top, time):
    """Take every right to write away and set every time to `time`, in seconds since 1970."""
    for path in [*entries(top), "."]:
        full = os.path.join(top, path)
        status = os.lstat(full)
        if not stat.S_ISLNK(status.st_mode):
            runs = stat.S_ISDIR(status.st_mode) or status.st_mode & stat.S_IXUSR
            os.chmod(full, 0o555 if runs else 0o444)
        os.utime(full, (time, time), follow_symlinks=False)
