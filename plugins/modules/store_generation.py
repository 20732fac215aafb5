#!/usr/bin/python
"""Make a set of outputs the active generation of a host."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: store_generation
short_description: Make a set of outputs the active generation of a host
description:
  - Writes a new numbered generation and activates it by one rename of C(current). Does nothing where the active
    generation holds the same outputs, kernel, driver and lock already.
options:
  root:
    description: Root of the store.
    type: path
    default: /opt/kepler
  outputs:
    description: Store path of each output by its name.
    type: dict
    required: true
  kernel:
    description: Release of the running kernel.
    type: str
    required: true
  driver:
    description: Version of the driver.
    type: str
    required: true
  lock_hash:
    description: SHA-256 of the lock.
    type: str
    required: true
attributes:
  check_mode:
    support: full
    description: Says whether a new generation would be made; makes none.
  diff_mode:
    support: full
    description: Shows the outputs of both generations.
"""

EXAMPLES = r"""
- name: Activate
  store_generation:
    outputs: "{{ store_outputs }}"
    kernel: "{{ ansible_kernel }}"
    driver: "470.256.02"
    lock_hash: "{{ kepler_lock | to_json(sort_keys=true) | hash('sha256') }}"
"""

RETURN = r"""
generation:
  description: Number of the active generation; in check mode, of the one that is active now.
  type: int
  returned: always
path:
  description: Path of that generation.
  type: str
  returned: always
previous:
  description: Number of the generation that was active before.
  type: int
  returned: always
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.store import generation
from ansible.module_utils.store.errors import StoreError


def listing(outputs):
    return "".join("%s: %s\n" % (name, path) for name, path in sorted(outputs.items()))


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/opt/kepler"},
            "outputs": {"type": "dict", "required": True},
            "kernel": {"type": "str", "required": True},
            "driver": {"type": "str", "required": True},
            "lock_hash": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    root = module.params["root"]
    wanted = {field: module.params[field] for field in generation.SAME}
    previous = generation.number_of(os.path.join(root, "current"))
    before = generation.read(root, previous)["outputs"] if previous else {}
    number, changed = previous, generation.differs(root, wanted)
    if changed and not module.check_mode:
        try:
            number, changed = generation.ensure(root, wanted)
        except StoreError as error:
            module.fail_json(msg=str(error))
    module.exit_json(
        changed=changed,
        generation=number,
        previous=previous,
        path=os.path.join(root, "generations", str(number)),
        diff={"before": listing(before), "after": listing(wanted["outputs"])} if changed else {},
    )


if __name__ == "__main__":
    main()
