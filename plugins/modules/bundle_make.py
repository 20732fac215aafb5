#!/usr/bin/python
"""Make the offline bundle; the action plugin of this name does it on the controller."""

DOCUMENTATION = r"""
module: bundle_make
short_description: Make the offline bundle on the controller
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Fetches the sources, makes a package repository of what M(kepler.vllm.rpm_download) wrote, downloads the wheels
    of the controller's tools, and packs all of it into one tar that ends with what it holds.
  - Does nothing where the tar was made from the same lock, providers, packages and tools.
options:
  dest:
    description: The tar to write.
    type: path
    required: true
  rpms:
    description: What M(kepler.vllm.rpm_download) wrote, fetched to the controller.
    type: path
    required: true
  sources:
    description: The files of the lock, in the form that M(kepler.vllm.store_output) takes.
    type: list
    elements: dict
    required: true
  requirements:
    description: The hash-locked requirements of the controller.
    type: path
    required: true
  artifacts:
    description: Directories that are searched for the sources before any network.
    type: list
    elements: path
    default: []
  cache:
    description: Directory that keeps the sources between runs.
    type: path
    required: true
  profile:
    description: Name of the hardware profile whose hosts the bundle is for.
    type: str
    required: true
  lock_hash:
    description: Hash of the lock.
    type: str
    required: true
  providers:
    description: The providers that the bundle is for, by variable.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Create the bundle
  kepler.vllm.bundle_make:
    dest: build/kepler-bundle.tar
    rpms: build/rpms.tar
    sources: "{{ kepler_lock | bundle_sources(providers) }}"
    requirements: requirements/controller.txt
    cache: ~/.cache/vllm-kepler/artifacts
    profile: "{{ profile.name }}"
    lock_hash: "{{ kepler_lock | to_json(sort_keys=true) | hash('sha256') }}"
    providers: "{{ providers }}"
"""

RETURN = r"""
bytes:
  description: Size of the bundle.
  type: int
  returned: changed
"""
