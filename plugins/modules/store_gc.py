#!/usr/bin/python
"""Remove from the store of a host what nothing refers to."""

DOCUMENTATION = r"""
module: store_gc
short_description: Remove from the store of a host what nothing refers to
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Keeps the active generation, the one before it, the last O(keep), all outputs that these refer to, and those that a
    running process uses or a running build needs. An output that was made, or found to be there, since the last
    generation was made stays as well. Removes the other generations and outputs, files whose hash was wrong, and what
    removals, downloads and publishers that died have left.
  - Fails before it removes anything if what is kept is missing or cannot be read.
options:
  root:
    description: Root of the store.
    type: path
    default: /opt/kepler
  keep:
    description: How many of the last generations stay.
    type: int
    default: 3
  sources:
    description: Remove fetched files as well that no kept output was built from.
    type: bool
    default: false
  published:
    description: Directory that the host publishes into.
    type: path
    default: /var/lib/kepler/published
  archives:
    description: Remove what is published there of outputs that are not kept as well.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Says what would go; removes nothing.
  diff_mode:
    support: full
    description: Lists what goes.
"""

EXAMPLES = r"""
- name: Free the store
  kepler.vllm.store_gc:
    keep: 2
"""

RETURN = r"""
freed:
  description: Bytes that were freed, or would be in check mode.
  type: int
  returned: success
removed:
  description: What was removed, or would be; each with C(kind), C(path) and C(bytes).
  type: list
  elements: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils.store import collect
from ansible_collections.kepler.vllm.plugins.module_utils.store.disk import set_umask
from ansible_collections.kepler.vllm.plugins.module_utils.store.errors import StoreError


def main():
    set_umask()
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/opt/kepler"},
            "keep": {"type": "int", "default": collect.KEEP},
            "sources": {"type": "bool", "default": False},
            "published": {"type": "path", "default": collect.PUBLISHED},
            "archives": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    run = collect.plan if module.check_mode else collect.collect
    try:
        removed = run(**module.params)
    except StoreError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(removed),
        removed=removed,
        freed=sum(item["bytes"] for item in removed),
        diff={"before": "".join(item["path"] + "\n" for item in removed), "after": ""} if removed else {},
    )


if __name__ == "__main__":
    main()
