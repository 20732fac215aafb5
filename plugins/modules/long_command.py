#!/usr/bin/python
"""Run a command that takes minutes, and outlives the connection to its host."""

DOCUMENTATION = r"""
module: long_command
short_description: Run a command that takes minutes, and outlives the connection to its host
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Runs a command on the host in a process of its own, and shows the last line that it printed until it has ended. A
    lost connection, or a play that somebody stops, does not end it. A later play takes the result of the same command
    while it runs, and does not start the same program with other arguments before that has ended.
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


class Program(object):
    """A program on its host, which one command at a time runs.

    Attributes:
        lock: is held while a command runs.
        running: a mapping with the directory of the command that runs or ran last, as `command`.
    """

    def __init__(self, directory, argv):
        self.directory = os.path.join(directory, os.path.basename(argv[0]))
        self.lock, self.running = [os.path.join(self.directory, name) for name in ("lock", "running")]

    def command(self):
        """The command that runs or ran last; None before the first."""
        found = jobs.read(self.running, {"command": str})
        return Command(found["command"]) if found else None

    def last(self, command):
        """Whether `command` runs or ran last."""
        found = self.command()
        return found is not None and found.directory == command.directory


class Command(object):
    """What a command leaves on its host.

    Attributes:
        result: a mapping with its exit status, as `rc`.
    """

    def __init__(self, directory):
        self.directory = directory
        self.result, self.stdout, self.stderr = [
            os.path.join(directory, name) for name in ("result", "stdout", "stderr")
        ]

    def has_result(self):
        return os.path.exists(self.result)

    def forget(self):
        """Remove the result of an earlier run."""
        if self.has_result():
            os.unlink(self.result)


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


def work(command, lock, argv):
    """Run a command in the detached process, and leave its exit status."""
    # Python's own buffer, dnf's, would hide what it is at.
    environment = dict(os.environ, LC_ALL="C.UTF-8", PYTHONUNBUFFERED="1")
    os.makedirs(command.directory, mode=0o700, exist_ok=True)
    with open(command.stdout, "wb") as stdout, open(command.stderr, "wb") as stderr:
        try:
            # The directory of the module goes with it.
            status = subprocess.call(
                argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment, cwd="/"
            )
        except OSError as error:
            stderr.write(("%s: %s\n" % (argv[0], error.strerror)).encode())
            status = 127
    write_atomically(command.result, {"rc": status})
    lock.release()


def start(program, command, argv):
    """Start a command unless its program runs: then another play's, which may be the same one, goes on."""
    lock = Lock(program.lock)
    if lock.acquire(wait=False):
        command.forget()
        write_atomically(program.running, {"command": command.directory})
        # The process inherits the lock.
        jobs.start(lambda: work(command, lock, argv))
        lock.release()


def answer(module, command):
    """End the module with the result of the command that has ended."""
    name = " ".join(module.params["argv"][:3])[:WIDTH]
    result = jobs.read(command.result, {"rc": int})
    if result is None:
        module.fail_json(
            msg="%s: the process that ran it ended without a result: somebody or the kernel may have killed it. Look "
            "at `journalctl -k` on the host, then run again." % name
        )
    stdout, stderr = [read(path) for path in (command.stdout, command.stderr)]
    told = {"rc": result["rc"], "stdout": stdout, "stderr": stderr, "running": False, "progress": ""}
    if result["rc"]:
        said = "\n".join((lines_of(stderr) or lines_of(stdout))[-LINES:])
        module.fail_json(
            msg="%s: found exit status %d; expected 0. %s on the host has all that it printed; its last lines:\n%s"
            % (name, result["rc"], command.directory, said), **told
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
    program = Program(module.params["directory"], argv)
    key = hashlib.sha256(json.dumps(argv).encode()).hexdigest()[:16]
    command = Command(os.path.join(program.directory, key))

    try:
        os.makedirs(program.directory, mode=0o700, exist_ok=True)
        if module.params["fresh"] or not (command.has_result() or program.last(command)):
            start(program, command, argv)
        if module.params["fresh"] and not program.last(command):
            command.forget()
    except OSError as error:
        module.fail_json(msg="directory: %s: %s. Make room there, or give another one." % (program.directory, error))
    end = time.time() + WAIT
    while is_locked(program.lock) and time.time() < end:
        time.sleep(POLL)
    if not command.has_result() and (is_locked(program.lock) or not program.last(command)):
        module.exit_json(changed=True, running=True, progress=progress_of(program.command() or command))
    answer(module, command)


if __name__ == "__main__":
    main()
