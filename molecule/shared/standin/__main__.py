"""Command line of the stand-in, as the Makefile calls it."""

from __future__ import annotations

import argparse
import shutil
import subprocess

from . import artifacts, demo, engine, hosts, image, repos
from .settings import CACHE, DEMOS, FLEETS, PROJECT, RELEASES, STATE

SHARED = str(PROJECT / "molecule" / "shared" / "molecule.yml")
# Scenarios of molecule and the fleets that they run on.
SCENARIOS = {
    "default": "test", "kernel_update": "update", "upgrade_rollback": "upgrade", "builder": "builder",
    "offline": "offline", "volta": "volta", "volta_hosts": "volta_hosts",
}


def down(fleets: list[str], keep_engine: bool = False) -> None:
    """Remove fleets; with the last one everything but the downloads, unless the engine is still needed."""
    for fleet in fleets:
        hosts.down(FLEETS[fleet])
    if keep_engine:
        return
    shutil.rmtree(engine.OUTPUTS, ignore_errors=True)
    if hosts.others_left():
        print("Removed. The engine and the image stay for the other stand-ins.")
        return
    client = engine.present()
    if client:
        image.remove(client)
    engine.stop()
    shutil.rmtree(STATE, ignore_errors=True)
    print(f"Removed. What was downloaded stays in {CACHE}.")


def prepare() -> None:
    """Make all that the stand-ins need; a second time there is nothing to do."""
    client = engine.ensure()
    for profile, major in RELEASES.items():
        image.ensure(client, major)
        repos.ensure(profile)
        artifacts.ensure(profile)
        artifacts.python(profile)
    artifacts.nvcc()


def molecule(arguments: list[str]) -> int:
    """Exit status of molecule with the environment that the scenario reads; after `test` its stand-ins are gone."""
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("-s", "--scenario-name", choices=SCENARIOS, default="default")
    name, rest = named.parse_known_args(arguments)
    fleet = FLEETS[SCENARIOS[name.scenario_name]]
    engine.ensure()
    command = ["molecule", "--base-config", SHARED, *rest[:1], "--scenario-name", name.scenario_name, *rest[1:]]
    try:
        return subprocess.call(command, cwd=PROJECT, env=hosts.ansible_environment(fleet))
    finally:
        # Other commands may open a shell.
        if rest[:1] == ["test"]:
            hosts.down(fleet)


def main() -> None:
    parser = argparse.ArgumentParser(prog="standin", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare", help="make all that stand-ins need: engine, image, repositories, downloads")
    for name, text in (("up", "start a fleet"), ("down", "remove a fleet")):
        command = commands.add_parser(name, help=text)
        command.add_argument("fleet", nargs="?", choices=FLEETS, default="demo")
    command.add_argument("--tests", action="store_true", help="remove the fleets of all scenarios")
    command.add_argument("--keep-engine", action="store_true", help="leave engine, image and repositories")
    command = commands.add_parser("demo", help="start a profile's demo fleet, run site.yml on it, ask it")
    command.add_argument("--profile", choices=DEMOS, default="k80")
    for name, text in (
        ("artifacts", "make sure that the files to install from are in the cache"),
        ("python", "print the path of a CPython in the version of a profile's servers"),
    ):
        commands.add_parser(name, help=text).add_argument("profile", nargs="?", choices=DEMOS, default="k80")
    commands.add_parser("nvcc", help="print the directory of a private nvcc 11.2 with its g++ 10")
    commands.add_parser("molecule", help="run molecule").add_argument("arguments", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        prepare()
    elif arguments.command == "up":
        hosts.up(FLEETS[arguments.fleet])
    elif arguments.command == "down":
        down(list(SCENARIOS.values()) if arguments.tests else [arguments.fleet], arguments.keep_engine)
    elif arguments.command == "demo":
        demo.run(arguments.profile)
    elif arguments.command == "artifacts":
        artifacts.ensure(arguments.profile)
    elif arguments.command == "python":
        print(artifacts.python(arguments.profile))
    elif arguments.command == "nvcc":
        print(artifacts.nvcc())
    elif arguments.command == "molecule":
        raise SystemExit(molecule(arguments.arguments))


if __name__ == "__main__":
    main()
