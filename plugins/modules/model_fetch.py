#!/usr/bin/python
"""A model of the hub in the host's cache."""

DOCUMENTATION = r"""
module: model_fetch
short_description: Have a model of the hub in the host's cache
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Fetches a model in a transient unit of systemd, as the servers' unprivileged user, and verifies the hash of each
    file. The unit outlives a lost connection; the next run picks it up. A model whose files are there is not fetched
    again.
options:
  name:
    description: OWNER/NAME on the hub, or OWNER/NAME/FILE.gguf for one GGUF file of it.
    type: str
    required: true
  revision:
    description: Commit of the repository, or a branch.
    type: str
    default: main
  expected:
    description: Recorded sha256 of the model's files, by their name.
    type: dict
    default: {}
  uses:
    description:
      - C(engine) and C(options) of each server of the model, options being those of vLLM that change what it reads.
        What one of them cannot serve is refused before it is fetched.
    type: list
    elements: dict
    default: [{engine: port, options: {}}]
  capability:
    description: Compute capability of the GPUs, such as V(7.5).
    type: str
  fetch:
    description: The program that fetches.
    type: path
    required: true
  root:
    description: Root of the store.
    type: path
    default: /opt/kepler
  user:
    description: Who fetches, and owns the cache.
    type: str
    default: vllm
  home:
    description: Home of the user; the cache lies in C(huggingface) there, the records in C(models).
    type: path
    default: /var/lib/vllm
  environment:
    description: Environment of the fetching program, such as a proxy or C(HF_ENDPOINT).
    type: dict
    default: {}
  token_file:
    description: File on the host, owned by root and not readable by others, that holds one line C(HF_TOKEN=...).
    type: path
  fresh:
    description: Whether this is the first call of a task. The action plugin sets it.
    type: bool
    default: true
attributes:
  check_mode:
    support: full
    description: Says whether the model would be fetched.
"""

EXAMPLES = r"""
- name: Fetch
  kepler.vllm.model_fetch:
    name: Qwen/Qwen3-1.7B
    revision: 70d244cc86ccca08cf5af4e1e306ecf908b1ad5e
    fetch: /usr/local/libexec/kepler-models/fetch.py
"""

RETURN = r"""
record:
  description: C(name), C(asked), C(revision) (a commit), C(path) and C(files) with C(size) and C(sha256) of each.
  type: dict
  returned: where the model is there
running:
  description: Whether it is being fetched.
  type: bool
  returned: always
progress:
  description: How far it is.
  type: str
  returned: always
"""

import json
import os
import pwd
import re

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils import jobs

# Directory of the environment of a unit until systemd has read it.
RUN = "/run"


def slug(name):
    """Name of the model's directory of records, and part of its unit's name."""
    return re.sub("[^A-Za-z0-9._-]", "--", name)


def whole(record, params):
    """Return whether the record is of this revision, says what is expected, and its files are there."""
    if not record or params["revision"] not in (record["asked"], record["revision"]):
        return False
    files = record["files"]
    for name, sha256 in params["expected"].items():
        if files.get(name, {}).get("sha256") != sha256:
            return False
    for name, file in files.items():
        try:
            if os.stat(os.path.join(record["path"], name)).st_size != file["size"]:
                return False
        except OSError:
            return False
    return True


