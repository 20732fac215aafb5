#!/usr/libexec/platform-python
"""Look after the store of this host."""

import argparse
import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from module_utils.store import address, collect, generation, sbom, verify
from module_utils.store.disk import set_umask
from module_utils.store.errors import StoreError


def size(count):
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return "%.0f %s" % (count, unit)
        count /= 1000.0
    return "%.1f GB" % count


def label(path):
    """Name, version and the first digits of the key of an output."""
    try:
        described = address.manifest(path)
    except StoreError:
        return "%s: damaged, see `kepler-store verify`" % os.path.basename(path)
    return "%s %s (%s)" % (described["name"], described["version"], described["key"][:8])


def list_all(arguments):
    current = generation.number_of(os.path.join(arguments.root, "current"))
    print("generation  made              kernel and driver")
    for number in generation.numbers(arguments.root):
        try:
            described = generation.read(arguments.root, number)
        except StoreError as error:
            print(error)
            continue
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(described["time"]))
        mark = "*" if number == current else " "
        print("%9d%s  %s  %s, %s" % (number, mark, made, described["kernel"], described["driver"]))
    print("\noutput")
    used = collect.in_use(arguments.root)
    for path in collect.outputs(arguments.root):
        print("  %-44s %10s%s" % (label(path), size(collect.size_of(path)), "  in use" if path in used else ""))


def why(arguments):
    known = collect.outputs(arguments.root)
    for path in verify.find(arguments.root, arguments.output):
        print(path)
        for number in generation.numbers(arguments.root):
            outputs = generation.read(arguments.root, number)["outputs"].values()
            if address.name_of(path) in map(address.name_of, outputs):
                print("  generation %d" % number)
        for other in known:
            try:
                refers = address.name_of(path) in map(address.name_of, address.manifest(other)["references"])
            except StoreError:
                refers = True  # may be damaged; its label says so
            if refers:
                print("  output %s" % label(other))
        if path in collect.in_use(arguments.root):
            print("  a running process")


def check(arguments):
    paths = verify.find(arguments.root, arguments.output) if arguments.output else collect.outputs(arguments.root)
    bad = 0
    for path in paths:
        started = time.time()
        action = verify.rebuild if arguments.rebuild else lambda root, one: verify.verify(one)
        problems = action(arguments.root, path)
        print("%-44s %s  %.0f s" % (label(path), "%d problems" % len(problems) if problems else "whole",
                                    time.time() - started), flush=True)
        for problem in problems[:20]:
            print("  %(path)s: %(problem)s" % problem)
        bad += bool(problems)
    return 1 if bad else 0


def diff(arguments):
    one, other = (
        generation.read(arguments.root, generation.resolve(arguments.root, number))
        for number in (arguments.old, arguments.new)
    )
    for field in ("kernel", "driver"):
        if one[field] != other[field]:
            print("%s: %s -> %s" % (field, one[field], other[field]))
    for name in sorted(set(one["outputs"]) | set(other["outputs"])):
        before, after = one["outputs"].get(name), other["outputs"].get(name)
        if before != after:
            print("%s: %s -> %s" % (name, label(before) if before else "none", label(after) if after else "none"))


def gc(arguments):
    run = collect.plan if arguments.dry_run else collect.collect
    items = run(arguments.root, arguments.keep, arguments.sources, arguments.published, arguments.archives)
    for item in items:
        print("%-10s %10s  %s" % (item["kind"], size(item["bytes"]), os.path.basename(item["path"])))
    total = sum(item["bytes"] for item in items)
    print("%s %s" % ("would free" if arguments.dry_run else "freed", size(total)))


def bill(arguments):
    number = arguments.generation or generation.number_of(os.path.join(arguments.root, "current"))
    print(json.dumps(sbom.sbom(arguments.root, generation.resolve(arguments.root, number)), indent=1, sort_keys=True))


def main():
    parser = argparse.ArgumentParser(prog="kepler-store", description=__doc__)
    parser.add_argument("--root", default="/opt/kepler", help="root of the store (default: %(default)s)")
    commands = parser.add_subparsers(dest="command")
    commands.required = True

    def command(name, function, text):
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=function)
        return added

    command("list", list_all, "generations and outputs; * marks the active generation")
    added = command("why", why, "what refers to an output")
    added.add_argument("output", help="a path, a key or a name")
    added = command("verify", check, "compare outputs with their manifests")
    added.add_argument("output", nargs="?", help="a path, a key or a name; all where left out")
    added.add_argument("--rebuild", action="store_true", help="build again from the same inputs, and compare")
    added = command("diff", diff, "what two generations differ in")
    added.add_argument("old", type=int)
    added.add_argument("new", type=int)
    added = command("gc", gc, "remove what no kept generation and no process refers to")
    added.add_argument("--keep", type=int, default=collect.KEEP, help="last generations to keep (default: %(default)s)")
    added.add_argument("--sources", action="store_true", help="fetched files as well that no kept output came from")
    added.add_argument("--published", default=collect.PUBLISHED, metavar="DIRECTORY",
                       help="where this host publishes: what died in the middle goes (default: %(default)s)")
    added.add_argument("--archives", action="store_true", help="what is published of outputs that are not kept as well")
    added.add_argument("--dry-run", action="store_true", help="list what would be removed")
    added = command("sbom", bill, "bill of materials of a generation, CycloneDX 1.5")
    added.add_argument("generation", nargs="?", type=int, help="a number; the active one where left out")
    arguments = parser.parse_args()
    set_umask()
    if not os.path.isdir(os.path.join(arguments.root, "store")):
        raise StoreError("--root: found no store in %s; expected its root. Name it, or run the play." % arguments.root)
    return arguments.run(arguments) or 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StoreError as error:
        sys.exit("kepler-store: %s" % error)
    except PermissionError as error:
        sys.exit("kepler-store: %s; be root" % error)
    except BrokenPipeError:
        sys.exit(0)
