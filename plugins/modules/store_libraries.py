#!/usr/bin/python
"""Find the shared libraries of a host that outputs load."""

DOCUMENTATION = r"""
module: store_libraries
short_description: Find the shared libraries of a host that outputs load
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Asks the loader of the host which libraries outside of the store the outputs, and all that they refer to, load.
    Those of the C library and of the GPU's driver are left out.
options:
  root:
    description: Root of the store.
    type: path
    default: /opt/kepler
  outputs:
    description: Store paths of the outputs.
    type: list
    elements: path
    required: true
  within:
    description: Directories outside of the store whose libraries are left out.
    type: list
    elements: path
    default: []
attributes:
  check_mode:
    support: full
    description: Finds none for outputs that are not built yet.
"""

EXAMPLES = r"""
- name: Find the libraries of the servers
  kepler.vllm.store_libraries:
    outputs: ["{{ store_outputs.serving }}"]
"""

RETURN = r"""
libraries:
  description: Name, real path and sha256 of each library, sorted by name.
  type: list
  elements: dict
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils.store import address, libraries
from ansible_collections.kepler.vllm.plugins.module_utils.store.errors import StoreError


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/opt/kepler"},
            "outputs": {"type": "list", "elements": "path", "required": True},
            "within": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    params = module.params
    if module.check_mode and not all(address.is_committed(path) for path in params["outputs"]):
        module.exit_json(changed=False, libraries=[])
    try:
        found = libraries.needed(params["root"], params["outputs"], params["within"])
    except (StoreError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, libraries=found)


if __name__ == "__main__":
    main()
