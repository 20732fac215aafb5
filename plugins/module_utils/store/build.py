"""Making an output: fetch, build, commit, one builder for each key."""

import json
import os
import re
import shutil
import subprocess
import time
import traceback

from . import address, disk, generation, substitute, tree
from .disk import Lock, full_disk, remove_tree, write_atomically
from .errors import StoreError
from .fetch import fetch_sources
from .processes import in_use

LOGS = "/var/log/kepler"
# For the message of a failure if the disk of the store is full.
RUN = "/run"
# Enters the namespaces: the final path becomes the build directory, so that absolute prefixes are right.
ENTER = 'mount --bind "$1" "$2" && cd "$3" && exec /bin/bash -eu -o pipefail "$4"'
LOG_TAIL = 20
# Beside the build directory: how work ended, for who waits for it; what it needs, for the garbage collection.
RESULT, NEEDS = ".result.json", ".needs.json"
# Names in build/ that belong to a key. Other names there are not ours.
OF_KEY = re.compile(r"(%s)(\..+)?\Z" % address.KEY)


class Paths:
    """The paths of one output."""

    def __init__(self, root, recipe):
        self.root = root
        self.key = address.key(recipe)
        self.final = address.output_path(root, recipe)
        self.store = os.path.join(root, "store")
        self.sources = os.path.join(root, "sources")
        self.lock = Lock(disk.lock_of(root, self.key))
        self.locks = os.path.join(root, "locks")
        self.builds = os.path.join(root, "build")
        self.build = os.path.join(self.builds, self.key)
        self.state = self.build + ".state.json"
        self.needs = self.build + NEEDS
        self.results = (self.build + RESULT, os.path.join(RUN, "kepler-" + self.key + RESULT))
        self.log = os.path.join(LOGS, "%s-%s.log" % (self.key, recipe["name"]))

    def make(self):
        """Make the directories. Raises StoreError where the disk is full."""
        for directory in (self.store, self.sources, self.locks, self.builds, LOGS):
            try:
                os.makedirs(directory, exist_ok=True)
            except OSError as error:
                raise full_disk(directory, directory, error)


def left_over(paths):
    """(key, path) of what builds of other keys may have left: their directories, and places that nobody fills."""
    for name in os.listdir(paths.builds):
        of_key = OF_KEY.match(name)
        if of_key and of_key.group(1) != paths.key and not name.endswith(RESULT):
            yield of_key.group(1), os.path.join(paths.builds, name)
    for name in os.listdir(paths.store):
        output, path = address.OUTPUT.match(name), os.path.join(paths.store, name)
        if output and output.group(1) != paths.key and disk.is_empty_directory(path):
            yield output.group(1), path


def clean(paths):
    """Remove what builds that died have left."""
    for key, path in left_over(paths):
        with disk.locked(disk.lock_of(paths.root, key), wait=False) as free:
            # Another process may have made the output before this one got the lock.
            if free and (os.path.dirname(path) == paths.builds or disk.is_empty_directory(path)):
                remove_tree(path)


def make_way(paths):
    """Take what stands at the final path and is no output out of the way, before hours of work.

    It is what an interrupted `rm -rf` leaves, say. Raises StoreError for what is not to be moved: a link, since it may
    lead to a disk that is not mounted, and what a process uses.
    """
    if not os.path.lexists(paths.final) or disk.is_empty_directory(paths.final):
        return
    if os.path.islink(paths.final):
        raise StoreError(
            "%s: found a link to %s, where no output is; expected an output, or nothing. Mount the disk that it leads "
            "to, or remove the link, then run again." % (paths.final, os.readlink(paths.final))
        )
    if paths.final in in_use(paths.root):
        raise StoreError(
            "%s: found a directory without a manifest that a running process uses; expected an output, or nothing. "
            "Stop that process, then run again." % paths.final
        )
    remove_tree(disk.set_aside(paths.root, paths.final))


