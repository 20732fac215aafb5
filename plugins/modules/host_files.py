#!/usr/bin/python
"""Lay several of root's directories and files down in one go."""

DOCUMENTATION = r"""
module: host_files
short_description: Lay directories and files of root down in one go
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - What C(ansible.builtin.file), C(copy) and C(template) do one path at a time, for all paths of a task at once. A
    second run over a dozen unchanged files starts one program on the host, where those modules start two for each.
  - Each file is replaced as a whole or not at all. All belong to root.
  - The content passes through the arguments of the module. What is secret, or large, is laid down otherwise.
  - C(src) and C(template) are read on the controller, found where C(copy) and C(template) find theirs.
options:
  directories:
    description: Absolute paths of directories that are to be there, mode C(0755). Parents that are missing are made.
    type: list
    elements: path
    default: []
  files:
    description: The files, each with exactly one of C(src), C(template) and C(content).
    type: list
    elements: dict
    default: []
    suboptions:
      dest:
        description: Absolute path of the file. Its directory is there, or among O(directories).
        type: path
        required: true
      src:
        description: UTF-8 text file on the controller.
        type: str
      template:
        description: Template on the controller.
        type: str
      content:
        description: The text itself.
        type: str
      mode:
        description: Permissions, of a text or of a program.
        type: str
        choices: ["0644", "0755"]
        default: "0644"
attributes:
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: Lay a program and its unit down
  kepler.vllm.host_files:
    directories: [/usr/local/libexec/kepler-example]
    files:
      - {src: example.py, dest: /usr/local/libexec/kepler-example/example.py, mode: "0755"}
      - {template: example.service.j2, dest: /etc/systemd/system/example.service}
"""

RETURN = r"""
paths:
  description: What was changed, or would be in check mode.
  type: list
  elements: str
  returned: success
"""

import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils.store.disk import set_umask


def read(path):
    """Text of the file `path`; None where there is none."""
    try:
        with open(path, "rb") as stream:
            return stream.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return None


def put(module, path, text):
    """Replace the file `path` by one that holds `text`."""
    handle, draft = tempfile.mkstemp(prefix=".kepler-", dir=os.path.dirname(path))
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(text.encode("utf-8"))
        module.atomic_move(draft, path)
    finally:
        if os.path.exists(draft):
            os.unlink(draft)


def attributes(module, path, mode, changed):
    """Return whether owner, permissions or security context of `path` differed, or `changed`; they are set."""
    wanted = module.load_file_common_arguments({"path": path, "owner": "root", "group": "root", "mode": mode})
    return module.set_fs_attributes_if_different(wanted, changed)


def lay_directory(module, path):
    """Make sure of one directory; whether something differed, and the differences."""
    missing = not os.path.isdir(path)
    if missing and not module.check_mode:
        os.makedirs(path, 0o755)
    before, after = ("absent\n", "directory\n") if missing else ("", "")
    return attributes(module, path, "0755", missing), before, after


def lay_file(module, dest, content, mode):
    """Make sure of one file; whether something differed, and the texts before and after."""
    before = read(dest)
    differs = before != content
    if differs and not module.check_mode:
        put(module, dest, content)
    return attributes(module, dest, mode, differs), before or "", content


def main():
    option = {
        "dest": {"type": "path", "required": True},
        "content": {"type": "str", "required": True},
        "mode": {"type": "str", "choices": ["0644", "0755"], "default": "0644"},
    }
    set_umask()
    module = AnsibleModule(
        argument_spec={
            "directories": {"type": "list", "elements": "path", "default": []},
            "files": {"type": "list", "elements": "dict", "default": [], "options": option},
        },
        supports_check_mode=True,
    )
    work = [(path, lay_directory, ()) for path in module.params["directories"]]
    work += [(item["dest"], lay_file, (item["content"], item["mode"])) for item in module.params["files"]]
    paths, diff = [], []
    for path, lay, arguments in work:
        try:
            changed, before, after = lay(module, path, *arguments)
        except (OSError, IOError) as error:
            module.fail_json(msg="%s: cannot be laid down (%s); expected a place that root can write to. Laid down "
                                 "before: %s." % (path, error, ", ".join(paths) or "nothing"))
        if changed:
            paths.append(path)
            diff.append({"before_header": path, "after_header": path, "before": before, "after": after})
    module.exit_json(changed=bool(paths), paths=paths, diff=diff)


if __name__ == "__main__":
    main()
