"""The contents of a generation as CycloneDX 1.5 (ECMA-424), read from the disk."""

import email.parser
import glob
import json
import os
import re
import time
import uuid

from . import address, generation
from .errors import StoreError

NEVRA = re.compile(r"^(?P<name>.+)-(?:(?P<epoch>\d+):)?(?P<version>[^-]+)-(?P<release>[^-]+)\.(?P<arch>[^.]+)$")


def python_packages(path):
    """Components of the distributions that are installed in an output."""
    found = []
    for directory in sorted(glob.glob(os.path.join(path, "**", "*.dist-info"), recursive=True)):
        metadata = os.path.join(directory, "METADATA")
        try:
            with open(metadata, errors="replace") as stream:
                fields = email.parser.HeaderParser().parse(stream)
        except OSError as error:
            raise StoreError("%s: %s; expected what a Python package says of itself. Verify the output."
                             % (metadata, error.strerror))
        if not fields["Name"] or not fields["Version"]:
            raise StoreError("%s: found no name and version; expected those of a Python package. Verify the output."
                             % metadata)
        project = re.sub("[-_.]+", "-", fields["Name"]).lower()
        component = {
            "type": "library", "name": fields["Name"], "version": fields["Version"],
            "purl": "pkg:pypi/%s@%s" % (project, fields["Version"]),
        }
        license = fields["License-Expression"] or fields["License"]
        # Some packages put the whole text of the license there.
        if license and len(license) < 80 and "\n" not in license:
            component["licenses"] = [{"license": {"name": license}}]
        found.append(component)
    return found


def toolchain(nevras):
    """Components of packages, such as those an output was built with; a tool that is none goes by its own words."""
    found = []
    for nevra in nevras:
        parts = NEVRA.match(nevra)
        if parts:
            purl = "pkg:rpm/rocky/%(name)s@%(version)s-%(release)s?arch=%(arch)s" % parts.groupdict()
            if parts.group("epoch") not in (None, "0"):
                purl += "&epoch=" + parts.group("epoch")
            found.append({
                "type": "application", "name": parts.group("name"), "purl": purl,
                "version": "%s-%s" % (parts.group("version"), parts.group("release")),
            })
        else:
            found.append({"type": "application", "name": nevra, "version": "as it says of itself"})
    return found


def component_of(path):
    """The component of one output; what it holds lies within it, what it was built from beside that as evidence."""
    described = address.manifest(path)
    key = described["key"]
    parts = python_packages(path) + toolchain(described["recipe"]["toolchain"])
    for name, file, sha256 in described["sources"]:
        parts.append({
            "type": "file", "name": file, "description": "source %s" % name,
            "hashes": [{"alg": "SHA-256", "content": sha256}],
        })
    for number, part in enumerate(parts):
        part["bom-ref"] = "%s/%d" % (key, number)
    return {
        "type": "application",
        "bom-ref": key,
        "name": described["name"],
        "version": described["version"],
        "purl": "pkg:generic/%s@%s?key=%s" % (described["name"], described["version"], key),
        "components": parts,
    }


def dependencies(paths):
    """What each output depends on."""
    return [
        {"ref": address.key_of_path(path),
         "dependsOn": sorted(address.key_of_path(other) for other in address.manifest(path)["references"])}
        for path in paths
    ]


def numbered(document):
    """A document with the serial number that follows from its content."""
    content = json.dumps(document, sort_keys=True)
    return dict(document, serialNumber="urn:uuid:%s" % uuid.uuid5(uuid.NAMESPACE_URL, content))


def sbom(root, number):
    """The bill of materials of a generation: a mapping, the same for the same generation."""
    described = generation.read(root, number)
    paths = sorted(described["outputs"].values())
    packages = [dict(part, **{"bom-ref": part["purl"]}) for part in toolchain(described["packages"])]
    return numbered({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(described["time"])),
            "component": {
                "type": "application", "bom-ref": "generation", "name": "generation", "version": str(number),
                "properties": [
                    {"name": "kepler:" + name, "value": described[name]} for name in ("kernel", "driver", "lock_hash")
                ],
            },
        },
        "components": [component_of(path) for path in paths] + packages,
        "dependencies": [
            {"ref": "generation", "dependsOn": [address.key_of_path(path) for path in paths]},
        ] + dependencies(paths),
    })
