"""Which outputs running processes use, as the kernel tells."""

import os
import re

from . import address

# Rows of /proc/PID that name files of a process.
LINKS = ("exe", "cwd", "root")
# The path at the end of a line of /proc/PID/maps.
MAPPED = re.compile(br" (/.*)$", re.MULTILINE)


def files_of(process):
    """Paths that a process executes, stands in, holds open, maps, mounts or was started with. process: in /proc."""
    found = [os.path.join(process, name) for name in LINKS]
    try:
        found += [os.path.join(process, "fd", name) for name in os.listdir(os.path.join(process, "fd"))]
    except OSError:
        pass  # the process has ended, or may not be read
    for link in found:
        try:
            yield os.readlink(link)
        except OSError:
            pass
    try:
        with open(os.path.join(process, "maps"), "rb") as stream:
            for path in set(MAPPED.findall(stream.read())):
                yield os.fsdecode(path)
        # The kernel reports a container's paths, and an output may be mounted elsewhere there.
        with open(os.path.join(process, "mountinfo"), "rb") as stream:
            for line in stream:
                yield os.fsdecode(line.split()[3])
    except OSError:
        pass
    if os.path.basename(process) == str(os.getpid()):
        return  # the caller names the output
    try:
        with open(os.path.join(process, "cmdline"), errors="replace") as stream:
            for argument in stream.read().split("\0"):
                yield argument
    except OSError:
        pass


def in_use(root, proc="/proc"):
    """Outputs that a running process executes, maps, holds open, stands in, mounts or was started with.

    The last is for what Python reads once, or later: a script, and the environment of its interpreter. The kernel gives
    paths with links and mounts resolved. An output's name has its key and is found in any of them; an output that was
    moved, with a link in its place, is found by the target of that link.
    """
    store = os.path.join(root, "store")
    names = {name for name in address.listing(store) if address.OUTPUT.match(name)}
    moved = {os.path.realpath(os.path.join(store, name)): name for name in names
             if os.path.islink(os.path.join(store, name))}
    if not names:
        return set()
    paths = set()
    for pid in os.listdir(proc):
        if pid.isdigit():
            paths.update(files_of(os.path.join(proc, pid)))
    used = set()
    for path in paths:
        used.update(names.intersection(path.split("/")))
        used.update(name for target, name in moved.items() if (path + "/").startswith(target + "/"))
    return {os.path.join(store, name) for name in used}
