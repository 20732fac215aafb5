"""Filters that find the hosts of all hardware profiles among the groups of the inventory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ansible import context
from ansible.errors import AnsibleFilterError
from ansible_collections.kepler.vllm.plugins.module_utils.findings import finding
from ansible_collections.kepler.vllm.plugins.plugin_utils import profiles
from ansible_collections.kepler.vllm.plugins.plugin_utils.argument_specs import entry_points

# Groups of hosts that need no profile, by what they do; the second names are those of older inventories.
ROLE_GROUPS = {
    "balancer": ("vllm_balancer", "k80_balancer"),
    "monitoring": ("vllm_monitoring", "k80_monitoring"),
}
# A pattern that matches no host: Ansible takes an empty one for a mistake.
NOBODY = "!all"


def or_nobody(hosts: list[str] | str) -> list[str] | str:
    """Hosts or groups as the `hosts` of a play, which then runs nowhere if there are none."""
    return hosts or NOBODY


def groups_of(role: str, groups: dict[str, list[str]]) -> list[str]:
    """Those of `groups` that some profile names for `role`, hosts or builder."""
    known = [profile["groups"][role] for profile in profiles.profiles(profiles.directory()).values()]
    return [group for group in known if group in groups]


def plain(group: str) -> str:
    """A group's name without what people mix up: case, underscores for hyphens, a plural."""
    return group.lower().replace("_", "-").rstrip("s")


def check_names(groups: dict[str, list[str]], named: Iterable[str]) -> None:
    """Raise AnsibleFilterError for a host that is in none of our groups, as `named` has them, but nearly in one."""
    known = profiles.by_group(profiles.directory())
    meant = {plain(group): group for group in known}
    for group, hosts in groups.items():
        others = sorted({*hosts} - {*named})
        if others and group not in known and plain(group) in meant:
            raise AnsibleFilterError(
                f"inventory: found {others[0]} in the group {group}, which no hardware profile has; expected "
                f"{meant[plain(group)]}. Rename the group: no play would touch the host."
            )


def profile_hosts(groups: dict[str, list[str]]) -> list[str] | str:
    """The `hosts` of a play: the groups of every profile. A limit names one of them."""
    found = groups_of("hosts", groups)
    others = [group for names in ROLE_GROUPS.values() for group in names]
    named = [host for group in (*found, *groups_of("builder", groups), *others) for host in groups.get(group, [])]
    check_names(groups, named)
    if not named and not checks_syntax():
        hosts = groups.get("all", [])
        count = f"{len(hosts)} host(s), {hosts[0]} first, and none" if hosts else "no host"
        raise AnsibleFilterError(
            f"inventory: found {count} in a group of a hardware profile; expected the hosts that serve in "
            f"{profiles.choices()}. Name them there."
        )
    strangers = limit() & ({*groups.get("all", [])} - {*named})
    if strangers and strangers == limit():
        raise AnsibleFilterError(
            f"limit: found {', '.join(sorted(strangers))}, in no group of a hardware profile; expected hosts in "
            f"{profiles.choices()}. Name them there in the inventory: no play would touch them."
        )
    return or_nobody(found)


def limit() -> set[str]:
    """Names and patterns of the option --limit."""
    return set(filter(None, re.split("[:,]", context.CLIARGS.get("subset") or "")))


def checks_syntax() -> bool:
    """Return whether Ansible reads playbooks and runs nothing: then the inventory may be empty."""
    return bool(context.CLIARGS.get("syntax"))


def one_host(groups: dict[str, list[str]], name: str, variable: str) -> str:
    """The `hosts` of a play for one: `name`, which `variable` holds; without it a builder, or the first that serves.

    Raises AnsibleFilterError if the inventory does not have it.
    """
    known = [*profile_builders(groups), *profile_members(groups)]
    if (name in ("localhost", *groups, *groups.get("all", [])) if name else known) or checks_syntax():
        return name or (known[0] if known else NOBODY)
    raise AnsibleFilterError(
        f"{variable}: found {name or 'none'}; expected a host of the inventory, or one in {profiles.choices()}. Name "
        f"it there, or say -e {variable}=NAME."
    )


def profile_members(groups: dict[str, list[str]]) -> list[str]:
    """The hosts of every profile."""
    return [host for group in groups_of("hosts", groups) for host in groups[group]]


def profile_builders(groups: dict[str, list[str]]) -> list[str]:
    """The builder of each profile that has one."""
    return [groups[group][0] for group in groups_of("builder", groups) if groups[group]]


def profile_named(groups: dict[str, list[str]], name: str, variable: str = "plan_profile") -> dict[str, Any]:
    """The hardware profile `name`, which `variable` holds; without it the only one that has hosts, or the only one."""
    known = profiles.profiles(profiles.directory())
    with_hosts = [one for one, profile in known.items() if groups.get(profile["groups"]["hosts"])]
    choices = [name] if name else with_hosts or list(known)
    if len(choices) != 1 or choices[0] not in known:
        raise AnsibleFilterError(
            f"{variable}: found {name or 'none'}; expected one of {', '.join(known)}. Say -e {variable}=NAME, or "
            "PROFILE=NAME with make."
        )
    return known[choices[0]]


def profile_lock(profile: dict[str, Any]) -> dict[str, Any]:
    """The lock of a profile, for a host in no group of it."""
    return profiles.lock_of(Path(profile["directory"]))


def provider_findings(profile: dict[str, Any], **chosen: str) -> list[dict[str, str]]:
    """Findings about providers that the profile does not have. chosen: python and pytorch, each a provider."""
    return [
        finding(
            "error", f"{part}_provider", provider,
            f"{' or '.join(profile[part]['providers'])}, which the profile {profile['name']} has",
            f"Leave the variable out for {profile['groups']['hosts']}; set it in the variables of the groups that it "
            "is for.",
        )
        for part, provider in chosen.items()
        # Preflight refuses what no profile has by the choices of the role.
        if provider in entry_points(part)["main"][f"{part}_provider"]["choices"]
        and provider not in profile[part]["providers"]
    ]


def role_groups(groups: Iterable[str], role: str) -> list[str]:
    """Those of `groups` whose hosts are balancers, or have the files of the monitoring."""
    return [group for group in ROLE_GROUPS[role] if group in groups]


def profile_missing(host: str) -> str:
    """Message about a host that no profile is for."""
    return (
        f"{host}: found in no group of a hardware profile; expected in {profiles.choices()}. Name the host there in "
        "the inventory, or leave it out of the run. Nothing was changed."
    )


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "one_host": one_host,
            "or_nobody": or_nobody,
            "profile_builders": profile_builders,
            "profile_hosts": profile_hosts,
            "profile_lock": profile_lock,
            "profile_members": profile_members,
            "profile_missing": profile_missing,
            "profile_named": profile_named,
            "provider_findings": provider_findings,
            "role_groups": role_groups,
        }
