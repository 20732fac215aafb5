"""Garbage collection: what nothing refers to any more goes, whole or not at all."""

import contextlib
import errno
import fcntl
import os
import re

from . import address, fetch, generation
from .build import NEEDS, Lock, remove_tree
from .errors import StoreError
from .substitute import ENDINGS, PUBLISHING

KEEP = 3
# Where a host publishes unless it is told otherwise.
PUBLISHED = "/var/lib/kepler/published"
PART = re.compile(r"^\.([0-9a-f]{64})\.part$")
# What is published of an output: the name of the output, and the ending.
ARCHIVE = re.compile(r"^([0-9a-z]{32}-.+?)(%s)$" % "|".join(map(re.escape, ENDINGS)))
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


def lock_of(root, key):
    """Path of the lock of a key."""
    return os.path.join(root, "locks", key)


def is_held(root, key):
    """Whether somebody holds a key. Looks only: a full disk has no room for a new lock."""
    if not os.path.exists(lock_of(root, key)):
        return False
    lock = Lock(lock_of(root, key))
    if not lock.acquire(wait=False):
        return True
    lock.release()
    return False


def is_new(root, key):
    """Whether an output was committed after the last generation was made: the next one may be meant to hold it."""
    if not generation.numbers(root):
        return True
    try:
        return os.stat(lock_of(root, key)).st_mtime_ns > os.stat(lock_of(root, "generations")).st_mtime_ns
    except OSError:
        return False


def needs(root):
    """What the builds in progress need: (paths of outputs, sha256 of sources)."""
    paths, sources = set(), set()
    directory = os.path.join(root, "build")
    for name in os.listdir(directory) if os.path.isdir(directory) else []:
        if not name.endswith(NEEDS) or not is_held(root, name[: -len(NEEDS)]):
            continue
        try:
            found = address.read_json(os.path.join(directory, name), ("inputs", "sources"))
        except (OSError, ValueError):
            continue  # it has just ended
        paths.update(found["inputs"])
        sources.update(found["sources"])
    return paths, sources


@contextlib.contextmanager
def at_rest(directory):
    """Keep publishers out of the directory that a host publishes into; False where one is at work, or there is none."""
    if not directory or not os.path.isdir(directory):
        yield False
        return
    handle, free = os.open(directory, os.O_RDONLY), True
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        yield free
    finally:
        os.close(handle)


def plan_published(directory, stay):
    """[(kind, path)] of what goes where a host publishes.

    What publishers that died have left; with `stay`, names of outputs, also what is published of others: the
    signature first, which says that all is there.
    """
    with at_rest(directory) as free:
        names = sorted(os.listdir(directory)) if free else []
    found = [("leftover", name) for name in names if name.startswith(PUBLISHING)]
    if stay is not None:
        matches = [one for one in map(ARCHIVE.match, names) if one and one.group(1) not in stay]
        matches.sort(key=lambda one: (one.group(1), -ENDINGS.index(one.group(2))))
        found += [("archive", one.group()) for one in matches]
    return [(kind, os.path.join(directory, name)) for kind, name in found]


def plan(root, keep=KEEP, sources=False, published=None, archives=False):
    """What a collection would remove: [{path, kind, bytes}], outputs before what they came from.

    keep: how many of the last generations stay, beside the active one and the one before it. sources: whether fetched
    files that no kept output names go as well. published: the directory that this host publishes into. archives:
    whether what is published there of outputs that are not kept goes as well. Raises StoreError for a `keep` that makes
    no sense, and where what is kept cannot be read.
    """
    if keep < 1:
        raise StoreError("keep: found %d; expected at least 1. Nothing was removed." % keep)
    kept = kept_generations(root, keep)
    named = [path for number in kept for path in generation.read(root, number)["outputs"].values()]
    needed, fetched = needs(root)
    committed = {path: address.key_of_path(path) for path in outputs(root)}
    awaited = {path for path, key in committed.items() if is_held(root, key) or is_new(root, key)}
    alive = closure(set(named) | in_use(root) | needed | awaited)
    found = []
    for number in generation.numbers(root):
        if number not in kept:
            found.append(("generation", os.path.join(root, "generations", str(number))))
    found += [("output", path) for path in committed if path not in alive]
    directory = os.path.join(root, "sources")
    if sources:
        fetched = fetched.union(source[2] for path in alive for source in address.manifest(path)["sources"])
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else []:
        path, part = os.path.join(directory, name), PART.match(name)
        if part:
            goes = part.group(1) not in fetched and fetch.is_forsaken(path)
        else:
            goes = ".rejected-" in name or (sources and name not in fetched and address.SHA256.match(name))
        if goes:
            found.append(("source", path))
    directory = os.path.join(root, TRASH)
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else []:
        found.append(("leftover", os.path.join(directory, name)))
    found += plan_published(published, {os.path.basename(path) for path in alive} if archives else None)
    return [{"kind": kind, "path": path, "bytes": size_of(path)} for kind, path in found]


def remove_whole(root, path):
    """Move a tree out of its place by one rename, then remove it: a kill leaves it whole, or out of its place."""
    aside = os.path.join(root, TRASH, os.path.basename(path))
    os.makedirs(os.path.dirname(aside), exist_ok=True)
    remove_tree(aside)
    os.rename(path, aside)
    remove_tree(aside)


@contextlib.contextmanager
def lock_if_there_is_room(path, wait):
    """Hold a lock; whether it is held. A disk that is too full for a new one has none that somebody else could hold."""
    lock = Lock(path)
    try:
        held = lock.acquire(wait)
    except StoreError:
        held = True
    try:
        yield held
    finally:
        if lock.stream:
            lock.release()


def remove(root, kind, path):
    """Remove what `plan` names, unless somebody holds or needs it by now. Returns whether it went."""
    needed, fetched = needs(root)
    if kind == "output":
        with lock_if_there_is_room(lock_of(root, address.key_of_path(path)), wait=False) as held:
            goes = held and path not in closure(needed)
            if goes:
                remove_whole(root, path)
            return goes
    if os.path.basename(path) in fetched:
        return False
    if kind == "generation":
        remove_whole(root, path)
    elif kind == "leftover":
        remove_tree(path)
    elif kind == "archive":
        name = ARCHIVE.match(os.path.basename(path)).group(1)
        with at_rest(os.path.dirname(path)) as free:
            # It may have been built again, and published.
            if not free or address.is_committed(os.path.join(root, "store", name)):
                return False
            os.unlink(path)
    elif PART.match(os.path.basename(path)):
        return fetch.is_forsaken(path, os.unlink)
    else:
        os.unlink(path)
    return True


def collect(root, keep=KEEP, sources=False, published=None, archives=False):
    """Remove what `plan` names. Returns what was removed, in the form of `plan`. Raises StoreError."""
    os.makedirs(os.path.join(root, "locks"), exist_ok=True)
    removed = []
    with lock_if_there_is_room(lock_of(root, "generations"), wait=True):
        for item in plan(root, keep, sources, published, archives):
            try:
                if remove(root, item["kind"], item["path"]):
                    removed.append(item)
            except OSError as error:
                # Leaving its place may need room, which what comes after it gives back.
                if error.errno != errno.ENOSPC:
                    raise
    return removed
