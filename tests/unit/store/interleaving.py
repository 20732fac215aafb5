"""Builders, collections, activations, rollbacks and users of one store at once, some of them killed. Python 3.6 too.

Run as a program, this file is one worker: `interleaving.py ROLE ROOT SEED`. It works until it is killed, and writes a
letter for each thing it did to ROOT.done and each rule that it saw broken to ROOT.broken.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "plugins"))

from module_utils.store import address, build, collect, generation
from module_utils.store.errors import StoreError

LEVELS, CHAINS = 4, 12
# A chain whose lower part another generation has left behind may be collected before its upper part is built, and what
# nobody activates before it is activated: said by name, and then made again.
BY_NAME = re.compile(r"which is not in the store; expected|which is not in the store\. Build it first")
# What going back may meet: no generation before, or one that a kill left without an output.
NO_WAY_BACK = re.compile(r"generation: found (previous|none)")

# Fails if an input is not there from its beginning to its end.
BUILDER = """\
check() { for input in ${INPUTS-}; do test -e "${!input}/bin/run"; done; }
check
mkdir "$out/bin"
cp /bin/sleep "$out/bin/sleep"
printf '#!/bin/sh\\necho ready; read line; true\\n' > "$out/bin/run"
chmod +x "$out/bin/run"
sleep 0.0%d
check
"""
KINDS = ("executes", "stands", "holds", "script")


def recipes(root, number):
    """Recipes of a chain, the lowest first. Each refers to the one below it; chains share their lower parts."""
    below, found = {}, []
    for level in range(LEVELS):
        found.append({
            "name": "level%d" % level, "version": str(number % (level + 1)), "system": "x86_64-linux",
            "builder": BUILDER % (level + 1), "sources": [], "toolchain": [],
            "environment": {"INPUTS": " ".join(below)}, "inputs": dict(below),
        })
        below = {"below": address.output_path(root, found[-1])}
    return found


class Worker:
    """One process that does its part at random."""

    def __init__(self, root, seed):
        self.root, self.random = root, random.Random(seed)

    def note(self, letter):
        with open(self.root + ".done", "a") as stream:
            stream.write(letter)

    def broken(self, what):
        with open(self.root + ".broken", "a") as stream:
            stream.write("%s: %s\n" % (sys.argv[1], what))

    @contextlib.contextmanager
    def may_fail(self, pattern):
        try:
            yield
        except StoreError as error:
            if not pattern.search(str(error)):
                self.broken(str(error))
            self.note("f")

    def builder(self):
        """Make a chain, as a play does; in half of the cases activate it."""
        made = recipes(self.root, self.random.randrange(CHAINS))
        with self.may_fail(BY_NAME):
            for one in made:
                if build.realise(self.root, one, [], []):
                    self.note("b")
                else:
                    self.note("p")
            if self.random.random() < 0.5:
                outputs = {one["name"]: address.output_path(self.root, one) for one in made[-2:]}
                generation.ensure(self.root, {
                    "outputs": outputs, "kernel": "k", "driver": "d", "lock_hash": str(self.random.randrange(5)),
                })
                self.note("a")

    def collector(self):
        collect.collect(self.root, keep=self.random.randint(1, 2), sources=self.random.random() < 0.5)
        self.note("c")
        time.sleep(self.random.random() / 20)

    def rollback(self):
        with self.may_fail(NO_WAY_BACK):
            generation.switch(self.root, "previous", "k", "d")
            self.note("r")
        time.sleep(self.random.random() / 5)

    def active(self):
        """Number and outputs of the active generation."""
        number = generation.number_of(os.path.join(self.root, "current"))
        return number, generation.read(self.root, number)["outputs"] if number else {}

    def user(self):
        """Begin to use an output of the active generation, as a server does that is started; leave it later."""
        with generation.locked(self.root):
            paths = sorted(self.active()[1].values())
            if not paths:
                return
            path, kind = self.random.choice(paths), self.random.choice(KINDS)
            program = os.path.join(path, "bin", "run")
            command = {"executes": [os.path.join(path, "bin", "sleep"), "9"], "script": [program]}.get(kind)
            process = command and subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            if kind == "script":
                process.stdout.readline()
            if kind == "stands":
                os.chdir(path)
            held = os.open(program, os.O_RDONLY) if kind == "holds" else None
        until = time.monotonic() + self.random.random() * 4
        while time.monotonic() < until:
            if not address.is_committed(path) or not os.path.exists(program):
                self.broken("%s was removed though somebody %s" % (path, kind))
                break
            time.sleep(0.01)
        os.chdir("/")
        if held is not None:
            os.close(held)
        if process:
            process.kill()
            process.communicate()
        self.note("u")

    def watcher(self):
        """Look at everything in the store: who refers to what, and what is active."""
        for path in collect.outputs(self.root):
            try:
                lower = address.manifest(path)["references"]
            except StoreError:
                if address.is_committed(path):
                    self.broken("%s has a manifest that cannot be read" % path)
                continue
            for one in lower:
                # Its reference goes after it: if it is still there, so must be the reference.
                if not address.is_committed(one) and address.is_committed(path):
                    self.broken("%s is there without %s" % (path, one))
        with contextlib.suppress(StoreError):
            number, outputs = self.active()
            gone = [path for path in outputs.values() if not address.is_committed(path)]
            if gone and self.active()[0] == number:
                self.broken("generation %d is active without %s" % (number, ", ".join(gone)))
        self.note("s")
        time.sleep(0.01)


def main():
    role, root, seed = sys.argv[1:]
    os.umask(0o022)
    build.LOGS = root + ".log"
    worker = Worker(root, int(seed))
    while True:
        try:
            getattr(worker, role)()
        except Exception:
            worker.broken(traceback.format_exc())


TEAM = ("builder", "builder", "collector", "collector", "rollback", "user", "user", "watcher")
MORTAL = ("builder", "collector", "rollback")
# Builds, presents, activations, collections, rollbacks, uses, looks: all must have happened, even on a slow machine.
PARTS = "bpacrus"
PATIENCE = 120


def start(role, root, seed):
    return subprocess.Popen([sys.executable, __file__, role, root, str(seed)], start_new_session=True)


def done_by_now(root):
    """How often what was done."""
    done = Path(root + ".done").read_text() if os.path.exists(root + ".done") else ""
    return {letter: done.count(letter) for letter in sorted(set(done))}


def run(root, seed, seconds):
    """Let the team work on a store for some time, killing one of it now and then: (how often what was done, kills).

    It ends once it sees a broken rule, and goes on for as long as somebody had no part, within reason.
    """
    chance, kills = random.Random(seed), 0
    team = [[role, start(role, root, "%d%02d" % (seed, place))] for place, role in enumerate(TEAM)]
    began = time.monotonic()

    def goes_on():
        passed = time.monotonic() - began
        missing = set(PARTS) - set(done_by_now(root))
        return not os.path.exists(root + ".broken") and passed < (seconds + PATIENCE if missing else seconds)

    try:
        while goes_on():
            time.sleep(chance.random())
            mortal = chance.choice([one for one in team if one[0] in MORTAL])
            os.kill(mortal[1].pid, signal.SIGKILL)
            mortal[1].wait()
            kills += 1
            mortal[1] = start(mortal[0], root, chance.randrange(10 ** 9))
    finally:
        for _role, process in team:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return done_by_now(root), kills


if __name__ == "__main__":
    main()
