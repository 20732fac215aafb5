"""ansible-playbook for ansible_run: a program that has imported Ansible, and forks for each run."""

import hashlib
import importlib
import os
import shutil
import tempfile
import warnings
import zipfile
from pathlib import Path

import forked
from ansible import constants
from ansible.cli import playbook
from ansible.executor import module_common
from ansible.plugins.loader import filter_loader, init_plugin_loader, test_loader

# Imported by every run, beside what the command itself imports; the last one by this project's variables.
PLUGINS = (
    "ansible.plugins.become.sudo", "ansible.plugins.callback.default", "ansible.plugins.connection.local",
    "ansible.plugins.filter.core", "ansible.plugins.shell.sh", "ansible.plugins.strategy.linear",
    "ansible.plugins.test.core", "jsonschema",
)  # fmt: skip


ARCHIVES = tempfile.mkdtemp()
RECURSIVE_FINDER = module_common.recursive_finder


def find_imports(name, full_name, text, archive, date_time=None):
    """Ansible's recursive_finder, which writes what a module imports into its archive: once a module, for all runs.

    It parses all those files, the half of what a task takes here.
    """
    kept = Path(ARCHIVES, hashlib.sha256(full_name.encode() + text).hexdigest())
    if not kept.exists():
        part = kept.with_suffix(f".{os.getpid()}")
        with zipfile.ZipFile(part, "w") as own:
            RECURSIVE_FINDER(name, full_name, text, own, date_time)
        part.rename(kept)
    with zipfile.ZipFile(kept) as own:
        for member in own.infolist():
            archive.writestr(member, own.read(member), archive.compression)


def prepare():
    init_plugin_loader()
    # With the names of what moved to other collections, 376 kB of YAML.
    importlib.import_module("ansible_collections.ansible.builtin")
    for name in PLUGINS:
        importlib.import_module(name)
    for loader in (filter_loader, test_loader):
        list(loader.all())
    # The filters of the collection come all at once.
    filter_loader.get("kepler.vllm.controller_path")
    module_common.recursive_finder = find_imports
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
