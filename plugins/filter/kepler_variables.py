"""Filter that validates the inventory's variables against the roles' argument specs, without a host."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ansible import context
from ansible.errors import AnsibleError
from ansible.parsing.splitter import parse_kv
from ansible_collections.kepler.vllm.plugins.module_utils.findings import finding
from ansible_collections.kepler.vllm.plugins.plugin_utils.argument_specs import TYPES, correction, reads_as
from ansible_collections.kepler.vllm.plugins.plugin_utils.findings import (
    PLAIN_PATH_FORM,
    is_integer,
    is_plain_path,
    shown,
)
from ansible_collections.kepler.vllm.plugins.plugin_utils.numbers import RANGES, as_integer, number_findings
from ansible_collections.kepler.vllm.plugins.plugin_utils.variables import options, unknown_names
from jinja2 import Undefined, pass_context
from jinja2.runtime import Context

# Paths that stand in a unit, its environment file or its command line.
IN_UNITS = ("monitoring_textfile_directory", "qualification_directory", "store_root", "vllm_service_home")


def is_template(value: Any) -> bool:
    """Return whether a value shows only where it is rendered."""
    return isinstance(value, str) and "{{" in value


def leaves(value: Any) -> Iterator[Any]:
    """The value, or the members of the list that it is, and of lists in it."""
    if isinstance(value, list):
        for member in value:
            yield from leaves(member)
    else:
        yield value


def is_sizes(value: dict[str, Any]) -> bool:
    """Return whether a mapping is one of absolute paths to numbers above 0."""
    return all(
        isinstance(path, str) and path.startswith("/") and (
            is_template(size)
            or (isinstance(size, (int, float)) and not isinstance(size, bool) and 0 < size < float("inf"))
        )
        for path, size in value.items()
    )


def is_texts(value: dict[str, Any]) -> bool:
    """Return whether every key and value of a mapping is a text."""
    return all(isinstance(part, str) for item in value.items() for part in item)


# Further conditions of a value of the right type: a test, and what is expected.
CONTENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "load_balancer_access_log": (
        lambda value: bool(re.fullmatch(r"[^\s;{}'\"][^\r\n;{}'\"]*", str(value))),
        "off, a path or syslog:..., without quotes, braces and semicolons",
    ),
    "models_environment": (is_texts, "texts by names of environment variables"),
    "preflight_disk_gib": (is_sizes, "a number above 0 for each absolute path"),
    "vllm_service_smoke_expect": (is_texts, "texts by names of instances"),
    "vllm_service_smoke_prompt": (lambda value: bool(str(value).strip()), "a text that is not empty"),
    "vllm_service_user": (
        lambda value: bool(re.fullmatch("[A-Za-z_][A-Za-z0-9_-]{0,30}", str(value))),
        "a user's name as systemd takes it: up to 31 letters, digits, _ and -",
    ),
    **dict.fromkeys(IN_UNITS, (is_plain_path, f"{PLAIN_PATH_FORM}, since a unit of systemd names it")),
}


def given_as_text() -> set[str]:
    """Names that the command line gives as `-e name=value`, which makes every value a text."""
    texts = context.CLIARGS.get("extra_vars") or ()
    return {name for text in texts if text[:1] not in ("@", "{", "[", "/", ".") for name in parse_kv(text)}


def takes(kind: str, value: Any) -> bool:
    """Return whether a role takes `value`; a number without quotes is a text to Ansible, if a role asks for one."""
    return TYPES[kind][0](value) or (kind == "str" and is_integer(value))


def typed_findings(name: str, value: Any, option: dict, as_text: bool) -> list[dict[str, str]]:
    """Findings about the value of a variable that a role knows."""
    if is_template(value):
        return []
    kind = option["type"]
    expected = TYPES[kind][1]
    if not takes(kind, value) and not (as_text and reads_as(value, kind)):
        return [finding("error", name, shown(value), expected, correction(value, kind))]
    if kind == "list" and "elements" in option:
        wrong = [item for item in value if not is_template(item) and not takes(option["elements"], item)]
        if wrong:
            members = f"a list, each of it {TYPES[option['elements']][1]}"
            return [finding("error", name, shown(wrong[0]), members, correction(wrong[0], option["elements"]))]
    choices = option.get("choices", [value])
    if name in RANGES:
        return [] if any(map(is_template, leaves(value))) else number_findings(name, as_integer(value))
    if value not in choices:
        expected = f"one of {', '.join(choices)}"
    elif name in CONTENTS and not CONTENTS[name][0](value):
        expected = CONTENTS[name][1]
    else:
        return []
    return [finding("error", name, shown(value), expected, "Correct the value.")]


def role_findings(role: str, values: dict[str, Any]) -> list[dict[str, str]]:
    """Findings about a role's rendered variables; `values` has them without the role's name in front."""
    as_text, known = given_as_text(), options()
    named = {f"{role}_{name}": value for name, value in values.items()}
    return [
        item for name, value in named.items() for item in typed_findings(name, value, known[name], name in as_text)
    ]


def variable_findings(values: dict[str, Any], checked: Iterable[str]) -> list[dict[str, str]]:
    """Findings about names that no role knows, and about values of another type than the role asks for.

    values: variables of a host from inventory, facts and command line, not rendered. checked: options that other
    filters check.
    """
    known, as_text = options(), given_as_text()
    found = []
    for name, value in sorted(values.items()):
        if name not in known:
            found += unknown_names([name])
        elif name not in checked:
            found += typed_findings(name, value, known[name], name in as_text)
    return found


def reason_of(text: str) -> str:
    """The reason in Ansible's message about a template, which repeats it for each level of templates."""
    undefined = re.search(r"'[^'\n]+' is undefined|has no attribute '[^'\n]+'", text)
    if undefined:
        return undefined.group()
    return " ".join(text.rpartition("original message: ")[2].split())[:200]


@pass_context
def template_findings(variables: Context, names: Iterable[str]) -> list[dict[str, str]]:
    """Findings about variables, by their `names`, that hold a template which cannot be rendered."""
    found = []
    for name in names:
        try:
            value = variables.get(name)
            reason = str(value._undefined_message) if isinstance(value, Undefined) else ""
        except AnsibleError as error:
            reason = str(error)
        if reason:
            found.append(finding(
                "error", name, f"a template that cannot be rendered: {reason_of(reason)}",
                "one of variables that the inventory defines: facts are not gathered yet", "Correct the template.",
            ))
    return found


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {"template_findings": template_findings, "variable_findings": variable_findings}
