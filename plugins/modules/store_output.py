#!/usr/bin/python
"""Make sure that an output is in the store of a host."""

DOCUMENTATION = r"""
module: store_output
short_description: Make sure that an output is in the store of a host
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Fetches the sources, runs the builder without a network and commits the result to a path that the inputs alone
    decide. Does nothing where that path is there, but for a note that it is wanted, which a collection before the next
    activation heeds.
  - The action plugin of this name runs the work detached, shows its progress, and adds the path to the variable
    C(store_outputs) under O(name). The next run picks up work whose controller went away.
options:
  root:
    description: Root of the store.
    type: path
    default: /opt/kepler
  name:
    description: Name of the output.
    type: str
    required: true
  also:
    description: Other names under which the action plugin adds the path to C(store_outputs).
    type: list
    elements: str
    default: []
  version:
    description: Version of the output.
    type: str
    required: true
  sources:
    description:
      - Files that the builder needs, in order. Each is a mapping with C(name), C(file), C(sha256), and C(urls) or
        C(index) (a mapping with C(project) and C(version)).
      - C(controller) is a path on the controller. Where the host builds, and a file is there, the action plugin hands
        it over.
    type: list
    elements: dict
    default: []
  inputs:
    description: Store paths of other outputs by the variable that hands them to the builder.
    type: dict
    default: {}
  builder:
    description:
      - Shell text. It finds C($out) (the path to fill), C($src) (the directory of the sources) and the inputs, and
        works in an empty directory. A line that begins with C(##progress) is shown to the user.
    type: str
    required: true
  environment:
    description: Further variables of the builder.
    type: dict
    default: {}
  jobs:
    description:
      - How many processes the builder may run at once, which it finds as C($KEPLER_JOBS). 0 is one for each core. Does
        not count for the path.
    type: int
    default: 0
  toolchain:
    description: Exact packages that the builder uses; they count for the path.
    type: list
    elements: str
    default: []
  artifacts:
    description: Directories on the host that are searched for the sources by file name, before any network.
    type: list
    elements: path
    default: []
  index_urls:
    description:
      - Python package indexes, in order. The action plugin fills in what pip on the controller uses, once it hears that
        there is work.
    type: list
    elements: str
  substituters:
    description:
      - Directories on the host, and file:// or http(s):// addresses, that may have the output as another host built
        it. They are asked in order, before anything is built. An address may hold a name and a password.
    type: list
    elements: str
    default: []
  trusted_keys:
    description: File on the host with the public keys whose signatures count, armored or not.
    type: path
  build:
    description: Build the output where no substituter has it. False fails there instead.
    type: bool
    default: true
  keep_failed:
    description: Keep the build directory of a builder that failed.
    type: bool
    default: false
  fresh:
    description: With O(detach), forget how work ended that nobody waited for. The action plugin sets it once a run.
    type: bool
    default: false
  detach:
    description: Start the work, or look how far it is, and return at once. The action plugin uses it.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Says which path would be made; makes nothing.
  diff_mode:
    support: full
    description: Shows the path.
"""

EXAMPLES = r"""
- name: Build hello
  kepler.vllm.store_output:
    name: hello
    version: "1.0"
    builder: |
      mkdir -p "$out/bin"
      printf '#!/bin/sh\necho hello\n' > "$out/bin/hello"
      chmod +x "$out/bin/hello"
"""

RETURN = r"""
needs_indexes:
  description: With O(detach), that there is work and O(index_urls) is wanted for it.
  type: bool
  returned: where they are missing
path:
  description: Store path of the output.
  type: str
  returned: always
key:
  description: Key of the output.
  type: str
  returned: always
origin:
  description: V(built), V(substituted), or V(present) where there was nothing to do.
  type: str
  returned: where the output is in the store
log:
  description: Log of the builder on the host.
  type: str
  returned: always
running:
  description: With O(detach), whether the work goes on.
  type: bool
  returned: with detach
started:
  description: With O(detach), whether this call started the work.
  type: bool
  returned: with detach
progress:
  description: With O(detach), what the work is at.
  type: str
  returned: with detach
"""

import platform
import re

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils import jobs
from ansible_collections.kepler.vllm.plugins.module_utils.store import address, disk, substitute
from ansible_collections.kepler.vllm.plugins.module_utils.store.build import Paths, is_present, log_tail, realise
from ansible_collections.kepler.vllm.plugins.module_utils.store.disk import set_umask
from ansible_collections.kepler.vllm.plugins.module_utils.store.errors import StoreError

NINJA = re.compile(r"^\[(\d+)/(\d+)\]")


