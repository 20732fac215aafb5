#!/usr/bin/python
"""Renew the lock of packages; the action plugin of this name does it on the controller."""

DOCUMENTATION = r"""
module: rpm_lock
short_description: Renew rpms.yml of a lock by what repositories offer
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Writes the newest version on offer into each entry that names one. Driver and CUDA, which something was proven with,
    keep theirs, and so do minimums and the range of kernels.
  - Calls each entry verified that is on offer, with the repository and the date, and no longer verified if it is not.
  - An entry that is verified in its version already stays as it is; so do comments and order.
options:
  path:
    description: The lock, a file on the controller.
    type: path
    required: true
  offers:
    description: The packages on offer, as dnf_facts returns them.
    type: list
    elements: dict
    required: true
attributes:
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: Renew the lock
  kepler.vllm.rpm_lock:
    path: "{{ profile.directory }}/lock/rpms.yml"
    offers: "{{ repos_answer.offers }}"
"""

RETURN = r"""
changes:
  description: A line for each entry that changed.
  type: list
  elements: str
  returned: success
absent:
  description: Names of the entries that no repository offers as the lock now has them.
  type: list
  elements: str
  returned: success
"""
