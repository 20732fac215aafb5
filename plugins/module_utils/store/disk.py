"""The store's work on a disk: locks, atomic writes, removal of trees."""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import stat

from .errors import StoreError

# Below the root: what has left its place and is being removed.
TRASH = "trash"


def set_umask():
    """Make new files readable for services even if the host's umask is 077."""
    os.umask(0o022)


def full_disk(what, path, error):
    """The StoreError for an OSError of a full disk; any other error as it is. path: what was to be written."""
    if error.errno != errno.ENOSPC:
        return error
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return StoreError(
        "%s: the disk of %s is full: %.1f GB are free. Nothing was committed. Make room (`kepler-store gc --dry-run` "
        "says what can go), then run again." % (what, path, shutil.disk_usage(path).free / 1e9)
    )


def open_private(path, flags):
    """Open a file that serves as a lock, made if it is missing. Who may open it may lock it: its owner alone."""
    handle = os.open(path, flags | os.O_CREAT, 0o600)
    if stat.S_IMODE(os.fstat(handle).st_mode) & 0o077:
        os.fchmod(handle, 0o600)
    return handle


def lock_of(root, name):
    """Path of a lock of the store: a key, "generations", or "removal".

    "generations" is locked by who makes or activates one, and through a collection. "removal" is locked briefly: while
    something leaves its place, and while a run makes sure that what it wants is there and stays.
    """
    return os.path.join(root, "locks", name)


class Lock:
    """A lock that the kernel takes back when its holder dies, however it dies."""

    def __init__(self, path):
        self.path, self.stream = path, None

    def acquire(self, wait=True, shared=False):
        """Take the lock and return True; without `wait`, return False if somebody else has it.

        shared: others may hold it as well who share it. Raises StoreError where the disk is too full for a new lock.
        """
        try:
            stream = os.fdopen(open_private(self.path, os.O_RDWR), "r+b")
        except OSError as error:
            raise full_disk(self.path, self.path, error)
        try:
            fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            stream.close()
            return False
        self.stream = stream
        return True

    def release(self):
        self.stream.close()
        self.stream = None


@contextlib.contextmanager
def locked(path, wait=True, shared=False):
    """Take a lock; yield whether it was taken, which without `wait` it may not be."""
    lock = Lock(path)
    taken = lock.acquire(wait, shared)
    try:
        yield taken
    finally:
        if taken:
            lock.release()


def is_locked(path):
    """Return whether somebody holds a lock. Looks only: a full disk has no room for a new one."""
    if not os.path.exists(path):
        return False
    with locked(path, wait=False) as free:
        return not free


def write_atomically(path, content):
    """Replace the file `path` by JSON of `content` in one step."""
    temporary = path + ".new"
    try:
        remove_tree(temporary)
        with open(temporary, "w") as stream:
            json.dump(content, stream, sort_keys=True)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, path)
    except OSError:
        # Remove the partial file: the disk may be full.
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def is_directory(path):
    """Return whether a directory lies at `path` itself, and no link to one."""
    return os.path.isdir(path) and not os.path.islink(path)


def is_no_file(path):
    """Return whether something other than a regular file lies at `path`."""
    try:
        return not stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def is_empty_directory(path):
    return is_directory(path) and not os.listdir(path)


def check_not_mounted(path):
    """Raise StoreError if something is mounted on a tree or within: its removal would empty another disk."""
    real = os.path.realpath(path)
    with open("/proc/self/mountinfo", errors="surrogateescape") as stream:
        points = [line.split()[4] for line in stream]
    for point in points:
        # Blanks are written in octal.
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code.group(1), 8)), point)
        if point == real or point.startswith(real + "/"):
            raise StoreError(
                "%s: found a mount at %s; expected none in what is to be removed. Nothing of it was removed. Unmount "
                "it (`umount %s`), then run again." % (path, point, point)
            )


def remove_tree(path):
    """Remove what lies at `path`, be it a tree whose directories may not be written. Nothing behind a link changes.

    Raises StoreError if something is mounted there.
    """
    while os.path.lexists(path):
        if is_directory(path):
            check_not_mounted(path)
        try:
            if not is_directory(path):
                os.unlink(path)
                continue
            for directory, _names, _files in os.walk(path):
                os.chmod(directory, 0o755)
            shutil.rmtree(path)
        except FileNotFoundError:
            pass  # another run has removed it


def set_aside(root, path):
    """Move what lies at `path` out of its place by one rename: a kill leaves it whole, or out of its place.

    Returns its path in the trash, from which the caller, or the next collection, removes it.
    """
    trash = os.path.join(root, TRASH)
    if not is_directory(trash):
        remove_tree(trash)
        os.makedirs(trash, exist_ok=True)
    if is_directory(path):
        check_not_mounted(path)
    aside = os.path.join(trash, "%s.%d" % (os.path.basename(path), os.getpid()))
    while os.path.lexists(aside):
        aside += "+"
    os.rename(path, aside)
    return aside
