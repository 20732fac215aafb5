#!/usr/bin/python
"""One measurement of a running server by vLLM's own benchmark."""

DOCUMENTATION = r"""
module: vllm_bench
short_description: Measure a running server, or the balancer before it, with vLLM's own benchmark
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment:
  - kepler.vllm.attributes
  - kepler.vllm.server
  - kepler.vllm.server.key
description:
  - Runs C(vllm bench serve) of the active generation's serving environment against a server of this host, or against
    C(url), with random prompts of one length, as the server's unprivileged user in a transient unit. One request comes
    before those that are measured.
options:
  program:
    description:
      - Text of the program that runs C(vllm bench serve) with its options and C(--turns); that of the role C(bench).
    type: str
    required: true
  url:
    description: Address that is measured in place of the server's, without C(/v1).
    type: str
  ca_file:
    description: Certificates on this host that are trusted at C(url), in place of the system's.
    type: path
  metrics:
    description: Addresses of the metrics of the servers behind C(url), by their names; by default the server's own.
    type: dict
  turns:
    description:
      - Requests of a conversation, one after the other, each with what was said before it and with the conversation's
        C(X-Session-ID). With one there are no conversations.
    type: int
    default: 1
  model:
    description: What the instance serves; its tokenizer makes the prompts.
    type: str
    required: true
  concurrency:
    description: Requests at a time.
    type: int
    required: true
  input_tokens:
    description: Tokens of each prompt, beside what was said before it.
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
    support: partial
    details: Asks the server whether it takes requests of this length, and measures nothing.
"""

EXAMPLES = r"""
- name: Measure the servers
  kepler.vllm.vllm_bench:
    program: "{{ lookup('ansible.builtin.file', 'client.py') }}"
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
    - In C(servers) the share of each server in the requests. With conversations, C(history_cached) is the share of what
      was said before that a prefix cache had, where the servers count that.
  type: dict
  returned: success
"""

import collections
import json
import os
import random
import re

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
# What servers count: requests that they have answered, and tokens of prompts that were in a prefix cache. V0 has no
# counter of these.
ANSWERED, CACHED = "vllm:request_success_total", "vllm:prefix_cache_hits_total"
# Makes the key of the server that of the client, then runs the benchmark and prints what it wrote.
SCRIPT = (
    'OPENAI_API_KEY="$VLLM_API_KEY"; export OPENAI_API_KEY; cd "$(mktemp -d)" || exit; "$@" > log 2>&1; '
    "cat result.json 2> /dev/null || { tail -n 20 log >&2; exit 1; }"
)


def counters_of(api):
    """The values of a server's metrics, each summed over its labels; none if it does not answer."""
    found = collections.Counter()
    try:
        for name, value in re.findall(r"^(vllm:\w+)(?:{.*})? (\S+)$", api.read(""), re.M):
            found[name] += float(value)
    except CheckFailed:
        return {}
    return found


def distribution(before, after, history):
    """Figures of the servers: `servers`, and `history_cached` if they count that.

    before, after: their counters, by their names. history: tokens of prompts that were asked before.
    """
    def difference(counter, name):
        return max(after[name].get(counter, 0) - before[name].get(counter, 0), 0)

    requests = {name: difference(ANSWERED, name) for name in after}
    found = {"servers": {name: round(count / max(sum(requests.values()), 1), 3) for name, count in requests.items()}}
    if history and all(CACHED in counters for counters in after.values()):
        found["history_cached"] = round(sum(difference(CACHED, name) for name in after) / history, 3)
    return found


