"""The lock: its form, and what its entries say about one another."""

import copy
import json
from collections import Counter

import jsonschema
import pytest
import yaml
from repository import LOCK, ROLES, ROOT, SCHEMAS, lock_files, name_of, profile_files, schema_of

FILES = pytest.mark.parametrize("path", lock_files(), ids=name_of)
LOCKS_AND_PROFILES = pytest.mark.parametrize("path", [*lock_files(), *profile_files()], ids=name_of)


def content(path):
    return yaml.safe_load(path.read_text())


def accepts(path, data):
    validator = jsonschema.Draft202012Validator(json.loads(schema_of(path).read_text()))
    return not list(validator.iter_errors(data))


def places(data, key, path=()):
    """Paths of every mapping below `data` that has `key`."""
    if isinstance(data, dict):
        if key in data:
            yield path
        for name, value in data.items():
            yield from places(value, key, (*path, name))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from places(value, key, (*path, index))


def at(data, path):
    for step in path:
        data = data[step]
    return data


@LOCKS_AND_PROFILES
def test_a_file_has_the_form_of_its_schema(path):
    assert accepts(path, content(path))


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=name_of)
def test_a_schema_is_valid_and_used(path):
    jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text()))
    assert path in [schema_of(file) for file in (*lock_files(), *profile_files())]


@FILES
@pytest.mark.parametrize("wrong", [None, "", "0" * 63, "0" * 65, "g" * 64, "A" * 64, 0])
def test_a_sha256_that_is_none_is_refused(path, wrong):
    data = content(path)
    for place in list(places(data, "sha256"))[:3]:
        changed = copy.deepcopy(data)
        if wrong is None:
            del at(changed, place)["sha256"]
        else:
            at(changed, place)["sha256"] = wrong
        assert not accepts(path, changed)


@FILES
def test_an_unverified_entry_says_why(path):
    data = content(path)
    unverified = [place for place in places(data, "verified") if not at(data, place)["verified"]]
    for place in unverified[:3]:
        changed = copy.deepcopy(data)
        del at(changed, place)["reason"]
        assert not accepts(path, changed)


@LOCKS_AND_PROFILES
def test_an_unknown_key_is_refused(path):
    data = content(path)
    for place in [(), *list(places(data, "version"))[:2]]:
        changed = copy.deepcopy(data)
        at(changed, place)["sha265"] = "0" * 64
        assert not accepts(path, changed)


RPMS = content(LOCK / "rpms.yml")


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.pop("epoch"),
        lambda entry: entry.pop("release"),
        lambda entry: entry.pop("verified"),
        lambda entry: entry.update(epoch="0"),
        lambda entry: entry.update(version=4.18),
        lambda entry: entry.update(version="latest or so"),
        lambda entry: entry.update(arch="aarch64"),
        lambda entry: entry.update(repo="elrepo"),
        lambda entry: entry.update(stream="470-dkms"),
        lambda entry: entry.update(unit="all"),
        lambda entry: entry.update(verified=True, provenance=""),
        lambda entry: entry.update(verified="true"),
    ],
)
def test_a_package_entry_that_does_not_hold_is_refused(change):
    data = copy.deepcopy(RPMS)
    change(next(entry for entry in data["rpms"] if "version" in entry and "module" not in entry))
    assert not accepts(LOCK / "rpms.yml", data)


@pytest.mark.parametrize(("name", "changes"), [
    ("dkms", {"minimum": "3.0 13"}), ("dkms", {"minimum": 3}), ("dkms", {"minimum": "1:"}), ("dkms", {"epoch": 0}),
    ("dkms", {"version": "3.3.0", "epoch": 0, "release": "1.el8"}), ("dkms", {"unit": "driver"}),
    ("dkms", {"module": "nvidia-driver", "stream": "470-dkms"}),
    ("kernel-devel", {"minimum": "4.18.0"}), ("kernel-devel", {"range": "4.18.0-553*"}),
    ("kernel-devel", {"version": "4.18.0", "epoch": 0, "release": "553.el8_10"}),
    ("nvidia-driver", {"minimum": "3:470.256.02"}),
])  # fmt: skip
def test_an_entry_names_one_version_or_a_minimum_or_neither(name, changes):
    data = copy.deepcopy(RPMS)
    next(entry for entry in data["rpms"] if entry["name"] == name).update(changes)
    assert not accepts(LOCK / "rpms.yml", data)


@pytest.mark.parametrize("changes", [
    {"range": "4.18.0"}, {"range": ""}, {"tested": "4.18.0-553.el8_10"}, {"tested": ["4.18.0-553*.el8_10"]},
    {"tested": [553]}, {"newest": "4.18.0-553.el8_10"}, {"provenance": ""},
])  # fmt: skip
def test_kernels_that_do_not_hold_are_refused(changes):
    data = copy.deepcopy(RPMS)
    data["kernels"].update(changes)
    assert not accepts(LOCK / "rpms.yml", data)


def test_tested_kernels_are_of_the_range():
    from ansible_collections.kepler.vllm.plugins.module_utils import rpms

    assert RPMS["kernels"]["tested"]
    for release in RPMS["kernels"]["tested"]:
        assert rpms.in_range(RPMS["kernels"]["range"], release)


def test_only_what_something_was_proven_with_is_exact():
    """What belongs to the distribution moves with its fixes, and what other CUDA releases share with them."""
    loose = {entry["name"] for entry in RPMS["rpms"] if "version" not in entry}
    for entry in RPMS["rpms"]:
        shared = ("kernel-headers", "cuda-toolkit-config-common", "cuda-toolkit-11-config-common")
        moves = entry["repo"] == "epel" or entry.get("unit") == "kernel" or entry["name"] in shared
        exact = entry["role"] in ("nvidia_driver", "cuda_toolkit", "compiler") and not moves
        assert (entry["name"] not in loose) == exact, entry["name"]


@pytest.mark.parametrize("fingerprint", ["D42D0685", "610C 7B14", "z" * 40, ""])
def test_a_short_fingerprint_is_refused(fingerprint):
    data = copy.deepcopy(RPMS)
    data["repos"]["epel"]["key_fingerprint"] = fingerprint
    assert not accepts(LOCK / "rpms.yml", data)


def test_each_package_stands_once():
    assert [name for name, count in Counter(entry["name"] for entry in RPMS["rpms"]).items() if count > 1] == []


def test_each_package_belongs_to_a_role():
    assert {entry["role"] for entry in RPMS["rpms"]} <= set(ROLES)


def test_the_driver_has_one_version():
    assert len({(entry["version"], entry["release"]) for entry in RPMS["rpms"] if entry.get("unit") == "driver"}) == 1


def test_module_streams_are_those_that_are_enabled():
    enabled = {(module["name"], module["stream"], module["repo"]) for module in RPMS["modules"]}
    used = {(entry["module"], entry["stream"], entry["repo"]) for entry in RPMS["rpms"] if "module" in entry}
    assert used == enabled


def test_relations_stay_within_the_lock():
    offered = {entry["name"] for entry in RPMS["rpms"]} | {
        name for entry in RPMS["rpms"] for name in entry.get("provides", [])
    }
    assert {name for entry in RPMS["rpms"] for name in entry.get("requires", [])} <= offered


def test_python_files_are_named_without_an_address():
    for path in sorted((LOCK / "python").glob("*.yml")):
        assert "://" not in path.read_text(), path.relative_to(ROOT)
