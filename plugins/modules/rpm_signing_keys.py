#!/usr/bin/python
"""Import the keys that sign packages, once their fingerprints are the expected ones."""

DOCUMENTATION = r"""
module: rpm_signing_keys
short_description: Import package signing keys into the RPM database
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Imports public keys into the RPM database after it has compared every fingerprint with the expected one. Where one
    does not match, none is imported.
  - A key that is imported already is recognized by its whole fingerprint; nothing is fetched then.
  - A file that holds another key beside the expected one is refused.
options:
  keys:
    description: The keys.
    type: list
    elements: dict
    required: true
    suboptions:
      key:
        description: Where the key is, as the host sees it. An C(https://) address or an absolute path.
        type: str
        required: true
      fingerprint:
        description: Fingerprint of the primary key, 40 hexadecimal digits; spaces do not matter.
        type: str
        required: true
      variable:
        description: Name of the variable that gave the key, for messages.
        type: str
        required: true
attributes:
  check_mode:
    support: full
    description: The keys are fetched and compared, not imported.
"""

EXAMPLES = r"""
- name: Import the key of EPEL
  kepler.vllm.rpm_signing_keys:
    keys:
      - key: "{{ repos_epel_gpgkey }}"
        fingerprint: "{{ repos_epel_gpgkey_fingerprint }}"
        variable: repos_epel_gpgkey
"""

RETURN = r"""
imported:
  description: Fingerprints of the keys that were imported, or would be in check mode.
  type: list
  elements: str
  returned: success
"""

import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import fetch_url
from ansible_collections.kepler.vllm.plugins.module_utils.openpgp import fingerprints


def known(module):
    """Fingerprints of the keys that the RPM database holds."""
    status, output, _ = module.run_command(["rpm", "-q", "gpg-pubkey", "--qf", "%{DESCRIPTION}\n"])
    try:
        return fingerprints(output) if status == 0 else []
    except ValueError:
        return []  # an old key that this code cannot read is not the expected one


def read(module, key, variable):
    """Text of the key file at the address or path `key`; fails the module where there is none."""
    if "://" in key:
        response, info = fetch_url(module, key, timeout=30)
        if info["status"] != 200:
            module.fail_json(msg="%s: found '%s', which answered '%s'; expected a public key. Correct the address, "
                                 "or name a file that is on the host." % (variable, key, info["msg"]))
        return response.read().decode("utf-8", "replace")
    try:
        with open(key) as stream:
            return stream.read()
    except (OSError, UnicodeDecodeError) as error:
        module.fail_json(msg="%s: found '%s', which cannot be read (%s); expected an armored public key. Correct the "
                             "path." % (variable, key, error))


def verified(module, key, expected, variable):
    """Text of the key file `key`, whose one key is `expected`; fails the module where it is not."""
    text = read(module, key, variable)
    try:
        found = fingerprints(text)
    except ValueError as error:
        module.fail_json(msg="%s: found '%s', which is no public key (%s); expected the armored key %s. Correct the "
                             "address or path." % (variable, key, error, expected))
    if found != [expected]:
        module.fail_json(msg="%s: found %s in '%s'; expected the one key %s. Nothing was imported. Compare with the "
                             "publisher's announcement before you change %s_fingerprint."
                             % (variable, " and ".join(found) or "no key", key, expected, variable))
    return text


def store(module, text):
    """Import the armored key `text`."""
    handle, path = tempfile.mkstemp(suffix=".asc")
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
        module.run_command(["rpmkeys", "--import", path], check_rc=True)
    finally:
        os.unlink(path)


def main():
    options = {
        "key": {"type": "str", "required": True, "no_log": False},
        "fingerprint": {"type": "str", "required": True},
        "variable": {"type": "str", "required": True},
    }
    module = AnsibleModule(
        argument_spec={
            "keys": {"type": "list", "elements": "dict", "required": True, "no_log": False, "options": options},
        },
        supports_check_mode=True,
    )
    there = known(module)
    texts = {}
    for item in module.params["keys"]:
        expected = item["fingerprint"].replace(" ", "").upper()
        if expected not in there and expected not in texts:
            texts[expected] = verified(module, item["key"], expected, item["variable"])
    if not module.check_mode:
        for text in texts.values():
            store(module, text)
    module.exit_json(changed=bool(texts), imported=sorted(texts))


if __name__ == "__main__":
    main()
