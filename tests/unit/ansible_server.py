"""ansible-playbook for ansible_run: a program that has imported Ansible, and forks for each run."""

import importlib
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import forked
from ansible import constants
from ansible.cli import playbook
from ansible.plugins import loader

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "molecule" / "shared"))

from standin import archives

# What most tasks are.
ACTIONS = (
    "assert", "command", "copy", "debug", "fail", "include_vars", "normal", "service", "set_fact", "template",
)  # fmt: skip
ARCHIVES = tempfile.mkdtemp()


def prepare():
    loader.init_plugin_loader()
    # With the names of what moved to other collections, hundreds of kB of YAML.
    for name in ("ansible.builtin", "ansible.posix", "community.general"):
        importlib.import_module(f"ansible_collections.{name}")
    # Each run loads all of these, for their options.
    for kind in ("become", "callback", "connection", "inventory", "shell"):
        list(getattr(loader, f"{kind}_loader").all(class_only=True))
    for name in ACTIONS:
        loader.action_loader.get(name, class_only=True)
    loader.strategy_loader.get("linear", class_only=True)
    # The filters, and the locks of all runs that name no other directory of profiles.
    plugin = importlib.import_module("ansible_collections.kepler.vllm.plugins.vars.kepler_profile")
    plugin.load_filters()
    # A run may have filters of its own.
    plugin.load_filters.cache_clear()
    root = plugin.profiles.directory()
    for name in plugin.profiles.profiles(root):
        plugin.profiles.lock_of(root / name)
    archives.keep(Path(ARCHIVES), (), bytecode=False)
    # A run does this again, and is told that it was done.
    warnings.filterwarnings("ignore", "AnsibleCollectionFinder has already been configured")


def run(directory, arguments):
    os.chdir(directory)
    for path in Path(os.environ.get("KEPLER_TEST_OVERLAY", os.devnull)).glob("*/*"):
        # Ansible looks for modules, and for the files of a role, beside the package of their name.
        package = importlib.import_module(".".join(("ansible_collections.kepler.vllm", *path.parts[-2:])))
        package.__file__ = str(path / "__init__.py")
    # Ansible reads its settings while it is imported, when this run's environment was not known.
    for name in constants.config.get_configuration_definitions():
        constants.set_constant(name, constants.config.get_config_value(name, variables=vars(constants)))
    playbook.main(["ansible-playbook", *arguments])


if __name__ == "__main__":
    forked.serve(prepare, run)
    shutil.rmtree(ARCHIVES)
