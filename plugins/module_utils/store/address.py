"""The path of an output, which its inputs alone decide."""

import base64
import hashlib
import json
import os
import re

from . import schema
from .errors import StoreError

KEY_BITS = 160
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*\Z")
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
KEY = r"[a-z2-7]{%d}" % (KEY_BITS // 5)
# Name of an output in the store: its key, name and version.
OUTPUT = re.compile(r"(%s)-(.+)\Z" % KEY, re.DOTALL)
NAME_BYTES = 255  # of a name on a Linux file system
LONGEST_ENDING = ".manifest.json.asc"  # of what is published of an output
LONGEST_SOURCE_ENDING = ".rejected-0123456789abcdef"
MANIFEST = ".kepler-manifest.json"


def is_sha256(value):
    return isinstance(value, str) and bool(SHA256.match(value))


def is_row(value):
    """Return whether a value is what a manifest says of a source: name, file and sha256."""
    return (
        isinstance(value, list) and len(value) == 3 and all(isinstance(one, str) for one in value)
        and is_sha256(value[2])
    )


def is_entry(value):
    """Return whether a value describes one path in a manifest. One function, not kinds: a manifest has up to 40,000."""
    if not (isinstance(value, dict) and isinstance(value.get("path"), str) and isinstance(value.get("type"), str)):
        return False
    if value["type"] == "link":
        return isinstance(value.get("target"), str)
    if value["type"] == "file":
        return (
            schema.is_natural(value.get("size")) and isinstance(value.get("executable"), bool)
            and isinstance(value.get("sha256"), str)
        )
    return True


# Kinds of the fields of a recipe, but for its sources; see schema.py.
RECIPE = {
    "name": str, "version": str, "system": str, "builder": str, "environment": {str: str}, "inputs": {str: str},
    "toolchain": [str],
}
# Kinds of what every manifest says.
FIELDS = {
    "key": str, "name": str, "version": str, "recipe": RECIPE, "sources": [is_row], "references": [str],
    "files": [is_entry],
}


def is_plain(name, ending=""):
    """Return whether `name` can be the name of a file, with each ending that the store gives it."""
    return (
        isinstance(name, str) and bool(PLAIN_NAME.match(name))
        and len(os.fsencode(name + ending)) <= NAME_BYTES
    )


def check_recipe(recipe):
    """Raise StoreError for a recipe whose names or digests cannot be taken.

    recipe: mapping with name, version, system, builder, environment, sources, inputs, toolchain; and, for the builder
    alone, jobs.
    """
    for field in ("name", "version"):
        if not is_plain(recipe[field]):
            raise StoreError(
                "%s: found %r; expected letters, digits and . _ + - alone. Correct the recipe."
                % (field, recipe[field])
            )
    wrong = schema.misfit(recipe, dict(RECIPE, sources=[dict]))
    if wrong:
        raise StoreError(
            "%s: %s; expected texts, as the documentation of store_output has them. Correct the recipe."
            % (recipe["name"], wrong)
        )
    name = "%s-%s-%s" % ("k" * (KEY_BITS // 5), recipe["name"], recipe["version"])
    if not is_plain(name, LONGEST_ENDING):
        raise StoreError(
            "name, version: found %d characters; expected at most %d, as files are named after them. Correct the "
            "recipe." % (
                len(recipe["name"] + recipe["version"]),
                len(recipe["name"] + recipe["version"]) + NAME_BYTES - len(name + LONGEST_ENDING),
            )
        )
    for source in recipe["sources"]:
        if not is_sha256(source.get("sha256")):
            raise StoreError(
                "source %s: found sha256 %r; expected 64 hexadecimal digits. Nothing is fetched without a digest: add "
                "it to the lock." % (source.get("name"), source.get("sha256"))
            )
        if not is_plain(source.get("file"), LONGEST_SOURCE_ENDING):
            raise StoreError(
                "source %s: found file %r; expected a plain file name. Correct the lock."
                % (source.get("name"), source.get("file"))
            )


def listing(directory):
    """Sorted names in a directory; none where there is no directory."""
    return sorted(os.listdir(directory)) if os.path.isdir(directory) else []


def name_of(path):
    """Name of an output. It stands for the output wherever its store lies: a link may lead there by another path."""
    return os.path.basename(os.path.normpath(path))


def stem_of(manifest):
    """Name of an output as its manifest says it; of what is published of it, without its endings."""
    return "%s-%s-%s" % (manifest["key"], manifest["name"], manifest["version"])


def key_of_path(path):
    """Key of a store path."""
    return name_of(path).split("-")[0]


def key(recipe):
    """Key of an output: base32 of the first 160 bits of SHA-256 over the canonical JSON of its inputs.

    Sources count by name of file and digest in their order; inputs by alias and key; where a source comes from does
    not count.
    """
    described = {
        "name": recipe["name"],
        "version": recipe["version"],
        "system": recipe["system"],
        "builder": recipe["builder"],
        "environment": recipe["environment"],
        "sources": [[source["file"], source["sha256"]] for source in recipe["sources"]],
        "inputs": {alias: key_of_path(path) for alias, path in recipe["inputs"].items()},
        "toolchain": recipe["toolchain"],
    }
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    digest = hashlib.sha256(canonical.encode("ascii")).digest()
    return base64.b32encode(digest[: KEY_BITS // 8]).decode("ascii").lower()


def output_path(root, recipe):
    """Store path of the output of `recipe`."""
    return os.path.join(root, "store", "%s-%s-%s" % (key(recipe), recipe["name"], recipe["version"]))


def manifest(path):
    """The manifest of a committed output. Raises StoreError where there is none that can be read."""
    try:
        return schema.read_json(os.path.join(path, MANIFEST), FIELDS)
    except (OSError, ValueError) as error:
        raise StoreError(
            "%s: found no manifest that can be read (%s); expected the one of a committed output. Look at the disk "
            "(`journalctl -k`), remove that output and run the play, which makes it again." % (path, error)
        )


def is_committed(path):
    """Return whether the store path holds a whole output. `manifest` reports a manifest that cannot be read."""
    return os.path.lexists(os.path.join(path, MANIFEST))
