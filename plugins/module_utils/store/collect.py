"""Garbage collection: what nothing refers to any more goes, whole or not at all."""

import contextlib
import errno
import os
import re
import time

from . import address, disk, fetch, generation, schema
from .build import NEEDS
from .disk import TRASH, is_locked, lock_of, remove_tree
from .errors import StoreError
from .processes import in_use
from .references import References
from .substitute import ENDINGS, PUBLISHING, lock_of_directory

KEEP = 3
# Default directory of published outputs.
PUBLISHED = "/var/lib/kepler/published"
PART = re.compile(r"\.([0-9a-f]{64})\.part\Z")
REJECTED = re.compile(r"[0-9a-f]{64}\.rejected-")
# File of a published output: name of the output and ending.
ARCHIVE = re.compile(r"([0-9a-z]{32}-.+?)(%s)\Z" % "|".join(map(re.escape, ENDINGS)))
# Kinds of what a build in progress needs; see schema.py.
NEEDED = {"inputs": [str], "sources": [str]}


def outputs(root):
    """Paths of the committed outputs."""
    references = References(root)
    return [references.path(name) for name in references.outputs()]


def kept_generations(root, keep):
    """Numbers that stay: the active one, the one before it, and the last `keep`. Raises StoreError.

    It does where nobody can tell which one is active: that one's outputs are in use.
    """
    known = generation.numbers(root)
    kept = set(known[-keep:])
    link = os.path.join(root, "current")
    current = generation.number_of(link)
    if current in known:
        kept |= {current, generation.read(root, current)["previous"]} & set(known)
    elif os.path.lexists(link):
        raise StoreError(
            "%s: found no link to a generation that is there; expected one of %s. Nothing was removed. Activate a "
            "generation, or run the play." % (link, ", ".join(str(one) for one in known) or "none")
        )
    return kept


def size_of(path):
    """Bytes that a file or tree takes on the disk, links not followed. What goes meanwhile takes none."""
    total = 0
    for directory, names, files in os.walk(path):
        for name in names + files:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512
    with contextlib.suppress(FileNotFoundError):
        total += os.lstat(path).st_blocks * 512
    return total


def is_held(root, key):
    """Return whether somebody makes an output, or builds it again."""
    return is_locked(lock_of(root, key))


def needs(root):
    """Needs of the builds in progress: (paths of outputs, sha256 of sources). Raises StoreError."""
    paths, sources = set(), set()
    directory = os.path.join(root, "build")
    for name in address.listing(directory):
        if not name.endswith(NEEDS) or not is_held(root, name[: -len(NEEDS)]):
            continue
        try:
            found = schema.read_json(os.path.join(directory, name), NEEDED)
        except FileNotFoundError:
            continue  # it has just ended
        except (OSError, ValueError) as error:
            raise StoreError(
                "%s: found nothing that can be read (%s); expected what a running build needs. Nothing more was "
                "removed. Wait for that build, then run again." % (os.path.join(directory, name), error)
            )
        paths.update(found["inputs"])
        sources.update(found["sources"])
    return paths, sources


def is_there(root, name):
    """Return whether anything stands in an output's place, but for the empty directory that a build fills."""
    path = os.path.join(root, "store", name)
    return os.path.lexists(path) and not disk.is_empty_directory(path)


def is_half_removed(root, name):
    """Return whether what stands in an output's place is none: an interrupted `rm -rf` leaves such."""
    return is_there(root, name) and not address.is_committed(os.path.join(root, "store", name))


def used_names(root):
    """Names of the outputs that processes use, whole or not; without the places that builders fill."""
    names = {address.name_of(path) for path in in_use(root)}
    return {
        name for name in names
        if is_there(root, name) and not (is_half_removed(root, name) and is_held(root, address.key_of_path(name)))
    }


class Usage:
    """Outputs that processes use, looked up again once a second: on a busy host, a look takes half of one."""

    def __init__(self, root):
        self.root, self.found, self.until = root, set(), 0.0

    def outputs(self):
        if time.monotonic() >= self.until:
            self.found = in_use(self.root)
            self.until = time.monotonic() + 1
        return self.found


def is_awaited(root, name):
    """Return whether somebody works on an output, or the next generation may hold it."""
    key = address.key_of_path(name)
    return is_held(root, key) or generation.is_expected(root, key)


def plan_published(directory, stay):
    """[(kind, path)] of what goes where a host publishes.

    What publishers that died have left; with `stay`, names of outputs, also what is published of others: the
    signature first, which says that all is there.
    """
    names = address.listing(directory) if directory else []
    # After the listing: a publisher that starts now is not in it.
    if not names or is_locked(lock_of_directory(directory)):
        return []
    found = [("leftover", name) for name in names if name.startswith(PUBLISHING)]
    if stay is not None:
        matches = [one for one in map(ARCHIVE.match, names) if one and one.group(1) not in stay]
        matches.sort(key=lambda one: (one.group(1), -ENDINGS.index(one.group(2))))
        found += [("archive", one.group()) for one in matches]
    return [(kind, os.path.join(directory, name)) for kind, name in found]


