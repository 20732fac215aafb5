"""Every role has the same shape, and its documentation agrees with it."""

import re

import pytest
from repository import ROLES, ROOT, load, module_of

EACH = pytest.mark.parametrize("role", ROLES)
SECTIONS = ("Requirements", "Role Variables", "Variables Exported", "Example")
DISPATCHING = {"import_tasks", "include_tasks", "import_role", "include_role"}
PYTHON = {
    "str": str, "path": str, "bool": bool, "int": int, "float": (int, float), "list": list, "dict": dict,
    "raw": object,
}  # fmt: skip


def part(role, name):
    return ROOT / "roles" / role / name


def own_defaults(role):
    return load(part(role, "defaults/main.yml")) or {}


# Settings that several roles read; each is described by the role whose name it has.
SHARED = own_defaults("common")


def owner_of(name):
    """The role whose name a variable has."""
    return max((role for role in ROLES if name.startswith(f"{role}_")), key=len, default="")


def defaults_of(role):
    """Variables with the role's name, wherever their defaults stand."""
    everything = {**own_defaults(role), **SHARED}
    return {name: value for name, value in everything.items() if name not in SHARED or owner_of(name) == role}


def entry_points(role):
    """Options by entry point."""
    specs = load(part(role, "meta/argument_specs.yml"))["argument_specs"]
    return {entry: spec.get("options") or {} for entry, spec in specs.items()}


def is_schema(role, entry):
    """Whether an entry point has no tasks: it is the schema of a value, and its options are no variables."""
    return not part(role, f"tasks/{entry}.yml").is_file()


def options_of(role):
    """Variables of all entry points together."""
    return {
        name: option
        for entry, options in entry_points(role).items() if not is_schema(role, entry)
        for name, option in options.items()
    }


def every_option(role):
    """Name and specification of each option, those of schemas too."""
    return [item for options in entry_points(role).values() for item in options.items()]


def test_an_instance_is_the_only_schema():
    found = [(role, entry) for role in ROLES for entry in entry_points(role) if is_schema(role, entry)]
    assert found == [("vllm_service", "instance")]


@EACH
@pytest.mark.parametrize(
    "name", ["README.md", "defaults/main.yml", "meta/main.yml", "meta/argument_specs.yml", "tasks/main.yml"]
)
def test_a_role_has_its_parts(role, name):
    assert part(role, name).is_file()


@EACH
def test_the_readme_has_its_sections(role):
    headings = re.findall("^## (.+)$", part(role, "README.md").read_text(), re.MULTILINE)
    assert [section for section in SECTIONS if section not in headings] == []


@EACH
def test_the_readme_names_every_knob(role):
    text = part(role, "README.md").read_text()
    assert [name for name in defaults_of(role) if f"`{name}`" not in text] == []


@EACH
def test_argument_specs_equal_defaults(role):
    defaults, options = defaults_of(role), options_of(role)
    assert {name: option["default"] for name, option in options.items() if "default" in option} == defaults
    # Other roles export store_outputs. Ansible validates a role even where --tags asks for another one alone.
    without = {name for name, option in options.items() if "default" not in option and not option.get("required")}
    old = {name for name in without if options[name]["description"].startswith("Old name of ")}
    assert without - old <= {"store_outputs"}


def test_every_shared_setting_is_described_by_a_role():
    assert set(SHARED) <= {name for role in ROLES for name in options_of(role)}


def test_each_default_stands_in_one_role():
    names = [name for role in ROLES for name in own_defaults(role)]
    assert sorted(names) == sorted(set(names))


@EACH
def test_a_default_has_the_type_of_its_option(role):
    for name, option in every_option(role):
        default = option.get("default")
        if isinstance(default, str) and "{{" in default:  # its type shows where it is rendered
            continue
        if "default" in option:
            assert isinstance(default, PYTHON[option["type"]]), name
            assert not (option["type"] in ("int", "float") and isinstance(default, bool)), name
            assert default in option.get("choices", [default]), name


@EACH
def test_every_option_has_a_type_and_a_description(role):
    assert [name for name, option in every_option(role) if not (option.get("type") and option.get("description"))] == []


@EACH
def test_every_default_has_a_comment(role):
    lines = part(role, "defaults/main.yml").read_text().splitlines()
    blocks, comment = {}, False
    for line in lines:
        if name := re.match("([a-z][a-z0-9_]*):", line):
            blocks[name[1]] = comment
        elif not line:
            comment = False
        elif line.startswith("#"):
            comment = True
    assert [name for name, commented in blocks.items() if not commented] == []


@EACH
def test_variables_carry_the_name_of_their_role(role):
    path = part(role, "vars/main.yml")
    names = [*defaults_of(role), *(load(path) or {} if path.is_file() else {})]
    assert [name for name in names if not name.startswith((f"{role}_", f"__{role}_"))] == []


@EACH
def test_main_only_dispatches(role):
    tasks = load(part(role, "tasks/main.yml"))
    assert tasks
    for task in tasks:
        assert module_of(task) in DISPATCHING, task["name"]
        assert role in task["tags"], task["name"]
        assert any(tag.startswith(f"{role}_") for tag in task["tags"]), task["name"]
