#!/usr/bin/python
"""Compare outputs in the store of a host with their manifests."""

DOCUMENTATION = r"""
module: store_verify
short_description: Compare outputs in the store of a host with their manifests
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Fails where a file of an output is changed, missing or added, or can be written. With O(rebuild), builds the output
    once more from the same inputs and compares the two.
options:
  root:
    description: Root of the store.
    type: path
    default: /opt/kepler
  output:
    description: A path, a key or a name; every output where left out.
    type: str
  rebuild:
    description: Build again and compare. Needs O(output).
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Only looks; with O(rebuild) it does nothing.
"""

EXAMPLES = r"""
- name: Verify the whole store
  kepler.vllm.store_verify:

- name: See whether the kernels are built the same once more
  kepler.vllm.store_verify:
    output: vllm_kernels
    rebuild: true
"""

RETURN = r"""
verified:
  description: Store paths that were looked at.
  type: list
  elements: str
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils.store import collect, verify
from ansible_collections.kepler.vllm.plugins.module_utils.store.disk import set_umask
from ansible_collections.kepler.vllm.plugins.module_utils.store.errors import StoreError

SHOWN = 20


def main():
    set_umask()
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/opt/kepler"},
            "output": {"type": "str"},
            "rebuild": {"type": "bool", "default": False},
        },
        required_if=[("rebuild", True, ["output"])],
        supports_check_mode=True,
    )
    root, output, rebuild = (module.params[name] for name in ("root", "output", "rebuild"))
    try:
        paths = verify.find(root, output) if output else collect.outputs(root)
        if rebuild and module.check_mode:
            module.exit_json(changed=False, verified=[], msg="would build %s again" % ", ".join(paths))
        problems = [
            "%s/%s: %s" % (path, found["path"], found["problem"])
            for path in paths
            for found in (verify.rebuild(root, path) if rebuild else verify.verify(path))
        ]
    except StoreError as error:
        module.fail_json(msg=str(error))
    if problems:
        module.fail_json(
            msg="%d problems in %s:\n%s\n%s" % (
                len(problems), root, "\n".join(problems[:SHOWN]),
                "The output is not built the same twice: see docs/store.md for those that are known." if rebuild else
                "Somebody or a failing disk changed what nothing may change: look at the disk, remove the output with "
                "`kepler-store`'s paths and run the play, which makes it again."
            ),
            problems=problems,
        )
    module.exit_json(changed=False, verified=paths)


if __name__ == "__main__":
    main()
