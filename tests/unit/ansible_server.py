"""A process that has imported Ansible, and forks for each run of ansible-playbook: a start takes half the time.

It reads a run a line from standard input, as JSON: arguments, directory, environment, and the files that take what it
prints. It answers each with a line: the exit status as `subprocess` has it.
"""

import importlib
import json
import os
import sys
import warnings

from ansible import constants
from ansible.cli import playbook
from ansible.plugins.loader import init_plugin_loader

# Imported by every run, beside what the command itself imports; the last one by this project's variables.
PLUGINS = (
    "ansible.plugins.become.sudo", "ansible.plugins.callback.default", "ansible.plugins.connection.local",
    "ansible.plugins.filter.core", "ansible.plugins.shell.sh", "ansible.plugins.strategy.linear",
    "ansible.plugins.test.core", "jsonschema",
)  # fmt: skip


def run(arguments, directory, environment, printed, said):
    """Be ansible-playbook with these arguments."""
    for path, number in ((os.devnull, 0), (printed, 1), (said, 2)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), number)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    # Ansible reads its settings while it is imported, when this run's environment was not known.
    for name in constants.config.get_configuration_definitions():
        constants.set_constant(name, constants.config.get_config_value(name, variables=vars(constants)))
    playbook.main(["ansible-playbook", *arguments])


def main():
    init_plugin_loader()
    # With the names of what moved to other collections, 376 kB of YAML.
    importlib.import_module("ansible_collections.ansible.builtin")
    for name in PLUGINS:
        importlib.import_module(name)
    # A run does this again, and is told that it was done.
    warnings.filterwarnings("ignore", "AnsibleCollectionFinder has already been configured")
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if not child:
            return run(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
