"""Versions and hashes stand in the lock and in requirements, and nowhere else."""

import ast
import re
from functools import cache

import pytest
import yaml
from repository import Loader, files, lock_files, name_of, text_of

# Where versions and hashes belong.
HOME = re.compile(r"files/lock/|profiles/[^/]+/lock/|requirements/|requirements\.yml")
# What acts: the places where a version would be a second truth.
ACTING = (
    "roles", "playbooks", "plugins", "profiles/*/profile.yml", "inventory", "molecule", "Makefile", "site.yml",
    "ansible.cfg",
)
# Captures record what a program said on a host.
RECORDS = "molecule/shared/captures/"
# Mapping keys whose values are prose.
PROSE = {"name", "description", "short_description", "fail_msg", "success_msg", "title", "msg"}
# (file, string) -> why it stands there.
ALLOWED = {
    ("molecule/shared/standin/repos.py", "4.18.0"): "kernels of the lock's range that a stand-in has and is offered",
    ("molecule/shared/standin/repos.py", "5.14.0"): "the same of the other release",
}

HASH = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{64}(?![0-9A-Za-z])")


def versions():
    """Versions of everything locked, with two dots or more: `1.9` alone could be anything."""
    found = set()

    def walk(data):
        if isinstance(data, dict):
            if isinstance(data.get("version"), str):
                found.add(data["version"])
            if isinstance(data.get("range"), str):
                found.add(data["range"].partition("-")[0])
            for value in data.values():
                walk(value)
        elif isinstance(data, list):
            for value in data:
                walk(value)

    for path in lock_files():
        walk(yaml.safe_load(path.read_text()))
    return sorted(version for version in found if version.count(".") >= 2)


@cache
def pattern():
    return re.compile(r"(?<![\w.])(" + "|".join(map(re.escape, versions())) + r")(?!\w|\.\w)")


def scalars(data):
    """Strings of a YAML document that are no prose."""
    if isinstance(data, dict):
        for key, value in data.items():
            if key not in PROSE:
                yield from scalars(value)
    elif isinstance(data, list):
        for value in data:
            yield from scalars(value)
    elif isinstance(data, str):
        yield data


def constants(text):
    """Strings of a Python module but docstrings and the documentation of Ansible's plugins."""
    tree = ast.parse(text)
    documents = ("DOCUMENTATION", "EXAMPLES", "RETURN")
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        or (isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in documents)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def acting_text(path, text):
    """What of a file acts, without comments and prose."""
    if path.suffix in (".md", ".rst", ".json"):
        return ""
    if path.suffix in (".yml", ".yaml"):
        return "\n".join(value for document in yaml.load_all(text, Loader) for value in scalars(document))
    if path.suffix == ".py":
        return "\n".join(constants(text))
    return "\n".join(re.sub(r"(^|\s)#.*", "", line) for line in text.splitlines())


def strangers(found, path):
    return sorted({string for string in found if (name_of(path), string) not in ALLOWED})


@pytest.mark.parametrize("path", [path for path in files(*ACTING) if RECORDS not in str(path)], ids=name_of)
def test_no_locked_version_stands_in_what_acts(path):
    text = text_of(path)
    found = pattern().findall(acting_text(path, text)) if text is not None else []
    assert strangers(found, path) == [], "take it from the lock"


def test_no_hash_stands_outside_the_lock():
    found = {}
    for path in files():
        text = text_of(path)
        if text is None or HOME.match(name_of(path)):
            continue
        if hashes := strangers(HASH.findall(text), path):
            found[name_of(path)] = hashes
    assert found == {}, "move it to the lock"


def test_the_allow_list_is_needed_and_reasoned():
    for (name, string), reason in ALLOWED.items():
        assert reason
        (path,) = files(name)
        assert string in path.read_text()


def test_what_acts_is_told_from_prose():
    assert acting_text(files("Makefile")[0], "a 1.2.3 # 4.5.6\n") == "a 1.2.3"
    data = {"name": "1.2.3", "url": "4.5.6", "options": [{"description": "7.8.9", "default": "1.1.1"}]}
    assert list(scalars(data)) == ["4.5.6", "1.1.1"]
    assert list(constants('"""1.2.3"""\nDOCUMENTATION = "4.5.6"\nX = "7.8.9"\n')) == ["7.8.9"]


def test_the_patterns_find_what_they_are_for():
    version = versions()[0]
    assert pattern().findall(f"x-{version}.tar.gz {version} {version}.9 1{version}") == [version]
    assert HASH.findall("0" * 64 + " " + "0" * 65) == ["0" * 64]
