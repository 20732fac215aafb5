"""What operators read in a run: names of plays and tasks, and labels of hosts."""

import re

import pytest
from repository import BLOCKS, ROOT, files, load, name_of, task_files

FILES = pytest.mark.parametrize("path", [ROOT / "site.yml", *task_files()], ids=name_of)
LISTS = ("tasks", "pre_tasks", "post_tasks", "handlers", *BLOCKS)
# First words of names: one verb for each action, in all roles and playbooks.
VERBS = re.compile(
    "(Activate|Add|Allow|Apply|Assemble|Build|Check|Choose|Close|Compare|Configure|Copy|Create|Define|Disable|Download"
    "|Drain|Enable|Exclude|Export|Fetch|Find|Generate|Import|Install|Link|Load|Lock|Measure|Open|Pack|Parse|Plan"
    "|Prepare|Provision|Publish|Qualify|Quarantine|Query|Read|Reboot|Rebuild|Record|Release|Reload|Remove|Renew"
    "|Replace|Report|Restore|Roll|Run|Set|Share|Simulate|Start|Stop|Test|Trust|Unlock|Unpack|Upgrade|Use|Validate"
    "|Verify|Wait|Write) "
)
# Ansible shows these of a delegated task's host as the inventory writes them, templates included.
SHOWN = ("ansible_host", "ansible_port", "ansible_user", "ansible_connection")


def named(items):
    """Plays and tasks of a file, blocks included."""
    for item in items or []:
        yield item
        for key in LISTS:
            yield from named(item.get(key))


def names_of(path):
    return [item["name"] for item in named(load(path)) if "name" in item]


def known(path):
    """Variables that have one value for all of a task's hosts: of the lock, of the role, passed on by an include."""
    role = path.parents[1]
    variables = {name for part in ("defaults", "vars") for name in load_if_there(role / part / "main.yml")}
    tasks = [item for other in (role / "tasks").glob("*.yml") for item in named(load(other))]
    loops = {task["loop_control"]["loop_var"] for task in tasks if "loop_var" in task.get("loop_control", {})}
    return {"kepler_lock", *variables, *loops, *(name for task in tasks for name in task.get("vars", {}))}


def load_if_there(path):
    return (load(path) or {}) if path.is_file() else {}


def faults(path, name):
    templates = re.findall("{{ *([A-Za-z_]+)", name)
    # A value of usual length stands for each template.
    length = len(re.sub("{{.*?}}", "2.0.1.post1", name))
    found = []
    if templates and not known(path).issuperset(templates):
        found.append(f"{name}: found a variable that is not known before the task runs; name the thing instead")
    if length > 60:
        found.append(f"{name}: found {length} characters; expected 60 at most")
    if not VERBS.match(name):
        found.append(f"{name}: found {name.split()[0]}; expected one of VERBS, or a new verb there")
    return found


@FILES
def test_names_tell_what_is_done(path):
    assert [fault for name in names_of(path) for fault in faults(path, name)] == []


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("Install {{ item }}", "not known before the task runs"),
        ("Add CPython {{ __python_version.stdout }}", "not known before the task runs"),
        ("Stop the servers of this host before the kernel, driver or boards change", "60 at most"),
        ("Look at the bundle", "found Look; expected one of VERBS"),
        ("the bundle is unpacked", "found the; expected one of VERBS"),
    ],
)
def test_names_that_do_not_are_found(name, part):
    (fault,) = faults(ROOT / "roles/python/tasks/main.yml", name)
    assert part in fault


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("roles/vllm/tasks/install.yml", "Unpack the dependencies of vLLM {{ __vllm_source.version }}"),
        ("roles/vllm_service/tasks/retire_one.yml", "Remove the files of {{ __vllm_service_retired }}"),
        ("playbooks/build.yml", "Build the outputs and activate them"),
    ],
)
def test_names_that_do_are_left_alone(path, name):
    assert name in names_of(ROOT / path)
    assert faults(ROOT / path, name) == []


def settings(data):
    """Pairs of name and value in an inventory or a file of variables, at any depth."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield key, value
        yield from settings(value)


def test_labels_of_hosts_have_no_template():
    inventories = [path for path in files("inventory", "molecule") if path.suffix == ".yml"]
    assert len(inventories) > 10
    found = [
        (name_of(path), key, value)
        for path in inventories for key, value in settings(load(path))
        if key in SHOWN and re.search("{[{%]", str(value))
    ]  # fmt: skip
    assert found == []