def command_of(params, served):
    """The command that measures. served: name of the model in the API."""
    # Prompts of one seed would be in the server's prefix cache, from the measurement before or the run before.
    seed = random.SystemRandom().randrange(2 ** 32)
    properties = ["PrivateTmp=yes", "ProtectSystem=strict", "NoNewPrivileges=yes"]
    environments = ["/etc/kepler/instances/%s.env" % params["name"]]
    if params["api_key_file"]:
        environments.append(params["api_key_file"])
    properties += ["EnvironmentFile=%s" % path for path in environments]
    if params["ca_file"]:
        properties.append("Environment=SSL_CERT_FILE=%s" % params["ca_file"])
    command = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--uid=%s" % params["user"]]
    for text in properties:
        command += ["--property", text]
    return command + [
        "/bin/sh", "-c", SCRIPT, "bench",
        os.path.join(params["root"], "current", "serving", "bin", "python"), "-c", params["program"],
        "--turns", str(params["turns"]), "--backend", "openai", "--endpoint", "/v1/completions",
        "--base-url", params["url"] or base_url(params["host"], params["port"]),
        "--model", served, "--tokenizer", params["model"],
        "--dataset-name", "random", "--random-input-len", str(params["input_tokens"]),
        "--random-output-len", str(params["output_tokens"]), "--ignore-eos", "--seed", str(seed),
        "--num-prompts", str(params["requests"]), "--max-concurrency", str(params["concurrency"]),
        "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "99", "--disable-tqdm",
        "--save-result", "--result-filename", "result.json",
    ]


def main():
    module = AnsibleModule(
        argument_spec={
            **SERVER_OPTIONS,
            **KEY_OPTION,
            "program": {"type": "str", "required": True},
            "url": {"type": "str"},
            "ca_file": {"type": "path"},
            "metrics": {"type": "dict"},
            "turns": {"type": "int", "default": 1},
            "model": {"type": "str", "required": True},
            "concurrency": {"type": "int", "required": True},
            "input_tokens": {"type": "int", "required": True, "no_log": False},
            "output_tokens": {"type": "int", "required": True, "no_log": False},
            "requests": {"type": "int", "required": True},
            "root": {"type": "path", "default": "/opt/kepler"},
            "user": {"type": "str", "default": "vllm"},
            "timeout": {"type": "int", "default": 3600},
        },
        supports_check_mode=True,
    )
    params = module.params
    where = "%s: " % (params["url"] or "vllm@%s" % params["name"])
    if params["ca_file"] and not os.path.isfile(params["ca_file"]):
        module.fail_json(
            msg="bench_ca_file: found %s missing; expected a file with certificates on the host that measures. Put it "
            "there, readable by %s." % (params["ca_file"], params["user"])
        )

    def api_of(base):
        return Api(
            params["host"], params["port"], params["api_key_file"], params["timeout"], base=base,
            ca_file=params["ca_file"],
        )

    base = params["url"] or base_url(params["host"], params["port"])
    metrics = params["metrics"] or {params["name"]: base + "/metrics"}
    try:
        served, longest = api_of(base).model()
        before = {name: counters_of(api_of(address)) for name, address in metrics.items()}
    except CheckFailed as error:
        module.fail_json(msg="%sfound %s; expected a server that answers. %s, then run again." % (
            where, error,
            "Look at bench_url, bench_key_file and bench_ca_file" if params["url"] else "Start it",
        ))
    tokens = params["turns"] * (params["input_tokens"] + params["output_tokens"])
    if longest and tokens > longest:
        module.fail_json(
            msg="%sbench_lengths: found %d tokens for prompt and answer%s; expected at most the %d that it takes. Ask "
            "for fewer, or raise max_model_len." % (
                where, tokens, " of %d turns" % params["turns"] if params["turns"] > 1 else "", longest
            )
        )
    if module.check_mode:
        module.exit_json(changed=False)
    command = ["timeout", str(params["timeout"])] + command_of(params, served)
    status, printed, errors = module.run_command(command)
    try:
        result = json.loads(printed)
    except ValueError:
        tail = errors.strip()[-2000:]
        module.fail_json(msg="%svllm bench serve left no result (status %d):\n%s" % (where, status, tail))
    if result["completed"] != params["requests"]:
        module.fail_json(
            msg="%sfound %d answers to %d requests; expected all. Look at `journalctl %s`." % (
                where, result["completed"], params["requests"],
                "-t kepler_balancer` on the balancer and `journalctl -u 'vllm@*'" if params["url"] else
                "-u vllm@%s" % params["name"],
            )
        )
    after = {name: counters_of(api_of(address)) for name, address in metrics.items()}
    figures = {name: round(result[name], 3) for name in FIGURES}
    figures.update(distribution(before, after, result.get("history_tokens")))
    module.exit_json(changed=False, figures=figures)


if __name__ == "__main__":
    main()
