#!/usr/bin/python
"""Publish outputs of a host's store, signed, for other hosts."""

DOCUMENTATION = r"""
module: store_publish
short_description: Publish outputs of a host's store, signed, for other hosts
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Writes of each output an archive, a manifest and a signature over the manifest into a directory. What is there
    whole stays as it is. The signature is written last.
  - The signing key is made on the host where there is none, without a passphrase; its secret half never leaves it.
options:
  outputs:
    description: Store paths of the outputs by name.
    type: dict
    required: true
  directory:
    description: Directory to publish into.
    type: path
    required: true
  gnupg_home:
    description: Directory of the signing key, for root alone.
    type: path
    required: true
attributes:
  check_mode:
    support: full
    description: Says which outputs would be published; writes nothing and makes no key.
  diff_mode:
    support: full
    description: Shows the store paths that are published.
"""

EXAMPLES = r"""
- name: Publish PyTorch
  kepler.vllm.store_publish:
    outputs:
      pytorch: "{{ store_outputs.pytorch }}"
    directory: /var/lib/kepler/published
    gnupg_home: /etc/kepler/signing
"""

RETURN = r"""
published:
  description: Names of the outputs that were published now.
  type: list
  elements: str
  returned: always
fingerprint:
  description: Fingerprint of the signing key; empty in check mode where there is none yet.
  type: str
  returned: always
public_key:
  description: The public key, armored; empty in check mode where there is none yet.
  type: str
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils.store import substitute
from ansible_collections.kepler.vllm.plugins.module_utils.store.disk import set_umask
from ansible_collections.kepler.vllm.plugins.module_utils.store.errors import StoreError


def main():
    set_umask()
    module = AnsibleModule(
        argument_spec={
            "outputs": {"type": "dict", "required": True},
            "directory": {"type": "path", "required": True},
            "gnupg_home": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    module.get_bin_path("gpg", required=True)
    outputs, directory = module.params["outputs"], module.params["directory"]
    home = module.params["gnupg_home"]
    published, made = [], False
    try:
        if module.check_mode:
            fingerprint = substitute.secret_key(home) or ""
        else:
            fingerprint, made = substitute.make_key(home, "kepler store")
        for name, path in sorted(outputs.items()):
            if module.check_mode:
                if not (fingerprint and substitute.is_published(path, directory, home, fingerprint)):
                    published.append(name)
            elif substitute.publish(path, directory, home, fingerprint):
                published.append(name)
        public = substitute.public_key(home, fingerprint) if fingerprint else ""
    except (StoreError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(published or made), published=published, fingerprint=fingerprint, public_key=public,
        diff={"before": "", "after": "".join(outputs[name] + "\n" for name in published)},
    )


if __name__ == "__main__":
    main()
