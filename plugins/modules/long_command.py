#!/usr/bin/python
"""Run a command that takes minutes, and outlives the connection to its host."""

DOCUMENTATION = r"""
module: long_command
short_description: Run a command that takes minutes, and outlives the connection to its host
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Runs a command on the host in a process of its own, and shows the last line that it printed until it has ended. A
    lost connection, or a play that somebody stops, does not end it. The same command of a later play waits for the one
    that runs, and takes its result.
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
  returned: where the command has ended
stdout:
  description: What it printed to its standard output.
  type: str
  returned: where the command has ended
stderr:
  description: What it printed to its standard error.
  type: str
  returned: where the command has ended
running:
  description: Whether it goes on.
  type: bool
  returned: always
progress:
  description: The last line that it printed.
  type: str
  returned: always
"""

import hashlib
import json
import os
import re
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils import jobs
from ansible_collections.kepler.vllm.plugins.module_utils.store.disk import Lock, is_locked, write_atomically

# Seconds that a call waits for the end: most commands of a play that changes little are short.
WAIT, POLL = 5.0, 0.05
# Most characters of a line that is shown, and lines of a failure.
WIDTH, LINES = 120, 12
UNSEEN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0e-\x1f]")


class Files(object):
    """What a command leaves on its host.

    Attributes:
        lock: is held while the command runs.
        result: a mapping with its exit status, as `rc`.
    """

    def __init__(self, directory, argv):
        self.directory = os.path.join(directory, hashlib.sha256(json.dumps(argv).encode()).hexdigest()[:16])
        names = ("lock", "result", "stdout", "stderr")
        self.lock, self.result, self.stdout, self.stderr = [os.path.join(self.directory, name) for name in names]


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


def progress_of(files):
    """The last line of what the command printed last."""
    found = [path for path in (files.stdout, files.stderr) if os.path.exists(path) and os.path.getsize(path)]
    lines = lines_of(read(max(found, key=os.path.getmtime))) if found else []
    return lines[-1][:WIDTH] if lines else "starting"


def work(files, lock, argv):
    """Run the command in the detached process, and leave its exit status."""
    # Python's own buffer, dnf's, would hide what it is at.
    environment = dict(os.environ, LC_ALL="C.UTF-8", PYTHONUNBUFFERED="1")
    with open(files.stdout, "wb") as stdout, open(files.stderr, "wb") as stderr:
        try:
            # The directory of the module goes with it.
            status = subprocess.call(
                argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment, cwd="/"
            )
        except OSError as error:
            stderr.write(("%s: %s\n" % (argv[0], error.strerror)).encode())
            status = 127
    write_atomically(files.result, {"rc": status})
    lock.release()


def answer(module, files):
    """End the module with what the command is at, or with its result."""
    if is_locked(files.lock):
        module.exit_json(changed=True, running=True, progress=progress_of(files))
    name = " ".join(module.params["argv"][:3])[:WIDTH]
    result = jobs.read(files.result, {"rc": int})
    if result is None:
        module.fail_json(
            msg="%s: the process that ran it ended without a result: somebody or the kernel may have killed it. Look "
            "at `journalctl -k` on the host, then run again." % name
        )
    stdout, stderr = [read(path) for path in (files.stdout, files.stderr)]
    told = {"rc": result["rc"], "stdout": stdout, "stderr": stderr, "running": False, "progress": ""}
    if result["rc"]:
        said = "\n".join((lines_of(stderr) or lines_of(stdout))[-LINES:])
        module.fail_json(
            msg="%s: found exit status %d; expected 0. %s on the host has all that it printed; its last lines:\n%s"
            % (name, result["rc"], files.directory, said), **told
        )
    module.exit_json(changed=True, **told)


def main():
    module = AnsibleModule(argument_spec={
        "argv": {"type": "list", "elements": "str", "required": True},
        "directory": {"type": "path", "default": "/run/kepler-commands"},
        "fresh": {"type": "bool", "default": True},
    })
    argv = module.params["argv"]
    if not argv:
        module.fail_json(msg="argv: found an empty list; expected a program and its arguments.")
    files = Files(module.params["directory"], argv)
    try:
        os.makedirs(files.directory, mode=0o700, exist_ok=True)
        lock = Lock(files.lock)
        if module.params["fresh"] and lock.acquire(wait=False):
            for path in (files.result, files.stdout, files.stderr):
                if os.path.exists(path):
                    os.unlink(path)
            # The process inherits the lock.
            jobs.start(lambda: work(files, lock, argv))
            lock.release()
    except OSError as error:
        module.fail_json(msg="directory: %s: %s. Make room there, or give another one." % (files.directory, error))
    end = time.time() + WAIT
    while is_locked(files.lock) and time.time() < end:
        time.sleep(POLL)
    answer(module, files)


if __name__ == "__main__":
    main()
