"""Vars plugin: profile and lock of a host, read and checked, by the groups that it is in."""

from __future__ import annotations

import functools
from typing import Any

from ansible import context
from ansible.errors import AnsibleError
from ansible.inventory.group import Group
from ansible.plugins.loader import filter_loader, test_loader
from ansible.plugins.vars import BaseVarsPlugin
from ansible.utils.vars import load_extra_vars
from ansible_collections.kepler.vllm.plugins.plugin_utils import profiles

DOCUMENTATION = r"""
name: kepler_profile
short_description: The hardware profile of a host, and its versions and hashes
description:
  - A host in a group that some C(profiles/NAME/profile.yml) names gets the variable C(profile), which is that file with
    C(name) and C(directory), and C(kepler_lock), which is the lock beside it. Other hosts have no C(profile), and as
    C(kepler_lock) what C(files/lock) holds.
  - C(kepler_lock) is one mapping with the keys C(sources), C(rpms), C(modules), C(repos) and C(kernels) of the lock's
    files, and C(python), a mapping of environment name to its list of packages.
  - All files are checked against the schemas in C(profiles/schema). Nothing runs with one that does not hold, or with a
    host in the groups of two profiles.
  - Nothing runs with a variable of the command line (C(-e)) whose name is nearly one of a role or of a playbook,
    nor with such a tag.
  - The environment variable C(KEPLER_PROFILES_DIR) names another directory of profiles, for tests.
  - A plugin, and no variable that looks the lock up. Ansible evaluates those anew in every task and host that names
    them, and the lock is large.
"""


@functools.cache
def load_filters() -> None:
    """Load all filters and tests in Ansible's main process. Its workers, one a task and host, would each load them."""
    for loader in (filter_loader, test_loader):
        list(loader.all())
    # All of this collection, since Ansible looks for one filter in every file.
    filter_loader.get("kepler.vllm.controller_path")


@functools.cache
def check_hosts(everybody: Group, count: int) -> None:
    """Check the hosts of the group of all; anew if their number has changed."""
    for host in everybody.get_hosts():
        profiles.check_host(host.name, (group.name for group in host.get_groups()))


@functools.cache
def check_command_line(loader: Any) -> None:
    """Raise AnsibleError if a name of -e or a tag is nearly one of ours: the play would pass over it."""
    given = {*context.CLIARGS.get("tags", ()), *context.CLIARGS.get("skip_tags", ())} - {"all"}
    if not given and not context.CLIARGS.get("extra_vars"):
        return
    # Most runs have none, and reading all roles takes a moment.
    from ansible_collections.kepler.vllm.plugins.plugin_utils import variables

    wrong = [
        "-e {variable}: found {found}; expected {expected}. {next_step}".format(**one)
        for one in variables.unknown_names(sorted(load_extra_vars(loader))) if one["severity"] == "error"
    ] + [
        f"tag {name}: found one that no task has; expected {meant}. Correct it."
        for name in sorted(given - variables.tags()) if (meant := variables.near(name, variables.tags()))
    ]
    if wrong:
        raise AnsibleError(" ".join(wrong) + " Nothing was changed.")


class VarsModule(BaseVarsPlugin):
    def get_vars(self, loader: Any, path: str, entities: Any, cache: bool = True) -> dict[str, Any]:
        """Variables that a group gives its hosts; Ansible asks for each group and host, in several places."""
        super().get_vars(loader, path, entities)
        found: dict[str, Any] = {}
        root = profiles.directory()
        for group in entities if isinstance(entities, list) else [entities]:
            if not isinstance(group, Group):
                continue
            if group.name == "all":
                load_filters()
                check_command_line(loader)
                check_hosts(group, len(group.get_hosts()))
                found = {"kepler_lock": profiles.common_lock(), **found}
            for name in profiles.names_of([group.name], root).values():
                profile = profiles.profiles(root)[name]
                found = {"profile": profile, "kepler_lock": profiles.lock_of(root / name)}
        return found
