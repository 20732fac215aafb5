#!/usr/bin/python
"""Check that a server's answers make sense."""

DOCUMENTATION = r"""
module: vllm_smoke
short_description: Ask a server for a few tokens and look at them
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment:
  - kepler.vllm.attributes
  - kepler.vllm.server
  - kepler.vllm.server.key
description:
  - Asks C(/v1/completions) twice for the same greedy answer. Fails where there is none, where a probability is no
    number, where the two differ, where the answer does not hold what is expected of it, or where a server with a key
    answers without it. A server whose kernels compute garbage passes C(/health) and fails here.
options:
  prompt:
    description: What the model goes on from.
    type: str
    default: The quick brown fox
  expect:
    description: Text that the answer must hold; empty for any.
    type: str
    default: ""
  tokens:
    description: How many tokens are asked for.
    type: int
    default: 8
  timeout:
    description: Longest time in seconds for one answer.
    type: int
    default: 300
attributes:
  check_mode:
    support: full
    description: Only asks.
"""

EXAMPLES = r"""
- name: Ask the server
  kepler.vllm.vllm_smoke:
    name: main
    port: 8000
    prompt: One, two, three,
    expect: four
"""

RETURN = r"""
text:
  description: The answer.
  type: str
  returned: success
seconds:
  description: Time of the second answer.
  type: float
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils.server.api import (
    KEY_OPTION,
    SERVER_OPTIONS,
    Api,
    CheckFailed,
    quarantine_headers,
)


def main():
    module = AnsibleModule(
        argument_spec={
            **SERVER_OPTIONS,
            **KEY_OPTION,
            "prompt": {"type": "str", "default": "The quick brown fox"},
            "expect": {"type": "str", "default": ""},
            "tokens": {"type": "int", "default": 8, "no_log": False},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        headers = quarantine_headers(params["name"])
        api = Api(params["host"], params["port"], params["api_key_file"], params["timeout"], headers)
        api.check_key_is_required()
        model, _ = api.model()
        text, seconds = api.complete_twice(model, params["prompt"], params["tokens"])
        if params["expect"] not in text:
            raise CheckFailed("%r, which does not hold %r" % (text, params["expect"]))
    except CheckFailed as error:
        module.fail_json(
            msg="vllm@{name}: asked to go on from {prompt!r}, found {error}; expected {tokens} tokens that a working "
            "model gives. Look at `journalctl -u vllm@{name}` on the host; `ansible-playbook playbooks/rollback.yml` "
            "goes back to the generation before.".format(error=error, **params)
        )
    module.exit_json(changed=False, text=text, seconds=round(seconds, 3))


if __name__ == "__main__":
    main()
