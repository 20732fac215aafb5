"""Generations: numbered sets of outputs, one of them active."""

import contextlib
import os
import time

from . import address
from .build import Lock, full_disk, remove_tree, write_atomically
from .errors import StoreError

SAME = ("outputs", "kernel", "driver", "lock_hash")
FIELDS = SAME + ("previous", "time")
# The link beside `current` that names the generation that `previous` led to, while that is the active one.
BACK = "rolled-back"


@contextlib.contextmanager
def locked(root):
    """Hold the lock of the generations: the lock. Raises StoreError where the disk is too full for what is done."""
    lock = Lock(os.path.join(root, "locks", "generations"))
    lock.acquire()
    try:
        yield lock
    except OSError as error:
        raise full_disk("generation", os.path.join(root, "generations"), error)
    finally:
        lock.release()


def number_of(link):
    """Number of the generation that the link `current` names; None where there is none."""
    try:
        return int(os.path.basename(os.readlink(link)))
    except (OSError, ValueError):
        return None


def read(root, number):
    """What generation `number` holds. Raises StoreError where that cannot be read."""
    path = os.path.join(root, "generations", str(number), "generation.json")
    try:
        return address.read_json(path, FIELDS)
    except (OSError, ValueError) as error:
        raise StoreError(
            "generation %s: found nothing that can be read (%s); expected what the generation holds in %s. Look at the "
            "disk (`journalctl -k`), remove that generation, and activate another one or run the play."
            % (number, error, path)
        )


def differs(root, wanted):
    """Whether the active generation is another one than `wanted` (a mapping with the fields of SAME)."""
    current = number_of(os.path.join(root, "current"))
    if current is None:
        return True
    try:
        found = read(root, current)
    except StoreError:
        return True  # a new one takes the place of what cannot be read
    return any(found[field] != wanted[field] for field in SAME)


def point(root, name, number):
    """Let the link `name` name generation `number`: one rename, so that it always names a whole one."""
    link = os.path.join(root, name)
    temporary = link + ".new"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(os.path.join("generations", str(number)), temporary)
    os.rename(temporary, link)


def activate(root, number, back=False):
    """Make `number` the active generation. back: whether "previous" led to it, and is to lead there again."""
    link = os.path.join(root, BACK)
    if back:
        point(root, BACK, number)
    point(root, "current", number)
    if not back and os.path.lexists(link):
        os.unlink(link)


def create(root, wanted):
    """Write a new generation of `wanted` and return its number.

    Raises StoreError for an output that is not in the store.
    """
    for name, path in sorted(wanted["outputs"].items()):
        if not address.is_committed(path):
            raise StoreError(
                "outputs.%s: found %s, which is not in the store; expected a committed output. Run the whole play."
                % (name, path)
            )
    directory = os.path.join(root, "generations")
    os.makedirs(directory, exist_ok=True)
    number = max(numbers(root) or [0]) + 1
    temporary = os.path.join(directory, ".new-%d" % number)
    remove_tree(temporary)
    try:
        os.makedirs(temporary)
        for name, path in wanted["outputs"].items():
            os.symlink(path, os.path.join(temporary, name))
        described = dict(wanted, time=time.time(), previous=number_of(os.path.join(root, "current")))
        write_atomically(os.path.join(temporary, "generation.json"), described)
        os.rename(temporary, os.path.join(directory, str(number)))
    except OSError:
        remove_tree(temporary)
        raise
    return number


def ensure(root, wanted):
    """Make `wanted` the active generation. Returns (number, whether anything was changed)."""
    with locked(root) as lock:
        if not differs(root, wanted):
            return number_of(os.path.join(root, "current")), False
        number = create(root, wanted)
        # Outputs that are committed from here on are in no generation yet.
        os.utime(lock.path)
        try:
            activate(root, number)
        except OSError:
            if number_of(os.path.join(root, "current")) != number:
                remove_tree(os.path.join(root, "generations", str(number)))
            raise
        return number, True


def numbers(root):
    """Numbers of the generations that there are, in their order."""
    try:
        return sorted(int(name) for name in os.listdir(os.path.join(root, "generations")) if name.isdigit())
    except OSError:
        return []


def resolve(root, which):
    """Number of the generation that `which` names: a number, or "previous", the one before the active one.

    Where "previous" led to the active one, that is the one: a run that is repeated goes back no further. Raises
    StoreError where there is none.
    """
    known = numbers(root)
    current = number_of(os.path.join(root, "current"))
    number = which
    if which == "previous":
        number = None
        if current in known:
            back = number_of(os.path.join(root, BACK))
            number = current if back == current else read(root, current)["previous"]
    if number in known:
        return number
    raise StoreError(
        "generation: found %s, and generations %s in %s (active: %s); expected one of them. `kepler-store list` shows "
        "them."
        % (which, ", ".join(str(one) for one in known) or "none", os.path.join(root, "generations"), current or "none")
    )


def check_fits(root, number, kernel, driver, force=False):
    """Raise StoreError where a generation was proven with another kernel or driver than the host's, or is not whole."""
    described = read(root, number)
    for name, path in sorted(described["outputs"].items()):
        if not address.is_committed(path):
            raise StoreError(
                "generation %d: its output %s, %s, is not in the store any more; expected a whole one. Activate "
                "another generation, or run the play that builds it." % (number, name, path)
            )
    for what, found in (("kernel", kernel), ("driver", driver)):
        if described[what] != found and not force:
            raise StoreError(
                "generation %d: found %s %s on the host; it was proven with %s. Bring that %s back, choose another "
                "generation, or set store_generation_force to true if you know that it runs."
                % (number, what, found, described[what], what)
            )


def switch(root, which, kernel, driver, force=False):
    """Activate a generation that is there. Returns (number, whether anything was changed).

    which: a number, or "previous"; see `resolve`. kernel, driver: of the host. force: whatever those are. Raises
    StoreError.
    """
    with locked(root):
        number = resolve(root, which)
        check_fits(root, number, kernel, driver, force)
        if number == number_of(os.path.join(root, "current")):
            return number, False
        activate(root, number, which == "previous")
        return number, True
