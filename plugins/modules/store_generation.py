#!/usr/bin/python
"""Make a set of outputs the active generation of a host."""

DOCUMENTATION = r"""
module: store_generation
short_description: Make a generation the active one of a host
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - With O(outputs), writes a new numbered generation and activates it by one rename of C(current). Does nothing where
    the active generation holds the same outputs, kernel, driver and lock already.
  - With O(activate), makes a generation that is there the active one. Refuses one that was proven with another kernel
    or driver.
options:
  root:
    description: Root of the store.
    type: path
    default: /opt/kepler
  outputs:
    description: Store path of each output by its name.
    type: dict
  activate:
    description:
      - A number, or V(previous) for the generation that was active before this one. Where V(previous) led to the active
        one already, nothing changes; going further back takes a number.
    type: str
  force:
    description: Activate whatever the kernel and driver are.
    type: bool
    default: false
  kernel:
    description: Release of the running kernel.
    type: str
    required: true
  driver:
    description: Version of the driver.
    type: str
    required: true
  lock_hash:
    description: SHA-256 of the lock. Required with O(outputs).
    type: str
  packages:
    description:
      - Names of RPMs. A new generation records which versions of them are installed. They make no generation another
        one.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
    description: Says which generation would be active; changes nothing.
  diff_mode:
    support: full
    description: Shows the outputs of both generations.
"""

EXAMPLES = r"""
- name: Activate
  kepler.vllm.store_generation:
    outputs: "{{ store_outputs }}"
    kernel: "{{ ansible_kernel }}"
    driver: "{{ (kepler_lock | kepler.vllm.locked_driver).driver }}"
    lock_hash: "{{ kepler_lock | to_json(sort_keys=true) | hash('sha256') }}"
    packages: "{{ kepler_lock.rpms | map(attribute='name') }}"

- name: Roll back
  kepler.vllm.store_generation:
    activate: previous
    kernel: "{{ ansible_kernel }}"
    driver: "{{ (kepler_lock | kepler.vllm.locked_driver).driver }}"
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
from ansible_collections.kepler.vllm.plugins.module_utils.store import generation
from ansible_collections.kepler.vllm.plugins.module_utils.store.disk import set_umask
from ansible_collections.kepler.vllm.plugins.module_utils.store.errors import StoreError

# A tab between the name, to look for, and what is recorded.
RECORD_FORMAT = "%{NAME}\t%{NAME}-%{EPOCHNUM}:%{VERSION}-%{RELEASE}.%{ARCH}\n"


def listing(outputs):
    return "".join("%s: %s\n" % (name, path) for name, path in sorted(outputs.items()))


def asked(params):
    """The generation that is asked for: a number, or "previous"."""
    return int(params["activate"]) if generation.NUMBER.match(params["activate"]) else params["activate"]


def outputs_of(root, number):
    """Outputs of a generation; none where there is none that can be read."""
    try:
        return generation.read(root, number)["outputs"]
    except StoreError:
        return {}


def installed(module):
    """Sorted NEVRAs of the packages to record, as rpm prints them."""
    names = set(module.params["packages"])
    if not names or not module.get_bin_path("rpm"):
        return []
    _, printed, _ = module.run_command(["rpm", "-qa", "--queryformat", RECORD_FORMAT], check_rc=True)
    return sorted(line.split("\t")[1] for line in printed.splitlines() if line.split("\t")[0] in names)


def prepare(root, params):
    """(number or None for a new generation, outputs, whether the active generation would be another one)."""
    if params["outputs"] is None:
        number = generation.resolve(root, asked(params))
        generation.check_fits(root, number, params["kernel"], params["driver"], params["force"])
        outputs = generation.read(root, number)["outputs"]
        return number, outputs, number != generation.number_of(os.path.join(root, "current"))
    wanted = {field: params[field] for field in generation.SAME}
    return None, wanted["outputs"], generation.changed(root, wanted)


def main():
    set_umask()
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/opt/kepler"},
            "outputs": {"type": "dict"},
            "activate": {"type": "str"},
            "force": {"type": "bool", "default": False},
            "kernel": {"type": "str", "required": True},
            "driver": {"type": "str", "required": True},
            "lock_hash": {"type": "str"},
            "packages": {"type": "list", "elements": "str", "default": []},
        },
        required_one_of=[("outputs", "activate")],
        mutually_exclusive=[("outputs", "activate")],
        required_by={"outputs": ["lock_hash"]},
        supports_check_mode=True,
    )
    params, root = module.params, module.params["root"]
    previous = generation.number_of(os.path.join(root, "current"))
    before = outputs_of(root, previous)
    try:
        number, outputs, changed = prepare(root, params)
        if changed and not module.check_mode:
            if number is None:
                wanted = {field: params[field] for field in generation.SAME}
                number, changed = generation.ensure(root, wanted, installed(module))
            else:
                number, changed = generation.switch(
                    root, asked(params), params["kernel"], params["driver"], params["force"]
                )
    except StoreError as error:
        module.fail_json(msg=str(error))
    if number is None:
        number = previous
    module.exit_json(
        changed=changed,
        generation=number,
        previous=previous,
        path=os.path.join(root, "generations", str(number)),
        diff={"before": listing(before), "after": listing(outputs)} if changed else {},
    )


if __name__ == "__main__":
    main()
