#!/usr/bin/python
"""Say what is wrong with files that hold the keys of servers. Changes nothing."""

DOCUMENTATION = r"""
module: key_file_facts
short_description: What is wrong with files that hold the keys of servers
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Reads each file as systemd reads an environment file and says why a server would get no key from it, or who else
    could read it. The key itself, and what else a file holds, stays on the host.
  - Reads only. The filter P(kepler.vllm.key_file_findings#filter) makes findings of it.
options:
  paths:
    description: Absolute paths of the files.
    type: list
    elements: str
    required: true
  variable:
    description: The variable in them that holds the key.
    type: str
    default: VLLM_API_KEY
"""

EXAMPLES = r"""
- name: Read the key files
  kepler.vllm.key_file_facts:
    paths: [/etc/kepler/keys/servers.env]
  register: keys
"""

RETURN = r"""
files:
  description: Path to C(found) and C(expected), or to none for a file that is as it should be.
  type: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils.server.key_file import KeyFileError, check_key_file
from ansible_collections.kepler.vllm.plugins.module_utils.server.key_text import NAME


def fault_of(path, variable):
    """Fault of one file, or None."""
    try:
        check_key_file(path, variable)
    except KeyFileError as error:
        return {"found": error.found, "expected": error.expected}
    return None


def main():
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "str", "required": True, "no_log": False},
            "variable": {"type": "str", "default": NAME},
        },
        supports_check_mode=True,
    )
    variable = module.params["variable"]
    module.exit_json(changed=False, files={path: fault_of(path, variable) for path in module.params["paths"]})


if __name__ == "__main__":
    main()