def recipe_of(params):
    """The recipe that the module's parameters describe."""
    recipe = {name: params[name] for name in ("name", "version", "sources", "inputs", "builder", "toolchain", "jobs")}
    recipe["environment"] = {name: str(value) for name, value in params["environment"].items()}
    recipe["system"] = "%s-linux" % platform.machine()
    return recipe


def progress_of(paths):
    """One line about work that goes on."""
    state = jobs.read(paths.state, {"phase": str, "text": str})
    if state is None:
        return "starting"
    if state["phase"] != "building":
        return ("%s %s" % (state["phase"], state["text"])).strip()
    for line in reversed(log_tail(paths.log, 200)):
        counted = NINJA.match(line)
        if counted:
            done, total = int(counted.group(1)), int(counted.group(2))
            return "building [%d/%d] %d %%" % (done, total, 100 * done // max(total, 1))
        if line.startswith("##progress "):
            return "building: " + line[len("##progress "):]
    return "building"


def origin_of(paths):
    """Origin of a committed output, if the work that just ended recorded one."""
    return jobs.take_result(paths.results).get("origin", "present")


def work(paths, params, recipe):
    """Make the output in the detached process; a failure writes its message to the result."""
    messages = []

    def failed(message):
        messages.append(message)
        jobs.write_result(paths.results, msg=message)

    try:
        realise(
            params["root"], recipe, params["artifacts"], params["index_urls"], params["keep_failed"], failed,
            params["substituters"], params["trusted_keys"],
            lambda origin: jobs.write_result(paths.results, origin=origin), params["build"],
        )
    except StoreError as error:
        # Failures before the lock of the key is taken.
        if not messages:
            jobs.write_result(paths.results, msg=str(error))


def main():
    set_umask()
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/opt/kepler"},
            "name": {"type": "str", "required": True},
            "also": {"type": "list", "elements": "str", "default": []},
            "version": {"type": "str", "required": True},
            "sources": {"type": "list", "elements": "dict", "default": []},
            "inputs": {"type": "dict", "default": {}},
            "builder": {"type": "str", "required": True},
            "environment": {"type": "dict", "default": {}},
            "jobs": {"type": "int", "default": 0},
            "toolchain": {"type": "list", "elements": "str", "default": []},
            "artifacts": {"type": "list", "elements": "path", "default": []},
            "index_urls": {"type": "list", "elements": "str"},
            "substituters": {"type": "list", "elements": "str", "default": []},
            "trusted_keys": {"type": "path", "no_log": False},
            "build": {"type": "bool", "default": True},
            "keep_failed": {"type": "bool", "default": False},
            "fresh": {"type": "bool", "default": False},
            "detach": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    recipe = recipe_of(module.params)
    try:
        address.check_recipe(recipe)
        substitute.check_configuration(module.params["substituters"], module.params["trusted_keys"])
    except StoreError as error:
        module.fail_json(msg=str(error))
    paths = Paths(module.params["root"], recipe)
    result = {"path": paths.final, "key": paths.key, "log": paths.log, "running": False, "progress": ""}
    try:
        present = address.is_committed(paths.final)
        # A dry run leaves no note that the output is wanted.
        if present and not module.check_mode:
            paths.make()
            present = is_present(paths)
    except StoreError as error:
        module.fail_json(msg=str(error))
    if present:
        module.exit_json(changed=False, origin=origin_of(paths), **result)
    result["diff"] = {"before": "", "after": paths.final + "\n"}
    if module.check_mode:
        module.exit_json(changed=True, **result)
    if not module.params["detach"]:
        origins = ["present"]
        try:
            realise(
                module.params["root"], recipe, module.params["artifacts"], module.params["index_urls"] or [],
                module.params["keep_failed"], lambda message: None,
                module.params["substituters"], module.params["trusted_keys"], origins.append, module.params["build"],
            )
        except StoreError as error:
            module.fail_json(msg=str(error), log=paths.log)
        module.exit_json(changed=True, origin=origins[-1], **result)
    ended = jobs.take_result(paths.results)
    if "msg" in ended and not module.params["fresh"]:
        module.fail_json(msg=ended["msg"], log=paths.log)
    try:
        paths.make()
        with disk.locked(paths.lock.path, wait=False) as free:
            started = free
    except StoreError as error:
        module.fail_json(msg=str(error), log=paths.log)
    if started and module.params["index_urls"] is None:
        module.exit_json(changed=False, needs_indexes=True, **dict(result, running=True, started=False))
    if started:
        jobs.start(lambda: work(paths, module.params, recipe))
    result.update(running=True, started=started, progress=progress_of(paths))
    module.exit_json(changed=True, **result)


if __name__ == "__main__":
    main()
