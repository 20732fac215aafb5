"""Where an output lives: a path that its inputs alone decide."""

import base64
import hashlib
import json
import os
import re

from .errors import StoreError

KEY_BITS = 160
PLAIN_NAME = re.compile("^[A-Za-z0-9][A-Za-z0-9._+-]*$")
SHA256 = re.compile("^[0-9a-f]{64}$")
MANIFEST = ".kepler-manifest.json"
# What every manifest says.
FIELDS = {"key", "name", "version", "recipe", "sources", "references", "files"}


def check_recipe(recipe):
    """Raise StoreError for a recipe whose names or digests cannot be taken.

    recipe: mapping with name, version, system, builder, environment, sources, inputs, toolchain; and, for the builder
    alone, jobs.
    """
    for field in ("name", "version"):
        if not PLAIN_NAME.match(recipe[field]):
            raise StoreError(
                "%s: found %r; expected letters, digits and . _ + - alone. Correct the recipe."
                % (field, recipe[field])
            )
    for source in recipe["sources"]:
        if not SHA256.match(source.get("sha256") or ""):
            raise StoreError(
                "source %s: found sha256 %r; expected 64 hexadecimal digits. Nothing is fetched without a digest: add "
                "it to files/lock." % (source.get("name"), source.get("sha256"))
            )
        if not PLAIN_NAME.match(source.get("file") or ""):
            raise StoreError(
                "source %s: found file %r; expected a plain file name. Correct files/lock."
                % (source.get("name"), source.get("file"))
            )


def key_of_path(path):
    """Key of a store path."""
    return os.path.basename(os.path.normpath(path)).split("-")[0]


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


def read_json(path, fields):
    """The mapping that a JSON file holds. Raises OSError, or ValueError for what is none or lacks one of `fields`."""
    with open(path) as stream:
        found = json.load(stream)
    if not isinstance(found, dict) or set(fields) - set(found):
        raise ValueError("it has not all of %s" % ", ".join(sorted(fields)))
    return found


def manifest(path):
    """The manifest of a committed output. Raises StoreError where there is none that can be read."""
    try:
        return read_json(os.path.join(path, MANIFEST), FIELDS)
    except (OSError, ValueError) as error:
        raise StoreError(
            "%s: found no manifest that can be read (%s); expected the one of a committed output. Look at the disk "
            "(`journalctl -k`), remove that output and run the play, which makes it again." % (path, error)
        )


def is_committed(path):
    """Whether the store path holds a whole output. Before its commit it is absent, or an empty directory."""
    return os.path.exists(os.path.join(path, MANIFEST))
