#!/usr/bin/python
"""One measurement of a running server by vLLM's own benchmark."""

DOCUMENTATION = r"""
module: vllm_bench
short_description: Measure a running server with vLLM's own benchmark
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment:
  - kepler.vllm.attributes
  - kepler.vllm.server
  - kepler.vllm.server.key
description:
  - Runs C(vllm bench serve) of the active generation's serving environment against a server of this host, with random
    prompts of one length, as the server's unprivileged user in a transient unit. A warm-up of C(concurrency) requests
    comes first.
options:
  model:
    description: What the instance serves; its tokenizer makes the prompts.
    type: str
    required: true
  concurrency:
    description: Requests at a time.
    type: int
    required: true
  input_tokens:
    description: Tokens of each prompt.
    type: int
    required: true
  output_tokens:
    description: Tokens of each answer.
    type: int
    required: true
  requests:
    description: Requests in all.
    type: int
    required: true
  root:
    description: Root of the store.
    type: path
    default: /opt/kepler
  user:
    description: Who runs the benchmark.
    type: str
    default: vllm
  timeout:
    description: Longest time in seconds.
    type: int
    default: 3600
attributes:
  check_mode:
    support: none
"""

EXAMPLES = r"""
- name: Measure the servers
  kepler.vllm.vllm_bench:
    name: main
    model: /srv/models/Qwen3-1.7B
    concurrency: 8
    input_tokens: 512
    output_tokens: 128
    requests: 32
"""

RETURN = r"""
figures:
  description:
    - Requests that were C(completed), C(duration) in seconds, C(request_throughput) and C(output_throughput) and
      C(total_token_throughput) a second; C(median) and C(p99) in milliseconds to the first token (C(ttft)), for each
      further one (C(tpot)) and to the end (C(e2el)).
  type: dict
  returned: success
"""

import json
import os
import random

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils.server.api import (
    KEY_OPTION,
    SERVER_OPTIONS,
    Api,
    CheckFailed,
    base_url,
)

FIGURES = ("completed", "duration", "request_throughput", "output_throughput", "total_token_throughput") + tuple(
    "%s_%s_ms" % (which, what) for what in ("ttft", "tpot", "e2el") for which in ("median", "p99")
)
# The work of `vllm bench serve`; the command imports the engine as well, at 5 s of processor time a point.
BENCH = (
    "import argparse; from vllm.benchmarks import serve; parser = argparse.ArgumentParser(); "
    "serve.add_cli_args(parser); serve.main(parser.parse_args())"
)
# Makes the key of the server that of the client, then runs the benchmark and prints what it wrote.
SCRIPT = (
    'OPENAI_API_KEY="$VLLM_API_KEY"; export OPENAI_API_KEY; cd "$(mktemp -d)" || exit; "$@" > log 2>&1; '
    "cat result.json 2> /dev/null || { tail -n 20 log >&2; exit 1; }"
)


def command_of(params, served):
    """The command that measures. served: name of the model in the API."""
    # Prompts of one seed would be in the server's prefix cache, from the measurement before or the run before.
    seed = random.SystemRandom().randrange(2 ** 32)
    properties = ["PrivateTmp=yes", "ProtectSystem=strict", "NoNewPrivileges=yes"]
    environments = ["/etc/kepler/instances/%s.env" % params["name"]]
    if params["api_key_file"]:
        environments.append(params["api_key_file"])
    properties += ["EnvironmentFile=%s" % path for path in environments]
    command = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--uid=%s" % params["user"]]
    for text in properties:
        command += ["--property", text]
    return command + [
        "/bin/sh", "-c", SCRIPT, "bench",
        os.path.join(params["root"], "current", "serving", "bin", "python"), "-c", BENCH,
        "--backend", "openai", "--endpoint", "/v1/completions",
        "--base-url", base_url(params["host"], params["port"]),
        "--model", served, "--tokenizer", params["model"],
        "--dataset-name", "random", "--random-input-len", str(params["input_tokens"]),
        "--random-output-len", str(params["output_tokens"]), "--ignore-eos", "--seed", str(seed),
        "--num-prompts", str(params["requests"]), "--max-concurrency", str(params["concurrency"]),
        "--percentile-metrics", "ttft,tpot,e2el", "--metric-percentiles", "99", "--disable-tqdm",
        "--save-result", "--result-filename", "result.json",
    ]


def main():
    module = AnsibleModule(
        argument_spec={
            **SERVER_OPTIONS,
            **KEY_OPTION,
            "model": {"type": "str", "required": True},
            "concurrency": {"type": "int", "required": True},
            "input_tokens": {"type": "int", "required": True, "no_log": False},
            "output_tokens": {"type": "int", "required": True, "no_log": False},
            "requests": {"type": "int", "required": True},
            "root": {"type": "path", "default": "/opt/kepler"},
            "user": {"type": "str", "default": "vllm"},
            "timeout": {"type": "int", "default": 3600},
        },
    )
    params = module.params
    where = "vllm@%s: " % params["name"]
    try:
        api = Api(params["host"], params["port"], params["api_key_file"], params["timeout"])
        served, longest = api.model()
    except CheckFailed as error:
        module.fail_json(msg="%sfound %s; expected a server that answers. Start it, then run again." % (where, error))
    tokens = params["input_tokens"] + params["output_tokens"]
    if longest and tokens > longest:
        module.fail_json(
            msg="%sbench_lengths: found %d tokens for prompt and answer; expected at most the %d that it takes. Ask "
            "for fewer, or raise max_model_len." % (where, tokens, longest)
        )
    command = ["timeout", str(params["timeout"])] + command_of(params, served)
    status, printed, errors = module.run_command(command)
    try:
        result = json.loads(printed)
    except ValueError:
        tail = errors.strip()[-2000:]
        module.fail_json(msg="%svllm bench serve left no result (status %d):\n%s" % (where, status, tail))
    if result["completed"] != params["requests"]:
        module.fail_json(
            msg="%sfound %d answers to %d requests; expected all. Look at `journalctl -u vllm@%s`." % (
                where, result["completed"], params["requests"], params["name"]
            )
        )
    module.exit_json(changed=False, figures={name: round(result[name], 3) for name in FIGURES})


if __name__ == "__main__":
    main()
