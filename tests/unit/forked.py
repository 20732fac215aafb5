"""Runs that are forks of a process which has imported what they need: of a short run, that is most of its time."""

import atexit
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


class Forks:
    """A process that runs a program of the tests, which calls `serve`; it ends with this process.

    program: its path. environment: its variables, for what it imports.
    """

    def __init__(self, program, environment):
        path = os.pathsep.join(filter(None, (str(Path(__file__).parent), environment.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, program], env={**environment, "PYTHONPATH": path}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        atexit.register(self.process.communicate)

    def run(self, environment, merged=False, **arguments):
        """One run, with these variables and arguments of its function; subprocess.CompletedProcess, with texts.

        merged: what goes to standard error is among what is printed.
        """
        with tempfile.TemporaryDirectory() as directory:
            files = [str(Path(directory, name)) for name in ("stdout", "stdout" if merged else "stderr")]
            self.process.stdin.write(json.dumps([files, dict(environment), arguments]) + "\n")
            self.process.stdin.flush()
            status = int(self.process.stdout.readline())
            printed, said = (Path(path).read_text(errors="replace") for path in files)
        return subprocess.CompletedProcess(arguments, status, printed, None if merged else said)


def freeze():
    """Leave what is there out of collections: in a fork they would write to all of it, and with that copy it."""
    gc.collect()
    gc.freeze()


def serve(prepare, run):
    """Call `prepare`, which imports; then `run` in a fork for each line of standard input, and answer with a line: its
    exit status.
    """
    answers = os.fdopen(os.dup(1), "w")
    # What is printed while importing is no answer.
    os.dup2(2, 1)
    prepare()
    freeze()
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if not child:
            files, environment, arguments = json.loads(line)
            for number, path in enumerate((os.devnull, *files)):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
            os.environ.clear()
            os.environ.update(environment)
            return run(**arguments)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
    return None