def progress_text(found):
    """A line of progress.json."""
    if not found or not found["total"]:
        return "starting"
    done = min(found["done"], found["total"])
    return "%s, %d %% of %.1f GB" % (found["doing"], 100 * done // found["total"], found["total"] / 1e9)


def is_active(module, unit):
    return module.run_command(["systemctl", "is-active", "--quiet", unit])[0] == 0


def prepare(module, params, directory):
    """The directory of the records, of the user. Fails where the user is missing."""
    try:
        user = pwd.getpwnam(params["user"])
    except KeyError:
        module.fail_json(
            msg="user: found no user %s on the host; expected the servers'. Run the role vllm_service's install first."
            % params["user"]
        )
    cache = os.path.join(params["home"], "huggingface")
    for path in (cache, os.path.dirname(directory), directory):
        if not os.path.isdir(path):
            os.mkdir(path, 0o755)
            os.lchown(path, user.pw_uid, user.pw_gid)
    for name in ("fault.json", "progress.json"):
        if os.path.exists(os.path.join(directory, name)):
            os.unlink(os.path.join(directory, name))


def environment_of(params):
    """Text of the unit's EnvironmentFile."""
    environment = dict(
        {
            "HF_HOME": os.path.join(params["home"], "huggingface"), "HOME": params["home"],
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        },
        **params["environment"]
    )
    quoted = [(name, re.sub(r'(["\\])', r"\\\1", str(value))) for name, value in sorted(environment.items())]
    return "".join('%s="%s"\n' % item for item in quoted)


def start(module, params, unit):
    """Start the unit. Its environment may hold a proxy's password: not on a command line, which everybody reads."""
    path = os.path.join(RUN, unit + ".env")
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.write(environment_of(params).encode("utf-8"))
        status, _, errors = module.run_command(command_of(params, unit, path))
    finally:
        # systemd-run has waited until the program runs: systemd reads no file of it any more.
        if os.path.lexists(path):
            os.unlink(path)
    if status:
        module.fail_json(msg="model %s: systemd-run: %s" % (params["name"], errors.strip()))


def command_of(params, unit, environment):
    """The command that starts the unit. environment: file."""
    command = ["systemd-run", "--quiet", "--collect", "--unit=" + unit, "--uid=" + params["user"]]
    properties = [
        "NoNewPrivileges=yes", "PrivateTmp=yes", "ProtectSystem=strict", "ReadWritePaths=" + params["home"],
        "EnvironmentFile=" + environment,
    ]
    # In an argument, not a file: root writes nothing into a directory of the user. systemd takes $$ for $.
    arguments = json.dumps({
        "name": params["name"], "revision": params["revision"], "expected": params["expected"],
        "uses": params["uses"], "capability": params["capability"],
        "directory": os.path.join(params["home"], "models", slug(params["name"])),
    }).replace("$", "$$")
    if params["token_file"]:
        properties.append("EnvironmentFile=" + params["token_file"])
    for text in properties:
        command += ["--property", text]
    return command + [os.path.join(params["root"], "current", "serving", "bin", "python"), params["fetch"], arguments]


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "revision": {"type": "str", "default": "main"},
            "expected": {"type": "dict", "default": {}},
            "uses": {"type": "list", "elements": "dict", "default": [{"engine": "port", "options": {}}]},
            "capability": {"type": "str"},
            "fetch": {"type": "path", "required": True},
            "root": {"type": "path", "default": "/opt/kepler"},
            "user": {"type": "str", "default": "vllm"},
            "home": {"type": "path", "default": "/var/lib/vllm"},
            "environment": {"type": "dict", "default": {}},
            "token_file": {"type": "path", "no_log": False},
            "fresh": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    directory = os.path.join(params["home"], "models", slug(params["name"]))
    unit = "kepler-model-%s.service" % slug(params["name"])
    answer = {"running": False, "progress": ""}
    if is_active(module, unit):
        found = progress_text(jobs.read(os.path.join(directory, "progress.json")))
        module.exit_json(changed=True, **dict(answer, running=not module.check_mode, progress=found))
    record = jobs.read(os.path.join(directory, "record.json"))
    if whole(record, params):
        module.exit_json(changed=False, record=record, **answer)
    if module.check_mode:
        module.exit_json(changed=True, **answer)
    if not params["fresh"]:
        lost = "model %s: its unit ended without a result. Look at `journalctl -u %s` on the host, then run again: "
        lost += "what was fetched is kept."
        fault = jobs.read(os.path.join(directory, "fault.json"))
        module.fail_json(msg=fault["msg"] if fault else lost % (params["name"], unit))
    prepare(module, params, directory)
    start(module, params, unit)
    module.exit_json(changed=True, **dict(answer, running=True, progress="starting"))


if __name__ == "__main__":
    main()
