"""Time of substituting an output beside `tar | tar` of the same tree: `python substitute.py OUTPUT SCRATCH`.

OUTPUT: a committed output. SCRATCH: a directory with room for three times its size. Needs gpg; both ways read from the
page cache and end with a sync.
"""
# ruff: noqa: PTH102, PTH118, PTH120, PTH123, UP031

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins"))

from module_utils.store import build, substitute

ROUNDS = 3


def settle(act):
    """Seconds that `act` and the sync after it take."""
    os.sync()
    started = time.perf_counter()
    act()
    os.sync()
    return time.perf_counter() - started


def main(output, scratch):
    output = os.path.normpath(output)
    manifest = substitute.read_output(output)
    recipe = dict(manifest["recipe"], sources=[
        {"name": name, "file": file, "sha256": sha256} for name, file, sha256 in manifest["sources"]
    ])
    build.LOGS = os.path.join(scratch, "log")
    paths = build.Paths(os.path.dirname(os.path.dirname(output)), recipe)
    # The original stays as it is: everything is written below the scratch directory.
    paths.builds, paths.sources = os.path.join(scratch, "build"), os.path.join(scratch, "sources")
    home = os.path.join(scratch, "gpg")
    fingerprint, _made = substitute.make_key(home, "benchmark")
    public = os.path.join(scratch, "public.asc")
    with open(public, "w") as stream:
        stream.write(substitute.public_key(home, fingerprint))
    published = os.path.join(scratch, "published")
    print("publishing: %.2f s" % settle(lambda: substitute.publish(output, published, home, fingerprint)))
    print("%d entries, %.0f MB" % (
        len(manifest["files"]), sum(entry.get("size", 0) for entry in manifest["files"]) / 1e6))

    def substitution():
        paths.build = os.path.join(paths.builds, paths.key)
        found, _reasons = substitute.substitute(recipe, paths, [published], public)
        store, final = paths.store, paths.final
        paths.store, paths.final = scratch, os.path.join(scratch, "final")
        build.commit(found, paths)
        paths.store, paths.final = store, final

    copy = os.path.join(scratch, "copy")

    def tar():
        os.mkdir(copy)
        subprocess.check_call(["/bin/sh", "-c", 'tar -C "$1" -cf - . | tar -C "$2" -xpf -', "sh", output, copy])

    figures = {"tar | tar": [], "substitute": []}
    for _round in range(ROUNDS):
        figures["tar | tar"].append(settle(tar))
        build.remove_tree(copy)
        figures["substitute"].append(settle(substitution))
        build.remove_tree(os.path.join(scratch, "final"))
        build.remove_tree(paths.builds)
    for name, seconds in figures.items():
        print("%-10s best %.2f s of %s" % (name, min(seconds), " ".join("%.2f" % one for one in seconds)))
    print("ratio %.2f" % (min(figures["substitute"]) / min(figures["tar | tar"])))
    shutil.rmtree(published)


if __name__ == "__main__":
    main(*sys.argv[1:3])
