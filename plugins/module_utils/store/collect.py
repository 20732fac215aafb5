"""Garbage collection: what nothing refers to any more goes, whole or not at all."""

import os

from . import address, generation
from .build import Lock, remove_tree
from .errors import StoreError

KEEP = 3
# Below the root: what has left its place and is being removed.
TRASH = "trash"
# Rows of /proc/PID that name files of a process.
LINKS = ("exe", "cwd", "root")


def outputs(root):
    """Paths of the committed outputs."""
    store = os.path.join(root, "store")
    names = sorted(os.listdir(store)) if os.path.isdir(store) else []
    return [path for path in (os.path.join(store, name) for name in names) if address.is_committed(path)]


def closure(paths):
    """`paths` and all that their manifests refer to, directly or not; what is missing is left out."""
    found, waiting = set(), list(paths)
    while waiting:
        path = waiting.pop()
        if path not in found and address.is_committed(path):
            found.add(path)
            waiting += address.manifest(path)["references"]
    return found


def output_of(root, path):
    """The output that a path lies in; None outside the store."""
    store = os.path.join(root, "store") + os.sep
    if not path.startswith(store):
        return None
    return store + path[len(store):].split(os.sep)[0]


def in_use(root, proc="/proc"):
    """Outputs that a running process executes, maps or stands in."""
    used = set()
    for pid in os.listdir(proc):
        if not pid.isdigit():
            continue
        paths = []
        for name in LINKS:
            try:
                paths.append(os.readlink(os.path.join(proc, pid, name)))
            except OSError:
                pass  # it ended, or is not ours to look at
        try:
            with open(os.path.join(proc, pid, "maps"), errors="replace") as stream:
                paths += [line.split(None, 5)[-1].rstrip("\n") for line in stream if root in line]
        except OSError:
            pass
        used.update(output_of(root, path) for path in paths)
    return used - {None}


def kept_generations(root, keep):
    """Numbers that stay: the active one, the one before it, and the last `keep`."""
    known = generation.numbers(root)
    kept = set(known[-keep:] if keep else [])
    current = generation.number_of(os.path.join(root, "current"))
    if current in known:
        kept |= {current, generation.read(root, current)["previous"]} & set(known)
    return kept


def size_of(path):
    """Bytes that a file or tree takes on the disk, links not followed."""
    total = os.lstat(path).st_blocks * 512
    for directory, names, files in os.walk(path):
        for name in names + files:
            total += os.lstat(os.path.join(directory, name)).st_blocks * 512
    return total


def is_being_built(root, path):
    """Whether somebody holds the key of an output."""
    lock = Lock(os.path.join(root, "locks", address.key_of_path(path)))
    if not lock.acquire(wait=False):
        return True
    lock.release()
    return False


def plan(root, keep=KEEP, sources=False):
    """What a collection would remove: [{path, kind, bytes}], outputs before what they came from.

    keep: how many of the last generations stay, beside the active one and the one before it. sources: whether fetched
    files that no kept output names go as well. Raises StoreError for a `keep` that makes no sense.
    """
    if keep < 1:
        raise StoreError("keep: found %d; expected at least 1. Nothing was removed." % keep)
    kept = kept_generations(root, keep)
    named = [path for number in kept for path in generation.read(root, number)["outputs"].values()]
    alive = closure(set(named) | in_use(root))
    found = []
    for number in generation.numbers(root):
        if number not in kept:
            found.append(("generation", os.path.join(root, "generations", str(number))))
    for path in outputs(root):
        if path not in alive and not is_being_built(root, path):
            found.append(("output", path))
    directory = os.path.join(root, "sources")
    wanted = {source[2] for path in alive for source in address.manifest(path)["sources"]} if sources else None
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else []:
        if ".rejected-" in name or (sources and name not in wanted and address.SHA256.match(name)):
            found.append(("source", os.path.join(directory, name)))
    directory = os.path.join(root, TRASH)
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else []:
        found.append(("leftover", os.path.join(directory, name)))
    return [{"kind": kind, "path": path, "bytes": size_of(path)} for kind, path in found]


def remove_whole(root, path):
    """Move a tree out of its place by one rename, then remove it: a kill leaves it whole, or out of its place."""
    aside = os.path.join(root, TRASH, os.path.basename(path))
    remove_tree(aside)
    if path != aside:
        os.rename(path, aside)
    remove_tree(aside)


def remove_output(root, path):
    """Remove an output, unless somebody holds its key. Returns whether it went."""
    lock = Lock(os.path.join(root, "locks", address.key_of_path(path)))
    if not lock.acquire(wait=False):
        return False
    try:
        remove_whole(root, path)
        return True
    finally:
        lock.release()


def collect(root, keep=KEEP, sources=False):
    """Remove what `plan` names. Returns what was removed, in the form of `plan`. Raises StoreError."""
    for name in ("locks", TRASH):
        os.makedirs(os.path.join(root, name), exist_ok=True)
    lock = Lock(os.path.join(root, "locks", "generations"))
    lock.acquire()
    try:
        removed = []
        for item in plan(root, keep, sources):
            if item["kind"] == "source":
                os.unlink(item["path"])
            elif item["kind"] != "output":
                remove_whole(root, item["path"])
            elif not remove_output(root, item["path"]):
                continue
            removed.append(item)
        return removed
    finally:
        lock.release()