def log_tail(path, lines=LOG_TAIL):
    """Last lines of a log."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, os.path.getsize(path) - 64 * 1024))
            return stream.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []


def run_builder(recipe, paths):
    """Run the builder without a network. Raises StoreError with the end of the log where it fails."""
    sources, out = os.path.join(paths.build, "sources"), os.path.join(paths.build, "out")
    work, script = os.path.join(paths.build, "work"), os.path.join(paths.build, "builder.sh")
    for directory in (sources, out, work, paths.final):
        os.makedirs(directory, exist_ok=True)
    for source in recipe["sources"]:
        os.symlink(os.path.join(paths.sources, source["sha256"]), os.path.join(sources, source["file"]))
    with open(script, "w") as stream:
        stream.write(recipe["builder"])
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": work,
        "TMPDIR": work,
        "LC_ALL": "C.UTF-8",
        "SOURCE_DATE_EPOCH": str(tree.SOURCE_DATE_EPOCH),
        # Sets in compiled Python are written in the order of their hashes.
        "PYTHONHASHSEED": "0",
        "out": paths.final,
        "src": sources,
        # The number of processes changes no byte of the output, so it is not part of the key.
        "KEPLER_JOBS": str(recipe.get("jobs") or len(os.sched_getaffinity(0))),
    }
    environment.update(recipe["inputs"])
    environment.update(recipe["environment"])
    command = ["unshare", "--net", "--mount", "--propagation", "private", "/bin/sh", "-c", ENTER, "sh"]
    command += [out, paths.final, work, script]
    with open(paths.log, "wb") as log:
        status = subprocess.call(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            preexec_fn=disk.set_umask,
            # An orphaned builder keeps the lock, so no second one starts.
            pass_fds=[paths.lock.stream.fileno()],
        )
    if status:
        free = shutil.disk_usage(paths.builds).free
        hint = "Read the log, then run again."
        if free < 1e9:
            hint = "Only %.1f GB are free there: make room." % (free / 1e9)
        raise StoreError(
            "%s %s: the builder ended with status %d. %s Log on the host: %s. Its last lines:\n%s"
            % (recipe["name"], recipe["version"], status, hint, paths.log, "\n".join(log_tail(paths.log)))
        )


def describe(recipe, paths, seconds):
    """The manifest of what was built. Raises StoreError for what no output can hold."""
    out = os.path.join(paths.build, "out")
    try:
        if os.path.lexists(os.path.join(out, address.MANIFEST)):
            raise StoreError("found %s; expected that name to be left to the store." % address.MANIFEST)
        files = tree.describe_all(out)
    except StoreError as error:
        raise StoreError(
            "%s %s: in what the builder made: %s Correct the recipe." % (recipe["name"], recipe["version"], error)
        )
    return {
        "schema": 1,
        "key": paths.key,
        "name": recipe["name"],
        "version": recipe["version"],
        "recipe": {name: value for name, value in recipe.items() if name not in ("sources", "jobs")},
        "sources": [[source["name"], source["file"], source["sha256"]] for source in recipe["sources"]],
        "references": sorted(recipe["inputs"].values()),
        "seconds": round(seconds, 1),
        "files": files,
    }


def commit(manifest, paths):
    """Turn the frozen output of the build directory into the store path: manifest, one rename."""
    out = os.path.join(paths.build, "out")
    path = os.path.join(out, address.MANIFEST)
    with open(path, "w") as stream:
        stream.write(json.dumps(manifest, sort_keys=True))
    tree.freeze_one(path, False)
    tree.freeze_one(out, True)
    # One call for the whole file system: 40,000 times fsync would take minutes.
    os.sync()
    os.rename(out, paths.final)
    directory = os.open(paths.store, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def make(
    recipe, paths, artifacts, index_urls, substituters=(), trusted_keys=None, origin=lambda text: None, build=True
):
    """Substitute, or fetch and build; then commit. The caller holds the key's lock. Raises StoreError."""

    def report(phase, text=""):
        write_atomically(paths.state, {"phase": phase, "text": text, "time": time.time()})

    started = time.monotonic()
    try:
        # Protect the output from the collection first, then check that it exists.
        sources = [source["sha256"] for source in recipe["sources"]]
        write_atomically(paths.needs, {"inputs": sorted(recipe["inputs"].values()), "sources": sources})
        with disk.locked(disk.lock_of(paths.root, "removal")):
            check_inputs(recipe)
        clean(paths)
        make_way(paths)
        remove_tree(paths.build)
        manifest, reasons = None, []
        if substituters:
            report("substituting")
            manifest, reasons = substitute.substitute(
                recipe, paths, substituters, trusted_keys, lambda text: report("substituting", text)
            )
        if manifest is None and not build:
            raise StoreError(
                "%s %s: no substituter has the output %s (%s); expected it there, since this host does not build. Give "
                "this host the variables and the checkout of the one that builds, or let it build "
                "(store_builds: true)."
                % (recipe["name"], recipe["version"], os.path.basename(paths.final), "; ".join(reasons) or "none named")
            )
        origin("substituted" if manifest else "built")
        if manifest is None:
            remove_tree(paths.build)
            report("fetching")
            fetch_sources(
                recipe["sources"], paths.sources, artifacts, index_urls, lambda text: report("fetching", text)
            )
            report("building")
            run_builder(recipe, paths)
            report("committing")
            manifest = describe(recipe, paths, time.monotonic() - started)
            tree.freeze(os.path.join(paths.build, "out"))
        generation.expect(paths.root, paths.key)
        commit(manifest, paths)
    except OSError as error:
        raise full_disk(recipe["name"], paths.builds, error)


