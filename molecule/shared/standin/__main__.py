"""Command line of the stand-in, as the Makefile calls it."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from pathlib import Path

from . import artifacts, demo, engine, hosts, image
from .settings import CACHE, FLEETS, LOGS, PROJECT, STATE

SHARED = str(PROJECT / "molecule" / "shared" / "molecule.yml")
# Scenarios of molecule and the fleets that they run on.
SCENARIOS = {
    "default": "test", "kernel_update": "update", "upgrade_rollback": "upgrade", "builder": "builder",
    "offline": "offline",
}

# Colours, and the border that molecule draws before each line where it has them.
DRAWN = re.compile(r"\x1b\[[0-9;]*m")
BORDER = re.compile(r"^ *│ ?", re.MULTILINE)
# A task with the first lines of its result; a test, with the lines that say why.
FAILURE = re.compile(r"^(?:fatal: .*(?:\n {4}.*){0,20}|E {3}.*|(?:FAILED|ERROR) \S+::.*)$", re.MULTILINE)


def down(fleet: str, keep_engine: bool = False) -> None:
    """Remove a fleet; with the last one everything but the downloads, unless the engine is still needed."""
    hosts.down(FLEETS[fleet])
    if keep_engine:
        return
    if hosts.others_left():
        print("Removed. The engine and the image stay for the other stand-ins.")
        return
    client = engine.present()
    if client:
        image.remove(client)
    engine.stop()
    shutil.rmtree(STATE, ignore_errors=True)
    print(f"Removed. What was downloaded stays in {CACHE}.")


def recorded(command: list[str], environment: dict[str, str], log: Path) -> int:
    """Exit status of `command`; what it prints goes to the file `log` too."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # Molecule breaks lines at the width of a terminal, and would break those that are looked for.
    environment = {**environment, "COLUMNS": "240"}
    with log.open("w") as file, subprocess.Popen(
        command, cwd=PROJECT, env=environment, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            print(line, end="", flush=True)
            file.write(line)
    return process.returncode


def failures(printed: str) -> list[str]:
    """What Ansible and pytest say of failures, of all that they printed: the stand-ins' end hides it otherwise."""
    return [match[0] for match in FAILURE.finditer(BORDER.sub("", DRAWN.sub("", printed)))]


def molecule(arguments: list[str]) -> None:
    """Run molecule with the environment that its scenarios read; the stand-ins are gone afterwards.

    `test` without a scenario runs all of them.
    """
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("-s", "--scenario-name")
    name, rest = named.parse_known_args(arguments)
    # Other commands may open a shell.
    testing = rest[:1] == ["test"]
    everything = testing and not name.scenario_name
    engine.ensure()
    status = 0
    try:
        for scenario in SCENARIOS if everything else (name.scenario_name or "default",):
            environment = hosts.ansible_environment(FLEETS[SCENARIOS[scenario]])
            command = ["molecule", "--base-config", SHARED, *rest[:1], "--scenario-name", scenario, *rest[1:]]
            if not testing:
                status = subprocess.call(command, cwd=PROJECT, env=environment)
            elif status := recorded(command, environment, log := LOGS / f"molecule-{scenario}.log"):
                break
    finally:
        if testing:
            for fleet in SCENARIOS.values():
                down(fleet, keep_engine=True)
            down("test")
    if status and testing:
        print(f"What failed, as {log} has it:", *failures(log.read_text()), sep="\n")
    raise SystemExit(status)


def main() -> None:
    parser = argparse.ArgumentParser(prog="standin", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("up", "start a fleet"), ("down", "remove a fleet")):
        command = commands.add_parser(name, help=text)
        command.add_argument("fleet", nargs="?", choices=FLEETS, default="demo")
        command.add_argument("--keep-engine", action="store_true", help="leave engine, image and repositories")
    commands.add_parser("demo", help="start the demo fleet, run site.yml on it, ask it")
    commands.add_parser("artifacts", help="make sure that the files to install from are in the cache")
    commands.add_parser("python310", help="print the path of a CPython 3.10")
    commands.add_parser("nvcc", help="print the directory of a private nvcc 11.2 with its g++ 10")
    commands.add_parser("molecule", help="run molecule").add_argument("arguments", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if arguments.command == "up":
        hosts.up(FLEETS[arguments.fleet])
    elif arguments.command == "down":
        down(arguments.fleet, arguments.keep_engine)
    elif arguments.command == "demo":
        demo.run()
    elif arguments.command == "artifacts":
        artifacts.ensure()
    elif arguments.command == "python310":
        print(artifacts.python310())
    elif arguments.command == "nvcc":
        print(artifacts.nvcc())
    elif arguments.command == "molecule":
        molecule(arguments.arguments)


if __name__ == "__main__":
    main()
