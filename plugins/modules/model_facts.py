#!/usr/bin/python
"""Read what a model's directory says of the model: config.json and the headers of its weights. Changes nothing."""

DOCUMENTATION = r"""
module: model_facts
short_description: The config and the sizes of models in directories
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Reads config.json, the index of the weights and the headers of the safetensors files, never the weights themselves.
    Of a GGUF file without a config.json, its header says it all.
  - Reads only. It checks whether the files are whole; what a model needs, the filter
    P(kepler.vllm.model_findings#filter) says.
options:
  models:
    description:
      - Directories of models, GGUF files, or files config.json alone, as absolute paths; or models of the hub as
        NAME@REVISION, which are looked for in its cache. What is not there is left out.
    type: list
    elements: str
    required: true
  adapters:
    description: Directories of LoRA adapters, as absolute paths. What is not there is left out.
    type: list
    elements: str
    default: []
  hub:
    description: Directory of the hub's cache.
    type: path
"""

EXAMPLES = r"""
- name: Read the models
  kepler.vllm.model_facts:
    models: [/srv/models/demo, owner/name@main]
    adapters: [/srv/adapters/demo]
    hub: /var/lib/vllm/huggingface/hub
  register: models
"""

RETURN = r"""
models:
  description:
    - >-
      Model to C(config) (the mapping of config.json, or none), C(tokenizer) (that of tokenizer_config.json, or none),
      C(generation) (that of generation_config.json, or none), C(tensors) (list of name, dtype, shape and count; numbers
      within a name are written as *, and equal tensors are counted together), C(faults) (list of file, found and
      expected) and C(alone) (there, and true, where config and tokenizer are those of a GGUF file's header). No tensors
      are given where a file has a fault or the weights are neither safetensors nor a GGUF file, whose tensors have the
      names of the model. Files that the hub's cache lacks are no fault: they are fetched when their turn comes.
  type: dict
  returned: success
adapters:
  description: >-
    Directory of a LoRA adapter to C(config) (the mapping of its adapter_config.json, or none), C(tensors) (the shape of
    each by its name) and C(faults) (list of file, found and expected).
  type: dict
  returned: success
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint import files


def main():
    module = AnsibleModule(
        argument_spec={
            "models": {"type": "list", "elements": "str", "required": True},
            "adapters": {"type": "list", "elements": "str", "default": []},
            "hub": {"type": "path"},
        },
        supports_check_mode=True,
    )
    found = {
        model: files.read_model(model) if model.startswith("/")
        else files.read_cached_model(module.params["hub"], model)
        for model in module.params["models"]
    }
    adapters = {path: files.read_adapter(path) for path in module.params["adapters"] if os.path.exists(path)}
    module.exit_json(
        changed=False, models={model: facts for model, facts in found.items() if facts is not None}, adapters=adapters,
    )


if __name__ == "__main__":
    main()
