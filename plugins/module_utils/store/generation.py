"""Generations: numbered sets of outputs, one of them active."""

import json
import os
import time

from . import address
from .build import Lock, remove_tree, write_atomically
from .errors import StoreError

SAME = ("outputs", "kernel", "driver", "lock_hash")


def number_of(link):
    """Number of the generation that the link `current` names; None where there is none."""
    try:
        return int(os.path.basename(os.readlink(link)))
    except (OSError, ValueError):
        return None


def read(root, number):
    """What generation `number` holds."""
    with open(os.path.join(root, "generations", str(number), "generation.json")) as stream:
        return json.load(stream)


def differs(root, wanted):
    """Whether the active generation is another one than `wanted` (a mapping with the fields of SAME)."""
    current = number_of(os.path.join(root, "current"))
    if current is None:
        return True
    found = read(root, current)
    return any(found[field] != wanted[field] for field in SAME)


def activate(root, number):
    """Make `number` the active generation: one rename, so that `current` always names a whole one."""
    link = os.path.join(root, "current")
    temporary = link + ".new"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(os.path.join("generations", str(number)), temporary)
    os.rename(temporary, link)


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
    numbers = [int(name) for name in os.listdir(directory) if name.isdigit()]
    number = max(numbers or [0]) + 1
    temporary = os.path.join(directory, ".new-%d" % number)
    remove_tree(temporary)
    os.makedirs(temporary)
    for name, path in wanted["outputs"].items():
        os.symlink(path, os.path.join(temporary, name))
    described = dict(wanted, time=time.time(), previous=number_of(os.path.join(root, "current")))
    write_atomically(os.path.join(temporary, "generation.json"), described)
    os.rename(temporary, os.path.join(directory, str(number)))
    return number


def ensure(root, wanted):
    """Make `wanted` the active generation. Returns (number, whether anything was changed)."""
    lock = Lock(os.path.join(root, "locks", "generations"))
    lock.acquire()
    try:
        if not differs(root, wanted):
            return number_of(os.path.join(root, "current")), False
        number = create(root, wanted)
        activate(root, number)
        return number, True
    finally:
        lock.release()
