#!/usr/bin/python
"""Pack a source tree so that equal content gives equal bytes."""

DOCUMENTATION = r"""
module: source_archive
short_description: Pack a source tree so that equal content gives equal bytes
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Writes an uncompressed tar of a directory with sorted names, one owner, one time and normalized
    modes, so that two checkouts of the same content have one sha256. A link is packed as the file or directory that it
    names.
options:
  path:
    description: Directory to pack.
    type: path
    required: true
  prefix:
    description: Name of the top directory in the archive.
    type: str
    required: true
  exclude:
    description: Shell patterns; a file or directory whose name, or whose path below O(path), matches is left out.
    type: list
    elements: str
    default: []
  dest:
    description: Directory that receives the archive under the name C(PREFIX-SHA256.tar).
    type: path
    required: true
attributes:
  check_mode:
    support: full
    description: The archive is a cache of content that is there already, so it is written in check mode too.
"""

EXAMPLES = r"""
- name: Pack the port
  kepler.vllm.source_archive:
    path: vllm_src
    prefix: vllm_kepler
    exclude: [upstream, __pycache__]
    dest: /var/tmp/archives
  delegate_to: localhost
"""

RETURN = r"""
file:
  description: Path of the archive.
  type: str
  returned: success
sha256:
  description: SHA-256 of the archive.
  type: str
  returned: success
"""

import fnmatch
import hashlib
import os
import shutil
import tarfile
import tempfile

from ansible.module_utils.basic import AnsibleModule

TIME = 315532800  # 1980-01-01: the earliest time that a zip, and so a wheel, can carry


def members(path, exclude):
    """Files below `path` that no pattern excludes, sorted, as paths relative to it."""
    found = []
    for directory, names, files in os.walk(path, followlinks=True):
        relative = os.path.relpath(directory, path)

        def kept(name, relative=relative):
            below = os.path.normpath(os.path.join(relative, name))
            return not any(fnmatch.fnmatch(name, p) or fnmatch.fnmatch(below, p) for p in exclude)

        names[:] = [name for name in names if kept(name)]
        found += [os.path.normpath(os.path.join(relative, name)) for name in files if kept(name)]
    return sorted(found)


def pack(path, prefix, exclude, stream):
    """Write the archive of `path` to the binary `stream`."""
    # A link is packed as what it names: what two trees share is whole in each archive.
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, dereference=True) as archive:
        for name in members(path, exclude):
            source = os.path.join(path, name)
            info = archive.gettarinfo(source, "%s/%s" % (prefix, name))
            info.uid = info.gid = 0
            info.uname = info.gname = "root"
            info.mtime = TIME
            info.mode = 0o755 if info.mode & 0o100 else 0o644
            if info.isfile():
                with open(source, "rb") as content:
                    archive.addfile(info, content)
            else:
                archive.addfile(info)


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "prefix": {"type": "str", "required": True},
            "exclude": {"type": "list", "elements": "str", "default": []},
            "dest": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    path, dest, prefix = module.params["path"], module.params["dest"], module.params["prefix"]
    if not os.path.isdir(path):
        module.fail_json(msg="path: %s: found no directory; expected the source tree of %s." % (path, prefix))
    if not os.path.isdir(dest):
        os.makedirs(dest)
    handle, temporary = tempfile.mkstemp(dir=dest)
    try:
        with os.fdopen(handle, "w+b") as stream:
            pack(path, prefix, module.params["exclude"], stream)
            stream.seek(0)
            digest = hashlib.sha256(stream.read()).hexdigest()
        final = os.path.join(dest, "%s-%s.tar" % (prefix, digest))
        changed = not os.path.exists(final)
        os.chmod(temporary, 0o644)
        shutil.move(temporary, final)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    # A cache entry on the controller is no change of any host's state.
    module.exit_json(changed=False, written=changed, file=final, sha256=digest)


if __name__ == "__main__":
    main()
