#!/usr/bin/python
"""Run a command that takes minutes, and outlives the connection to its host."""

DOCUMENTATION = r"""
module: long_command
short_description: Run a command that takes minutes, and outlives the connection to its host
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Runs a command on the host in a process of its own, and shows the last line that it printed until it has ended. A
    lost connection, or a play that somebody stops, does not end it.
  - A host runs one such command at a time. A later play takes the result of the same command while it runs, and waits
    for another one; C(argv=["true"]) does nothing else.
  - The command has no standard input, and prints in the locale C.UTF-8.
options:
  argv:
    description: The program, on the host's C(PATH) or with its whole path, and its arguments. No shell reads them.
    type: list
    elements: str
    required: true
  directory:
    description: Where the host keeps what commands print. It need not survive a reboot, which no command survives.
    type: path
    default: /run/kepler-commands
  fresh:
    description: Whether this is the first call of a task. The action plugin sets it.
    type: bool
    default: true
attributes:
  check_mode:
    support: none
    description: A dry run leaves the task out.
"""

EXAMPLES = r"""
- name: Build the modules of all packages
  kepler.vllm.long_command:
    argv: [dkms, autoinstall]
"""

RETURN = r"""
rc:
  description: The exit status; the number of the signal that ended the command, negative; 127 where it did not start.
  type: int
  returned: where the command has ended and left a result
stdout:
  description: What it printed to its standard output.
  type: str
  returned: with C(rc)
stderr:
  description: What it printed to its standard error.
  type: str
  returned: with C(rc)
running:
  description: Whether it goes on.
  type: bool
  returned: always
progress:
  description: The last line that it printed.
  type: str
  returned: always
"""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils import jobs
from ansible_collections.kepler.vllm.plugins.module_utils.store.disk import Lock, is_locked, write_atomically
from ansible_collections.kepler.vllm.plugins.module_utils.store.errors import StoreError

# Seconds that a call waits for the end: most commands of a play that changes little are short.
WAIT, POLL = 5.0, 0.05
# Seconds after which a lock is held by a command, and not by somebody who looks at it.
HELD = 0.2
# Most characters of a line that is shown, and lines of a failure.
WIDTH, LINES = 120, 12
UNSEEN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0e-\x1f]")


class Command(object):
    """A command, and what it leaves on its host.

    Attributes:
        pid: its process; 0 before it has one.
        began: when that began, as the kernel tells it; empty if it had ended by then.
        result: a mapping with its exit status, as `rc`.
    """

    def __init__(self, root, argv, pid=0, began=""):
        self.root, self.argv, self.pid, self.began = root, argv, pid, began
        key = hashlib.sha256(json.dumps(argv).encode()).hexdigest()[:16]
        self.directory = os.path.join(root, key)
        self.result, self.stdout, self.stderr = [
            os.path.join(self.directory, name) for name in ("result", "stdout", "stderr")
        ]

    def name(self):
        """What it is called where people read it."""
        return " ".join(self.argv[:3])[:WIDTH]

    def has_result(self):
        return os.path.exists(self.result)

    def forget(self):
        """Remove the result of an earlier run."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.result)

    def record(self):
        """Write down that this is the command that the host runs."""
        write_atomically(
            os.path.join(self.root, "running"), {"argv": self.argv, "pid": self.pid, "began": self.began}
        )

    def goes_on(self):
        """Whether its process lives, be it without the one that keeps it."""
        return self.began != "" and began(self.pid) == self.began


def last_command(root):
    """The command that the host runs or ran last; None before the first."""
    found = jobs.read(os.path.join(root, "running"), {"argv": [str], "pid": int, "began": str})
    return Command(root, **found) if found else None


def began(pid):
    """When a process began, in the kernel's ticks; empty where there is none, or only its exit status is left."""
    fields = read("/proc/%d/stat" % pid).rpartition(")")[2].split()
    return fields[19] if fields and fields[0] != "Z" else ""


def read(path):
    """A file's text; empty if there is none."""
    try:
        with open(path, "rb") as stream:
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""


def lines_of(text):
    """The lines of a text as a terminal leaves them, without those that are empty."""
    lines = [" ".join(UNSEEN.sub("", line).split()) for line in re.split(r"[\r\n]", text)]
    return [line for line in lines if line]


