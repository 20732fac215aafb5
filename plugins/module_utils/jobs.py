"""Work that outlives the module that starts it: start it, and hand its state and result to later calls.

A lock that the work keeps tells later calls that it runs (store/disk.py).
"""

import os

from .store import schema
from .store.disk import remove_tree, write_atomically


def start(work):
    """Run `work` in a process of its own that outlives this one. Locks that this process holds stay with it."""
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    try:
        work()
    finally:
        os._exit(0)


def read(path, kind=None):
    """The mapping in a JSON file; None if it is missing, truncated or not of `kind`, as schema.py has kinds."""
    try:
        return schema.read_json(path, kind or {})
    except (OSError, ValueError):
        return None


def write_result(paths, **result):
    """Write a result, of texts, to the first of `paths` whose disk takes it. If none does, there is no result."""
    for path in paths:
        try:
            write_atomically(path, result)
            return
        except OSError:
            pass


def take_result(paths):
    """Read and remove what write_result wrote since the last call; empty if there is nothing."""
    result = {}
    for path in paths:
        result.update(read(path, {str: str}) or {})
        remove_tree(path)
    return result
