#!/usr/bin/python
"""One check of a running server."""

DOCUMENTATION = r"""
module: vllm_acceptance
short_description: Check one thing about a running server
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment:
  - kepler.vllm.attributes
  - kepler.vllm.server
  - kepler.vllm.server.key
description:
  - Asks a server of this host, or looks at its processes and its log, and says what it found. A server that does not
    pass is no failure of the task, so that all checks are made; C(result) has the outcome.
options:
  check:
    description: What to look at. C(record) returns answers for later checks of C(golden).
    type: str
    required: true
    choices: [completion, chat, chat_stream, log, memory, coherent, golden, load, decisions, record]
  device:
    description: Where the server computes.
    type: str
    choices: [kepler, verify, cpu]
    default: kepler
  dies:
    description: Numbers of its GPUs, as nvidia-smi counts them.
    type: list
    elements: int
    default: []
  dtype:
    description: How its weights and KV cache are stored, C(float32) or C(half).
    type: str
    default: float32
  cuda_graphs:
    description: Whether it decodes with CUDA graphs; on the CPU no server does.
    type: bool
    default: false
  concurrency:
    description: Requests at a time in C(load) and C(decisions).
    type: int
    default: 8
  requests:
    description: Requests in all in C(load) and C(decisions).
    type: int
    default: 32
  long_tokens:
    description: Tokens of the long answer of C(coherent).
    type: int
    default: 500
  golden:
    description: Recorded answers, each with C(prompt), C(tokens) and C(text).
    type: list
    elements: dict
    default: []
  golden_prompts:
    description: Prompts that C(record) asks.
    type: list
    elements: str
    default: []
  golden_tokens:
    description: Tokens of each answer that C(record) takes.
    type: int
    default: 24
  timeout:
    description: Longest time in seconds for one answer.
    type: int
    default: 600
attributes:
  check_mode:
    support: partial
    description: Asks nothing, so that no server has load of it.
"""

EXAMPLES = r"""
- name: Load the server
  kepler.vllm.vllm_acceptance:
    name: main
    check: load
    concurrency: 32
    requests: 128
"""

RETURN = r"""
result:
  description: V(passed), V(failed) or V(skipped).
  type: str
  returned: always
found:
  description: What was found, in a line.
  type: str
  returned: always
figures:
  description: Numbers of this check.
  type: dict
  returned: always
model:
  description: The model's name in the API; empty if the server did not answer.
  type: str
  returned: always
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils.server.acceptance import CHECKS, CheckContext, CheckSkipped
from ansible_collections.kepler.vllm.plugins.module_utils.server.api import KEY_OPTION, SERVER_OPTIONS, Api, CheckFailed


def main():
    module = AnsibleModule(
        argument_spec={
            **SERVER_OPTIONS,
            **KEY_OPTION,
            "check": {"type": "str", "required": True, "choices": list(CHECKS)},
            "device": {"type": "str", "choices": ["kepler", "verify", "cpu"], "default": "kepler"},
            "dies": {"type": "list", "elements": "int", "default": []},
            "dtype": {"type": "str", "default": "float32"},
            "cuda_graphs": {"type": "bool", "default": False},
            "concurrency": {"type": "int", "default": 8},
            "requests": {"type": "int", "default": 32},
            "long_tokens": {"type": "int", "default": 500, "no_log": False},
            "golden": {"type": "list", "elements": "dict", "default": []},
            "golden_prompts": {"type": "list", "elements": "str", "default": []},
            "golden_tokens": {"type": "int", "default": 24, "no_log": False},
            "timeout": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    params = module.params
    started = time.time()
    answer = {"result": "passed", "figures": {}, "model": "", "name": params["name"], "check": params["check"]}
    if module.check_mode:
        module.exit_json(changed=False, seconds=0.0, **dict(answer, result="skipped", found="a dry run asks nothing"))
    try:
        context = CheckContext(Api(params["host"], params["port"], params["api_key_file"], params["timeout"]), params)
        answer["model"] = context.model
        answer["found"], answer["figures"] = CHECKS[params["check"]](context)
    except CheckSkipped as reason:
        answer.update(result="skipped", found=str(reason))
    except CheckFailed as error:
        answer.update(result="failed", found=str(error))
    module.exit_json(changed=False, seconds=round(time.time() - started, 1), **answer)


if __name__ == "__main__":
    main()
