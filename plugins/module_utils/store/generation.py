"""Generations: numbered sets of outputs, one of them active."""

import contextlib
import os
import re
import time

from . import address, disk, schema
from .disk import full_disk, remove_tree, write_atomically
from .errors import StoreError
from .references import References

SAME = ("outputs", "kernel", "driver", "lock_hash")
# Kinds of what a generation holds; see schema.py.
FIELDS = {
    "outputs": {str: str}, "kernel": str, "driver": str, "lock_hash": str, "previous": schema.is_natural_or_none,
    "time": schema.is_number,
}
NUMBER = re.compile(r"[1-9][0-9]*\Z")
# The lock of an output has for its time the number of the generation that may come to hold it. An older version of this
# code left times of the clock there, which are larger.
NO_CLOCK = 10 ** 8
# The link beside `current` that names the generation that `previous` led to, while that is the active one.
BACK = "rolled-back"


@contextlib.contextmanager
def locked(root):
    """Hold the lock of the generations. Raises StoreError where the disk is too full for what is done."""
    with disk.locked(disk.lock_of(root, "generations")):
        try:
            yield
        except OSError as error:
            raise full_disk("generation", os.path.join(root, "generations"), error)


def number_of(link):
    """Number of the generation that the link `current` names; None where there is none."""
    try:
        name = os.path.basename(os.readlink(link))
    except OSError:
        return None
    return int(name) if NUMBER.match(name) else None


def numbers(root):
    """Numbers of the generations that there are, in their order."""
    return sorted(int(name) for name in address.listing(os.path.join(root, "generations")) if NUMBER.match(name))


def next_number(root):
    """Number of the generation that is made next."""
    return max(numbers(root) or [0]) + 1


def expect(root, key):
    """Note that the next generation may hold an output: a collection before that leaves it.

    The note is the number of that generation, since clocks go back; and no file of its own, since a disk may be full.
    """
    number = next_number(root)
    path = disk.lock_of(root, key)
    try:
        os.close(disk.open_private(path, os.O_RDWR))
    except OSError as error:
        raise full_disk(path, path, error)
    os.utime(path, (number, number))


def is_expected(root, key):
    """Return whether an output was made, or found, since the last generation was made; true before the first."""
    number = next_number(root)
    try:
        return number == 1 or number <= os.stat(disk.lock_of(root, key)).st_mtime < NO_CLOCK
    except OSError:
        return False


def read(root, number):
    """Read generation `number`. Raises StoreError if it cannot be read."""
    path = os.path.join(root, "generations", str(number), "generation.json")
    try:
        described = schema.read_json(path, FIELDS)
        # An earlier release recorded none.
        described.setdefault("packages", [])
        wrong = schema.misfit(described, {"packages": [str]})
        if wrong:
            raise ValueError(wrong)
        return described
    except (OSError, ValueError) as error:
        raise StoreError(
            "generation %s: found nothing that can be read (%s); expected what the generation holds in %s. Look at the "
            "disk (`journalctl -k`), remove that generation, and activate another one or run the play."
            % (number, error, path)
        )


def changed(root, wanted):
    """Return whether `wanted`, a mapping with the fields of SAME, is not the active generation."""
    current = number_of(os.path.join(root, "current"))
    if current is None:
        return True
    try:
        found = read(root, current)
    except StoreError:
        return True  # an unreadable file is replaced
    return any(found[field] != wanted[field] for field in SAME)


def set_link(root, name, number):
    """Point the link `name` to generation `number` by one rename, so that it always names a whole one."""
    link = os.path.join(root, name)
    temporary = link + ".new"
    remove_tree(temporary)
    os.symlink(os.path.join("generations", str(number)), temporary)
    os.rename(temporary, link)


def activate(root, number, back=False):
    """Make `number` the active generation. back: whether "previous" led to it, and is to lead there again."""
    link = os.path.join(root, BACK)
    if back:
        set_link(root, BACK, number)
    set_link(root, "current", number)
    if not back and os.path.lexists(link):
        os.unlink(link)


def check_whole(root, outputs):
    """Raise StoreError if something is not there that the outputs refer to, directly or not."""
    References(root).closure({address.name_of(path) for path in outputs.values()})


def create(root, wanted, packages):
    """Write a new generation of `wanted` and return its number. packages: the NEVRAs to record with it.

    Raises StoreError for an output that is not in the store.
    """
    for name, path in sorted(wanted["outputs"].items()):
        if not address.is_committed(path or ""):
            raise StoreError(
                "outputs.%s: found %s, which is not in the store; expected a committed output. Run the whole play."
                % (name, path)
            )
    check_whole(root, wanted["outputs"])
    directory = os.path.join(root, "generations")
    os.makedirs(directory, exist_ok=True)
    number = next_number(root)
    temporary = os.path.join(directory, ".new-%d" % number)
    remove_tree(temporary)
    try:
        os.makedirs(temporary)
        for name, path in wanted["outputs"].items():
            os.symlink(path, os.path.join(temporary, name))
        described = dict(wanted, packages=packages, time=time.time(), previous=number_of(os.path.join(root, "current")))
        write_atomically(os.path.join(temporary, "generation.json"), described)
        os.rename(temporary, os.path.join(directory, str(number)))
    except OSError:
        remove_tree(temporary)
        raise
    return number


def ensure(root, wanted, packages=()):
    """Make `wanted` the active generation. Returns (number, whether anything was changed).

    packages: NEVRAs of what is installed on the host, which a new generation records.
    """
    with locked(root):
        if not changed(root, wanted):
            return number_of(os.path.join(root, "current")), False
        number = create(root, wanted, list(packages))
        try:
            activate(root, number)
        except OSError:
            if number_of(os.path.join(root, "current")) != number:
                remove_tree(os.path.join(root, "generations", str(number)))
            raise
        return number, True


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
    place = os.path.join(root, "generations")
    if not known:
        raise StoreError("generation: found none in %s; expected one to go to. Run site.yml for this host." % place)
    raise StoreError(
        "generation: found %s, and generations %s in %s (active: %s); expected one of them%s. `kepler-store list` "
        "shows them." % (which, ", ".join(map(str, known)), place, current or "none",
                         ", since none was active before" if which == "previous" else "")
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
    check_whole(root, described["outputs"])
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