def progress_of(command):
    """The last line of what the command printed last."""
    found = [path for path in (command.stdout, command.stderr) if os.path.exists(path) and os.path.getsize(path)]
    lines = lines_of(read(max(found, key=os.path.getmtime))) if found else []
    return lines[-1][:WIDTH] if lines else "starting"


def work(command, lock):
    """Run a command in the detached process, and leave its exit status."""
    # Python's own buffer, dnf's, would hide what it is at.
    environment = dict(os.environ, LC_ALL="C.UTF-8", PYTHONUNBUFFERED="1")
    # Room for the result, should the disk be full by then.
    with open(command.stdout, "wb") as stdout, open(command.stderr, "wb") as stderr, \
            open(command.result + ".new", "w") as result:
        result.write(" " * 64)
        result.flush()
        try:
            # The directory of the module goes with it.
            process = subprocess.Popen(
                command.argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment, cwd="/"
            )
            command.pid, command.began = process.pid, began(process.pid)
            with contextlib.suppress(OSError):
                command.record()
            status = process.wait()
        except OSError as error:
            stderr.write(("%s: %s\n" % (command.argv[0], error.strerror)).encode())
            status = 127
        result.seek(0)
        json.dump({"rc": status}, result)
    os.rename(command.result + ".new", command.result)
    lock.release()


def start(command):
    """Start a command unless one goes on, which may be the same one of another play."""
    lock, end = Lock(os.path.join(command.root, "lock")), time.time() + HELD
    while not lock.acquire(wait=False):
        if time.time() > end:
            return
        time.sleep(POLL)
    last = last_command(command.root)
    if last is None or not last.goes_on():
        os.makedirs(command.directory, mode=0o700, exist_ok=True)
        command.forget()
        command.record()
        # The process inherits the lock.
        jobs.start(lambda: work(command, lock))
    lock.release()


def answer(module, command):
    """End the module with the result of the command that has ended."""
    result = jobs.read(command.result, {"rc": int})
    if result is None:
        module.fail_json(
            msg="%s: the process that ran it ended without a result: somebody or the kernel may have killed it. Look "
            "at `journalctl -k` on the host, then run again." % command.name()
        )
    stdout, stderr = [read(path) for path in (command.stdout, command.stderr)]
    told = {"rc": result["rc"], "stdout": stdout, "stderr": stderr, "running": False, "progress": ""}
    if result["rc"]:
        said = "\n".join((lines_of(stderr) or lines_of(stdout))[-LINES:])
        module.fail_json(
            msg="%s: found exit status %d; expected 0. %s on the host has all that it printed; its last lines:\n%s"
            % (command.name(), result["rc"], command.directory, said), **told
        )
    module.exit_json(changed=True, **told)


def main():
    module = AnsibleModule(argument_spec={
        "argv": {"type": "list", "elements": "str", "required": True},
        "directory": {"type": "path", "default": "/run/kepler-commands"},
        "fresh": {"type": "bool", "default": True},
    })
    if not module.params["argv"]:
        module.fail_json(msg="argv: found an empty list; expected a program and its arguments.")
    root, fresh = module.params["directory"], module.params["fresh"]
    command = Command(root, module.params["argv"])

    def is_last():
        last = last_command(root)
        return last is not None and last.argv == command.argv

    def goes_on():
        last = last_command(root)
        return is_locked(os.path.join(root, "lock")) or (last is not None and last.goes_on())

    try:
        os.makedirs(root, mode=0o700, exist_ok=True)
        if fresh or not (command.has_result() or is_last()):
            start(command)
        if fresh and not is_last():
            command.forget()
        end = time.time() + WAIT
        while not command.has_result() and goes_on() and time.time() < end:
            time.sleep(POLL)
    except (OSError, StoreError) as error:
        module.fail_json(msg="directory: %s: %s. Make room there, or give another one." % (root, error))
    if not command.has_result() and (goes_on() or not is_last()):
        last = last_command(root) or command
        progress = progress_of(last)
        if last.argv != command.argv:
            progress = "waits for %s (process %d): %s" % (last.name(), last.pid, progress)
        module.exit_json(changed=True, running=True, progress=progress)
    answer(module, command)


if __name__ == "__main__":
    main()
