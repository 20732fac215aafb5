#!/usr/bin/python
"""Whether a server answers sense."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: vllm_smoke
short_description: Ask a server for a few tokens and look at them
description:
  - Asks C(/v1/completions) twice for the same greedy answer. Fails where there is none, where a probability is no
    number, where the two differ, or where the answer does not hold what is expected of it. A server whose kernels
    compute garbage passes C(/health) and fails here.
options:
  name:
    description: Instance name of the unit, for messages.
    type: str
    required: true
  host:
    description: Address that the server listens on.
    type: str
    default: 127.0.0.1
  port:
    description: Port that the server listens on.
    type: int
    default: 8000
  api_key_file:
    description: File on the host that holds one line C(VLLM_API_KEY=...); left out for a server without a key.
    type: path
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
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: Ask the server
  vllm_smoke:
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

import json
import time
import urllib.error
import urllib.request

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.host.server import base_url, open_url


class Wrong(Exception):
    """What is wrong with the answer."""


def read_key(path):
    """The key in a file of lines NAME=VALUE; None without a file."""
    if not path:
        return None
    try:
        with open(path) as stream:
            for line in stream:
                name, _, value = line.strip().partition("=")
                if name == "VLLM_API_KEY":
                    return value
    except OSError as error:
        raise Wrong("the key file cannot be read: %s" % error)
    raise Wrong("%s holds no line VLLM_API_KEY=..." % path)


def ask(base, path, key, timeout, body=None):
    """The server's answer to one request, decoded. Raises Wrong."""
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = "Bearer " + key
    request = urllib.request.Request(base + path, headers=headers, data=body and json.dumps(body).encode("utf-8"))
    try:
        return json.loads(open_url(request, timeout).read().decode("utf-8"))
    except urllib.error.HTTPError as error:
        raise Wrong("%s answered %d: %s" % (path, error.code, error.read().decode("utf-8", "replace")[:500]))
    except (OSError, ValueError) as error:
        raise Wrong("%s: %s" % (path, error))


def look_at(choice, tokens):
    """Raise Wrong for an answer that no working model gives."""
    probabilities = (choice.get("logprobs") or {}).get("token_logprobs") or []
    if len(probabilities) != tokens:
        raise Wrong("%d tokens instead of %d: %r" % (len(probabilities), tokens, choice.get("text")))
    # NaN is above nothing and below nothing.
    if not all(value is not None and -1e4 < value <= 1e-3 for value in probabilities):
        raise Wrong("log-probabilities that no model has: %s" % probabilities)


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "host": {"type": "str", "default": "127.0.0.1"},
            "port": {"type": "int", "default": 8000},
            "api_key_file": {"type": "path", "no_log": False},
            "prompt": {"type": "str", "default": "The quick brown fox"},
            "expect": {"type": "str", "default": ""},
            "tokens": {"type": "int", "default": 8},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    params = module.params
    base = base_url(params["host"], params["port"])
    try:
        key = read_key(params["api_key_file"])
        model = ask(base, "/v1/models", key, params["timeout"])["data"][0]["id"]
        body = {
            "model": model, "prompt": params["prompt"], "max_tokens": params["tokens"], "temperature": 0,
            "logprobs": 1, "ignore_eos": True,
        }
        texts = []
        for _ in range(2):
            started = time.time()
            choice = ask(base, "/v1/completions", key, params["timeout"], body)["choices"][0]
            look_at(choice, params["tokens"])
            texts.append(choice["text"])
        if texts[0] != texts[1]:
            raise Wrong("two answers to one greedy question: %r and %r" % tuple(texts))
        if params["expect"] not in texts[0]:
            raise Wrong("%r, which does not hold %r" % (texts[0], params["expect"]))
    except Wrong as wrong:
        module.fail_json(
            msg="vllm@{name}: asked to go on from {prompt!r}, found {wrong}; expected {tokens} tokens that a working "
            "model gives. Look at `journalctl -u vllm@{name}` on the host; `ansible-playbook playbooks/rollback.yml` "
            "goes back to the generation before.".format(wrong=wrong, **params)
        )
    module.exit_json(changed=False, text=texts[0], seconds=round(time.time() - started, 3))


if __name__ == "__main__":
    main()
