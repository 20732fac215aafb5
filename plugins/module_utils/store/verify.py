"""Compare outputs with what was committed, and with a second build."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

from . import address, build, tree
from .collect import outputs
from .errors import StoreError
from .fetch import sha256_of


def compare(wanted, found):
    """Differences of two lists of manifest entries: [{path, problem}], sorted by path."""
    wanted, found = ({entry["path"]: entry for entry in entries} for entries in (wanted, found))
    problems = []
    for path in sorted(set(wanted) | set(found)):
        if path not in found:
            problems.append({"path": path, "problem": "missing"})
        elif path not in wanted:
            problems.append({"path": path, "problem": "not in the manifest"})
        elif wanted[path] != found[path]:
            fields = sorted(set(wanted[path]) | set(found[path]))
            changed = [name for name in fields if wanted[path].get(name) != found[path].get(name)]
            problems.append({"path": path, "problem": "changed: " + ", ".join(changed)})
    return problems


def describe_or_error(top, path):
    """Return (path, its manifest entry, None), or (path, None, why it cannot be read)."""
    try:
        return path, tree.describe(top, path), None
    except OSError as error:
        return path, None, "cannot be read: %s" % error.strerror
    except StoreError as error:
        return path, None, str(error).partition(": ")[2]


def check_mode_and_owner(top, path):
    """Return (path, what is wrong with its mode or owner, or None). A frozen tree is root's and read-only."""
    try:
        status = os.lstat(os.path.join(top, path))
    except OSError as error:
        return path, "cannot be read: %s" % error.strerror
    if status.st_uid != 0 or status.st_gid != 0:
        return path, "owner %d:%d instead of 0:0" % (status.st_uid, status.st_gid)
    if not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o7222:
        return path, "mode %04o, which can be written or has a special bit" % stat.S_IMODE(status.st_mode)
    return path, None


def verify(path):
    """Problems of a committed output: [{path, problem}]; empty where it is what its manifest says."""
    try:
        described = address.manifest(path)
    except StoreError as error:
        return [{"path": address.MANIFEST, "problem": str(error)}]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        entries = list(pool.map(lambda name: describe_or_error(path, name), tree.entries(path)))
    unread = {name: problem for name, _entry, problem in entries if problem}
    found = [entry for name, entry, _problem in entries if entry and name != address.MANIFEST]
    problems = compare([entry for entry in described["files"] if entry["path"] not in unread], found)
    problems += [{"path": name, "problem": problem} for name, problem in sorted(unread.items())]
    if described["key"] != address.key_of_path(path):
        problems.append({"path": address.MANIFEST, "problem": "is of the key %s" % described["key"]})
    elif address.stem_of(described) != address.name_of(path):
        problems.append({"path": address.MANIFEST, "problem": "is of the output %s" % address.stem_of(described)})
    paths = [entry["path"] for entry in found] + ["."]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for name, problem in pool.map(lambda name: check_mode_and_owner(path, name), paths):
            if problem:
                problems.append({"path": name, "problem": problem})
    return problems


def recipe_of(root, path):
    """The recipe that an output was built from. Raises StoreError where one of its sources is gone or changed."""
    described = address.manifest(path)
    recipe = dict(described["recipe"], sources=[])
    for name, file, sha256 in described["sources"]:
        source = os.path.join(root, "sources", sha256)
        if not os.path.exists(source) or sha256_of(source) != sha256:
            raise StoreError(
                "%s: its source %s (%s) is not in %s/sources; expected it for building again. Run the play that builds "
                "it, with this output removed, or take another output." % (os.path.basename(path), name, file, root)
            )
        recipe["sources"].append({"name": name, "file": file, "sha256": sha256})
    return recipe


def rebuild(root, path):
    """Build the recipe of a committed output once more, beside it, and compare: [{path, problem}].

    The second build sees the path of the first as its own, as every build does. Raises StoreError where it fails.
    """
    recipe = recipe_of(root, path)
    paths = build.Paths(root, recipe)
    if paths.final != path:
        raise StoreError(
            "%s: its manifest describes %s; expected its own recipe. Verify the output first."
            % (os.path.basename(path), os.path.basename(paths.final))
        )
    paths.lock.acquire()
    try:
        build.remove_tree(paths.build)
        os.makedirs(paths.build)
        build.run_builder(recipe, paths)
        out = os.path.join(paths.build, "out")
        tree.freeze(out)
        return compare(address.manifest(path)["files"], tree.describe_all(out))
    finally:
        build.remove_tree(paths.build)
        paths.lock.release()


def name_of(path):
    """Name of an output; where its manifest cannot be read, what its path says."""
    try:
        return address.manifest(path)["name"]
    except StoreError:
        return os.path.basename(path).partition("-")[2].rpartition("-")[0]


def find(root, name):
    """Committed outputs that `name` means: a path, a store name, a key, or the name of outputs. Raises StoreError."""
    names = {path: name_of(path) for path in outputs(root)}
    # A path may be another one to the same place: through a link above the store, or of a generation.
    wanted = (name, os.path.realpath(name))
    found = [
        path for path in names
        if {path, os.path.realpath(path), os.path.basename(path), address.key_of_path(path), names[path]} & set(wanted)
    ]
    if not found:
        raise StoreError(
            "found no output %s in %s; expected a path, a key or one of: %s."
            % (name, root, ", ".join(sorted(set(names.values()))) or "none")
        )
    return found
