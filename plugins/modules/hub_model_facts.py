#!/usr/bin/python
"""Read what the hub says of a model or an adapter that is not fetched: configs and headers, by ranges."""

DOCUMENTATION = r"""
module: hub_model_facts
short_description: The config and the sizes of models and adapters of the hub
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Reads config.json, the index of the weights and the headers of weight files by ranges, never the weights themselves.
    The answer is that of P(kepler.vllm.model_facts#module) for the model once it is fetched.
options:
  models:
    description: OWNER/NAME on the hub, or OWNER/NAME/FILE.gguf, each with @REVISION where it is not main.
    type: list
    elements: str
    default: []
  adapters:
    description: LoRA adapters, named as the models.
    type: list
    elements: str
    default: []
  endpoint:
    description: Address of the hub.
    type: str
    default: https://huggingface.co
  token:
    description: Key for gated and private models.
    type: str
"""

EXAMPLES = r"""
- name: Read a model of the hub
  kepler.vllm.hub_model_facts:
    models: [Qwen/Qwen3-1.7B, owner/name-GGUF/file-Q4_K_M.gguf@main]
  delegate_to: localhost
"""

RETURN = r"""
models:
  description: Model to config, tokenizer, tensors and faults, as P(kepler.vllm.model_facts#module) gives them.
  type: dict
  returned: success
adapters:
  description: Adapter to config, tensors and faults, likewise.
  type: dict
  returned: success
"""

import shutil
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint import adapters, files, heads
from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint.errors import FileError
from ansible_collections.kepler.vllm.plugins.module_utils.hub import HubError, Repository


def facts_of(params, named, directory, is_adapter):
    """Facts about a model or an adapter. Raises FileError or HubError."""
    name, _, revision = named.partition("@")
    name, file = files.split_name(name)
    repository = Repository(params["endpoint"], name, revision or "main", params["token"])
    if is_adapter:
        chosen = [file for file in (adapters.CONFIG, adapters.WEIGHTS) if file in repository.files]
    else:
        chosen = heads.choose(list(repository.files), file)
    heads.lay_out(directory, {name: repository.files[name] for name in chosen}, repository.read)
    if is_adapter:
        return files.read_adapter(directory)
    return files.read_model(heads.place_of(directory, chosen[0]) if file else directory)


def read_all(module, kind):
    """Facts about each model, or each adapter, by its name. Fails where the hub does not give them."""
    found = {}
    for named in module.params[kind]:
        directory = tempfile.mkdtemp(prefix="kepler-hub-", dir=module.tmpdir)
        try:
            found[named] = facts_of(module.params, named, directory, kind == "adapters")
        except (FileError, HubError) as error:
            # The messages of files end with a next step.
            module.fail_json(msg="%s: %s." % (named, str(error).rstrip(".")))
        except OSError as error:
            module.fail_json(msg="%s: found %s; expected room for the heads of its files. Free some in %s." % (
                named, error.strerror, module.tmpdir))
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    return found


def main():
    module = AnsibleModule(
        argument_spec={
            "models": {"type": "list", "elements": "str", "default": []},
            "adapters": {"type": "list", "elements": "str", "default": []},
            "endpoint": {"type": "str", "default": "https://huggingface.co"},
            "token": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, models=read_all(module, "models"), adapters=read_all(module, "adapters"))


if __name__ == "__main__":
    main()