def plan(root, keep=KEEP, sources=False, published=None, archives=False, references=None):
    """List what a collection would remove: [{path, kind, bytes}], outputs before their inputs.

    keep: how many of the last generations stay, beside the active one and the one before it. sources: whether fetched
    files that no kept output names go as well. published: the directory that this host publishes into. archives:
    whether what is published there of outputs that are not kept goes as well. Raises StoreError for a `keep` that makes
    no sense, and where what is kept cannot be read.
    """
    if keep < 1:
        raise StoreError("keep: found %d; expected at least 1. Nothing was removed." % keep)
    kept = kept_generations(root, keep)
    named = {address.name_of(path) for number in kept for path in generation.read(root, number)["outputs"].values()}
    paths, fetched = needs(root)
    references = references or References(root)
    # A build with a missing input fails by itself.
    needed = {name for name in map(address.name_of, paths) if is_there(root, name)}
    committed = references.outputs()
    awaited = {name for name in committed if is_awaited(root, name)}
    alive = references.closure(named | used_names(root) | needed | awaited)
    found = []
    for number in generation.numbers(root):
        if number not in kept:
            found.append(("generation", os.path.join(root, "generations", str(number))))
    garbage = {name for name in committed if name not in alive and not references.is_copy(name)}
    found += [("output", references.path(name)) for name in references.in_order(garbage)]
    in_place = filter(address.OUTPUT.match, address.listing(references.store))
    found += [("leftover", references.path(name)) for name in in_place
              if is_half_removed(root, name) and not is_awaited(root, name)]
    directory = os.path.join(root, "sources")
    if sources:
        fetched = fetched.union(*(references.read(name)[1] for name in alive))
    for name in address.listing(directory):
        path, part = os.path.join(directory, name), PART.match(name)
        if part:
            goes = part.group(1) not in fetched and fetch.is_abandoned(path)
        else:
            goes = REJECTED.match(name) or (sources and name not in fetched and address.SHA256.match(name))
        if goes:
            found.append(("source", path))
    directory = os.path.join(root, TRASH)
    if disk.is_directory(directory):
        found += [("leftover", os.path.join(directory, name)) for name in address.listing(directory)]
    found += plan_published(published, alive if archives else None)
    return [{"kind": kind, "path": path, "bytes": size_of(path)} for kind, path in found]


@contextlib.contextmanager
def lock_if_there_is_room(path, wait):
    """Take a lock; yield whether it was taken. On a disk too full for a new one, nobody else can have it either."""
    lock = disk.Lock(path)
    try:
        taken = lock.acquire(wait)
    except StoreError:
        taken = True
    try:
        yield taken
    finally:
        if lock.stream:
            lock.release()


def leave_store(root, path, references, usage):
    """Move what lies in the store to the trash, unless somebody wants it by now. Returns its new path, or None.

    The caller keeps out who is about to want it.
    """
    name = address.name_of(path)
    with lock_if_there_is_room(lock_of(root, address.key_of_path(path)), wait=False) as free:
        wanted = not free or generation.is_expected(root, address.key_of_path(path))
        # Needs of builds before references: a build that ends in between is in one of the two lists.
        needed = {address.name_of(one) for one in needs(root)[0]}
        if wanted or name in needed or references.is_referred_to(name) or path in usage.outputs():
            return None
        return disk.set_aside(root, path)


def leave_sources(root, path, references):
    """Remove a fetched file, unless somebody wants it by now. Returns its path, or None."""
    name, fetched = os.path.basename(path), needs(root)[1]
    part = PART.match(name)
    if part:
        return path if part.group(1) not in fetched and fetch.is_abandoned(path, remove_tree) else None
    if name in fetched or references.is_source(name):
        return None
    remove_tree(path)
    return path


def leave_published(path, references):
    """Remove a published file of an output that is not kept. Returns its path; None where it stays."""
    name, directory = ARCHIVE.match(os.path.basename(path)).group(1), os.path.dirname(path)
    with lock_if_there_is_room(lock_of_directory(directory), wait=False) as free:
        # The output may have been built and published again.
        if not free or address.is_committed(references.path(name)):
            return None
        remove_tree(path)
        return path


def leave_place(root, kind, path, references, usage):
    """Take what `plan` names out of its place. Returns what of it is left to remove; None where it stays."""
    if kind == "generation":
        return disk.set_aside(root, path)
    if kind == "source":
        return leave_sources(root, path, references)
    if kind == "archive":
        return leave_published(path, references)
    return leave_store(root, path, references, usage) if os.path.dirname(path) == references.store else path


def remove(root, kind, path, references=None, usage=None):
    """Remove what `plan` names, unless somebody holds or needs it by now. Returns whether it went."""
    # Builds check their inputs under this lock, so they find an output whole or gone.
    with lock_if_there_is_room(lock_of(root, "removal"), wait=True):
        try:
            left = leave_place(root, kind, path, references or References(root), usage or Usage(root))
        except FileNotFoundError:
            left = None  # another run has removed it
    if left:
        remove_tree(left)
    return bool(left)


def collect(root, keep=KEEP, sources=False, published=None, archives=False):
    """Remove what `plan` names. Returns what was removed, in the form of `plan`. Raises StoreError."""
    os.makedirs(os.path.join(root, "locks"), exist_ok=True)
    removed, references, usage = [], References(root), Usage(root)
    with lock_if_there_is_room(lock_of(root, "generations"), wait=True):
        for item in plan(root, keep, sources, published, archives, references):
            try:
                if remove(root, item["kind"], item["path"], references, usage):
                    removed.append(item)
            except OSError as error:
                # On a full disk even the move may fail: go on, since the next removals free room.
                if error.errno != errno.ENOSPC:
                    raise StoreError(
                        "%s: could not be removed: %s. What was removed before it is gone, the rest is whole. Look at "
                        "the disk (`journalctl -k`), then run again." % (item["path"], error)
                    )
    return removed
