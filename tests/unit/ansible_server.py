"""ansible-playbook for ansible_run: a program that has imported Ansible, and forks for each run."""

import importlib
import os
import warnings

import forked
from ansible import constants
from ansible.cli import playbook
from ansible.plugins.loader import init_plugin_loader

# Imported by every run, beside what the command itself imports; the last one by this project's variables.
PLUGINS = (
    "ansible.plugins.become.sudo", "ansible.plugins.callback.default", "ansible.plugins.connection.local",
    "ansible.plugins.filter.core", "ansible.plugins.shell.sh", "ansible.plugins.strategy.linear",
    "ansible.plugins.test.core", "jsonschema",
)  # fmt: skip


def prepare():
    init_plugin_loader()
    # With the names of what moved to other collections, 376 kB of YAML.
    importlib.import_module("ansible_collections.ansible.builtin")
    for name in PLUGINS:
        importlib.import_module(name)
    # A run does this again, and is told that it was done.
    warnings.filterwarnings("ignore", "AnsibleCollectionFinder has already been configured")


def run(directory, arguments):
    os.chdir(directory)
    # Ansible reads its settings while it is imported, when this run's environment was not known.
    for name in constants.config.get_configuration_definitions():
        constants.set_constant(name, constants.config.get_config_value(name, variables=vars(constants)))
    playbook.main(["ansible-playbook", *arguments])


if __name__ == "__main__":
    forked.serve(prepare, run)
