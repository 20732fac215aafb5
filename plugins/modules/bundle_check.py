#!/usr/bin/python
"""Look at an offline bundle; the action plugin of this name does it on the controller."""

DOCUMENTATION = r"""
module: bundle_check
short_description: Refuse an offline bundle that is not what it must be
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Reads the bundle on the controller and compares it with the checkout and the inventory. Unpacks nothing.
options:
  path:
    description: The bundle.
    type: path
    required: true
  profile:
    description: Name of the hardware profile whose hosts the bundle is for.
    type: str
    required: true
  lock_hash:
    description: Hash of the lock that it must be made from.
    type: str
    required: true
  providers:
    description: The providers that it must be for, by variable.
    type: dict
    required: true
  content:
    description: Read every file as well and compare it with what was put in.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Check the bundle
  kepler.vllm.bundle_check:
    path: /media/usb/kepler-bundle.tar
    profile: "{{ profile.name }}"
    lock_hash: "{{ kepler_lock | to_json(sort_keys=true) | hash('sha256') }}"
    providers: {pytorch_provider: wheel, python_provider: source}
"""

RETURN = r"""
id:
  description: What tells this bundle from others.
  type: str
  returned: success
keys:
  description: Fingerprints of the keys that signed its packages.
  type: list
  elements: str
  returned: success
packages:
  description: File names of its packages.
  type: list
  elements: str
  returned: success
"""
