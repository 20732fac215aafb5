"""Find what keeps an unprivileged user from reading a file, or a directory and all below it."""

import contextlib
import grp
import os
import pwd
import stat

# Files and directories that are looked at below one directory; a model has a few dozen.
LIMIT = 5000
# Root's own at the top of an ext4 file system.
NOT_OURS = "lost+found"


class AsUser(object):
    """Tries as the user itself, so that ACLs and network file systems have their say."""

    def __init__(self, entry):
        self.entry = entry

    @contextlib.contextmanager
    def __call__(self):
        """Give up the rights of root for a while."""
        try:
            group = grp.getgrnam(self.entry.pw_name).gr_gid  # as the unit has it
        except KeyError:
            group = self.entry.pw_gid
        groups, own_group = os.getgroups(), os.getegid()
        os.setgroups(os.getgrouplist(self.entry.pw_name, group))
        os.setegid(group)
        os.seteuid(self.entry.pw_uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(own_group)
            os.setgroups(groups)

    def can_enter(self, directory):
        return not raises(os.stat, os.path.join(directory, "."))

    def can_list(self, directory):
        return not raises(os.listdir, directory)

    def can_read(self, path):
        # A pipe would wait for its writer.
        return not raises(lambda: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK)))


class AsStranger(object):
    """Judges by modes what a user can do that does not exist yet, and so owns nothing and is in no group."""

    @contextlib.contextmanager
    def __call__(self):
        yield

    def can_enter(self, directory):
        return bool(os.stat(directory).st_mode & stat.S_IXOTH)

    can_list = can_read = lambda self, path: bool(os.stat(path).st_mode & stat.S_IROTH)


def raises(function, *arguments):
    """Return whether a call ends with OSError."""
    try:
        function(*arguments)
    except OSError:
        return True
    return False


def directories_above(path):
    """Directories from the root to the one that holds `path`."""
    found = []
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        found.append(path)
    return found[::-1]


def all_below(directory):
    """[(path, whether it is a directory)] of files and directories below a directory: none hidden, LIMIT at most."""
    found = []
    for root, names, files in os.walk(directory):
        names[:] = sorted(name for name in names if not name.startswith(".") and name != NOT_OURS)
        found += [(os.path.join(root, name), True) for name in names]
        paths = [os.path.join(root, name) for name in sorted(files) if not name.startswith(".")]
        # Neither links to nothing nor sockets.
        found += [(path, False) for path in paths if os.path.isfile(path)]
        if len(found) > LIMIT:
            break
    return found[:LIMIT]


def blocked_above(path, reader):
    """The first directory that keeps a reader from `path`; None without one."""
    # A link is passed on its own way first, then on that of its target.
    for way in (os.path.abspath(path), os.path.realpath(path)):
        for directory in directories_above(way):
            if not reader.can_enter(directory):
                return directory
    return None


def first_blocked(entries, reader):
    """The first of `entries`, as all_below gives them, that a reader cannot read, or what is above it; else None."""
    for path, is_directory in entries:
        # The modes of a link say nothing about the path that it leads through.
        blocked = blocked_above(path, reader) if os.path.islink(path) else None
        if blocked:
            return blocked
        if not (reader.can_enter(path) and reader.can_list(path) if is_directory else reader.can_read(path)):
            return blocked_above(path, reader) or path
    return None


def owner_name(uid):
    """Name of a user, or the number of one without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def unreadable(path, user):
    """{path, found} of what keeps `user` from reading `path`, a file or a directory; None if nothing does.

    A path that is not there, or that root itself cannot reach, is no matter of the user: None.
    """
    try:
        os.stat(path)
        entry = pwd.getpwnam(user)
    except OSError:
        return None
    except KeyError:
        entry = None
    # root lists the directory, so the list has entries that the user cannot see.
    entries = [(path, os.path.isdir(path))] + all_below(path)
    reader = AsUser(entry) if entry and os.geteuid() == 0 else AsStranger()
    with reader():
        blocked = blocked_above(path, reader) or first_blocked(entries, reader)
    if blocked is None:
        return None
    try:
        status = os.stat(blocked)
        found = "mode %04o, owner %s" % (stat.S_IMODE(status.st_mode), owner_name(status.st_uid))
    except OSError as error:
        found = error.strerror
    return {"path": blocked, "found": found}
