"""Kills a process at every step that it takes on the file system. Runs on Python 3.6 too."""

import builtins
import os
import signal

# What changes a file system, as the store calls it.
STEPS = ("chmod", "fsync", "link", "makedirs", "mkdir", "rename", "rmdir", "symlink", "sync", "unlink", "utime")


def die_at(point):
    """Let this process die by SIGKILL just before its step number `point`."""
    taken = [0]

    def counted(step):
        def run(*arguments, **options):
            taken[0] += 1
            if taken[0] == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **options)

        return run

    def opens(path, mode="r", *arguments, **options):
        return (writes if set(mode) & set("wa+") else reads)(path, mode, *arguments, **options)

    reads = builtins.open
    writes = counted(reads)
    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    builtins.open = opens


def walk(prepare, act, check):
    """Run `act` once for each step that it takes, killed before that step; then once to its end.

    prepare: makes a fresh state. act: runs on it in a process of its own. check: called with the state after each
    death. Returns the number of deaths.
    """
    point = 0
    while True:
        point += 1
        state = prepare()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                die_at(point)
                act(state)
                status = 0
            finally:
                os._exit(status)
        status = os.waitpid(child, 0)[1]
        check(state)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, "the run that nobody killed failed"
            return point - 1
        assert os.WTERMSIG(status) == signal.SIGKILL
