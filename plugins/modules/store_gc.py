#!/usr/bin/python
"""Remove from the store of a host what nothing refers to."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: store_gc
short_description: Remove from the store of a host what nothing refers to
description:
  - Keeps the active generation, the one before it, the last O(keep), all outputs that these refer to, and those that a
    running process uses. Removes the other generations and outputs, and files whose hash was wrong.
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
  store_gc:
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
from ansible.module_utils.store import collect
from ansible.module_utils.store.errors import StoreError


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/opt/kepler"},
            "keep": {"type": "int", "default": collect.KEEP},
            "sources": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    run = collect.plan if module.check_mode else collect.collect
    try:
        removed = run(module.params["root"], module.params["keep"], module.params["sources"])
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