def check_inputs(recipe):
    """Raise StoreError where an input is not in the store."""
    for alias, path in recipe["inputs"].items():
        if not address.is_committed(path):
            raise StoreError(
                "%s: the input %s is %s, which is not in the store. Build it first: run the whole play."
                % (recipe["name"], alias, path)
            )


def cleanup(paths, keep):
    """Remove temporary files of a build. With `keep`, leave the build directory."""
    if not keep:
        remove_tree(paths.build)
        if disk.is_empty_directory(paths.final):
            os.rmdir(paths.final)
    for path in (paths.state, paths.needs):
        remove_tree(path)


def is_present(paths):
    """Return whether the output is in the store. If so, a collection before the next activation leaves it."""
    if not address.is_committed(paths.final):
        return False
    with disk.locked(disk.lock_of(paths.root, "removal")):
        if not address.is_committed(paths.final):
            return False
        generation.expect(paths.root, paths.key)
    return True


def realise(
    root, recipe, artifacts, index_urls, keep_failed=False, failed=lambda message: None,
    substituters=(), trusted_keys=None, origin=lambda text: None, build=True,
):
    """Make sure that the output of `recipe` is in the store. Returns whether it had to be made.

    Only one process at a time makes a key; others wait for it. Raises StoreError; nothing half-made stays then.
    `failed` gets the message of a failure after the build directory is removed and before the key is unlocked:
    nobody can start between the two.
    substituters: directories and addresses that may have the output, signed by a key of the file `trusted_keys`.
    `origin` hears before the commit whether the output was "substituted" or "built". build: whether it may be built
    where nobody has it.
    """
    address.check_recipe(recipe)
    substitute.check_configuration(substituters, trusted_keys)
    paths = Paths(root, recipe)
    paths.make()
    if not paths.lock.acquire(wait=False):
        # Another process may rebuild the same output for hours.
        if is_present(paths):
            return False
        paths.lock.acquire()
    message, keep = None, False
    try:
        if is_present(paths):
            return False
        make(recipe, paths, artifacts, index_urls, substituters, trusted_keys, origin, build)
        return True
    except StoreError as error:
        message, keep = str(error), keep_failed
        raise
    except Exception:
        message = "%s: unexpected fault in the store; please report it:\n%s" % (recipe["name"], traceback.format_exc())
        raise
    finally:
        try:
            cleanup(paths, keep)
        finally:
            if message:
                failed(message)
            paths.lock.release()
