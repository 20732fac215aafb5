#!/usr/bin/python
"""Write outputs of a store as a container image."""

DOCUMENTATION = r"""
module: store_image
short_description: Write outputs of a store as a container image
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Writes an OCI image layout with one layer for each output, for each that they refer to, and for directories and
    links of its own, over a base. The same outputs, base and configuration give the same bytes on every host.
  - Layers that are there are kept, and those that no longer belong to the image are removed.
  - The bill of materials (CycloneDX) of the outputs is a referrer of the image, and a label names its digest.
options:
  root:
    description: Root of the store.
    type: path
    default: /opt/kepler
  outputs:
    description: Store paths of the outputs.
    type: list
    elements: path
    required: true
  directory:
    description: Directory of the image.
    type: path
    required: true
  layer:
    description: Store path of one output. Its layer alone is written then.
    type: path
  base:
    description:
      - A mapping with C(path), an OCI image as a directory or an archive, or the tar of a root file system; C(name),
        for the labels; and C(digest), of the image's manifest or of the tar.
    type: dict
  config:
    description: What the image's configuration has below C(config).
    type: dict
    default: {}
  directories:
    description: Directories of the image's own layer, with their modes in octal.
    type: dict
    default: {}
  links:
    description: Links of the image's own layer, with their targets.
    type: dict
    default: {}
  name:
    description: Repository and tag.
    type: str
  compression:
    description: How layers are written.
    type: str
    choices: [gzip, none]
    default: gzip
  archive:
    description: File that is written as well, for C(docker load), C(podman load) and C(skopeo copy).
    type: path
attributes:
  check_mode:
    support: partial
    description: Says which layers would be written, not which digest the image would have.
  diff_mode:
    support: full
    description: Shows the digest of the image.
"""

EXAMPLES = r"""
- name: Write the image
  kepler.vllm.store_image:
    outputs: ["{{ store_outputs.serving }}"]
    directory: /var/lib/kepler/image
    name: registry.example.org/vllm:main
    base:
      path: /var/tmp/base.tar
      name: registry.example.org/base
      digest: "sha256:{{ 'base' | hash('sha256') }}"
"""

RETURN = r"""
digest:
  description: Digest of the image's manifest.
  type: str
  returned: where the image was written
order:
  description: Store paths of the outputs in the order of their layers.
  type: list
  elements: str
  returned: always
layers:
  description: Digest, size, media type and diff_id of each layer, the base's first.
  type: list
  elements: dict
  returned: where the image was written
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils.store import address, image
from ansible_collections.kepler.vllm.plugins.module_utils.store.disk import set_umask
from ansible_collections.kepler.vllm.plugins.module_utils.store.errors import StoreError


def write(params, made):
    """What the module returns of the image that it has written."""
    base = params["base"]
    lower = image.read_base(made, base["path"], base["name"], base["digest"])
    manifest, layers, changed = image.assemble(
        made, params["root"], params["outputs"], lower, params["config"], params["directories"], params["links"],
        params["name"],
    )
    if params["archive"]:
        changed = image.archive(made, params["archive"]) or changed
    return {"changed": changed, "digest": manifest["digest"], "layers": layers,
            "diff": {"before": "", "after": manifest["digest"] + "\n"} if changed else {}}


def main():
    set_umask()
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/opt/kepler"},
            "outputs": {"type": "list", "elements": "path", "required": True},
            "directory": {"type": "path", "required": True},
            "layer": {"type": "path"},
            "base": {"type": "dict", "options": {
                "path": {"type": "path", "required": True}, "name": {"type": "str", "required": True},
                "digest": {"type": "str", "required": True},
            }},
            "config": {"type": "dict", "default": {}},
            "directories": {"type": "dict", "default": {}},
            "links": {"type": "dict", "default": {}},
            "name": {"type": "str"},
            "compression": {"type": "str", "choices": ["gzip", "none"], "default": "gzip"},
            "archive": {"type": "path"},
        },
        required_one_of=[("layer", "base")],
        required_together=[("base", "name")],
        supports_check_mode=True,
    )
    params = module.params
    # A dry run comes before the outputs are built.
    if module.check_mode and not all(address.is_committed(path) for path in params["outputs"]):
        module.exit_json(changed=True, order=[])
    made = image.Image(params["directory"], params["compression"])
    try:
        order = image.in_order(params["root"], params["outputs"])
        wanted = [params["layer"]] if params["layer"] else order
        missing = [path for path in wanted if not made.remember(address.name_of(path))]
        result = {"changed": bool(missing)}
        if not module.check_mode:
            made.make()
            if params["layer"]:
                image.output_layer(made, params["layer"])
            else:
                result = write(params, made)
        elif not params["layer"] and not os.path.exists(os.path.join(params["directory"], "index.json")):
            result["changed"] = True
    except (StoreError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(order=order, **result)


if __name__ == "__main__":
    main()
