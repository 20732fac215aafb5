"""An output's path is decided by its inputs, all of them, and by nothing else."""

import base64
import hashlib
import json

import pytest
from module_utils.store import address
from module_utils.store.errors import StoreError
from recipes import recipe

SOURCE = {"name": "a", "file": "a.tar", "sha256": "1" * 64}
OTHER = {"name": "b", "file": "b.tar", "sha256": "2" * 64}


def test_the_key_is_what_the_documentation_says():
    made = recipe(sources=[SOURCE], inputs={"python": "/opt/kepler/store/abc-python-3"}, toolchain=["gcc-10"])
    described = {
        "name": "hello", "version": "1.0", "system": "x86_64-linux", "builder": made["builder"], "environment": {},
        "sources": [["a.tar", "1" * 64]], "inputs": {"python": "abc"}, "toolchain": ["gcc-10"],
    }
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    expected = base64.b32encode(hashlib.sha256(text.encode()).digest()[:20]).decode().lower()
    assert address.key(made) == expected
    assert len(expected) == 32
    assert address.output_path("/opt/kepler", made) == "/opt/kepler/store/%s-hello-1.0" % expected


@pytest.mark.parametrize("differs", [
    {"name": "other"},
    {"version": "1.1"},
    {"system": "aarch64-linux"},
    {"builder": "true\n"},
    {"environment": {"A": "1"}},
    {"sources": [SOURCE]},
    {"inputs": {"python": "/opt/kepler/store/abc-python-3"}},
    {"toolchain": ["gcc-10"]},
])
def test_every_input_changes_the_key(differs):
    assert address.key(recipe(**differs)) != address.key(recipe())


def test_order_counts_for_sources_and_not_for_mappings():
    assert address.key(recipe(sources=[SOURCE, OTHER])) != address.key(recipe(sources=[OTHER, SOURCE]))
    one, other = {"A": "1", "B": "2"}, {"B": "2", "A": "1"}
    assert address.key(recipe(environment=one)) == address.key(recipe(environment=other))


def test_where_a_source_comes_from_does_not_count():
    moved = dict(SOURCE, urls=["https://example.org/a.tar"])
    assert address.key(recipe(sources=[SOURCE])) == address.key(recipe(sources=[moved]))


def test_an_input_counts_by_its_key_wherever_the_store_is():
    one, other = ({"p": "%s/store/abc-python-3" % root} for root in ("/opt/kepler", "/srv/other"))
    assert address.key(recipe(inputs=one)) == address.key(recipe(inputs=other))


@pytest.mark.parametrize(("differs", "word"), [
    ({"name": "../up"}, "name"),
    ({"name": "a/b"}, "name"),
    ({"version": ""}, "version"),
    ({"name": "hello\n"}, "name"),
    ({"version": "1.0\n"}, "version"),
    ({"name": "hel\nlo"}, "name"),
    ({"name": "hello\r"}, "name"),
    ({"name": None}, "name"),
    ({"version": 1.0}, "version"),
    ({"name": "a" * 215}, "name"),
    ({"version": "1" * 300}, "version"),
    ({"environment": {"A": 1}}, "environment.A"),
    ({"inputs": {"a": None}}, "inputs.a"),
    ({"toolchain": ["gcc", 10]}, "toolchain.1"),
    ({"builder": None}, "builder"),
    ({"sources": [dict(SOURCE, sha256="1" * 64 + "\n")]}, "sha256"),
    ({"sources": [dict(SOURCE, sha256=7)]}, "sha256"),
    ({"sources": [dict(SOURCE, file="a.tar\n")]}, "file"),
    ({"sources": [dict(SOURCE, file="a" * 230)]}, "file"),
    ({"sources": [dict(SOURCE, file=7)]}, "file"),
    ({"sources": ["a.tar"]}, "sources.0"),
    ({"sources": [dict(SOURCE, sha256="")]}, "sha256"),
    ({"sources": [{"name": "a", "file": "a.tar"}]}, "sha256"),
    ({"sources": [dict(SOURCE, sha256="1" * 63)]}, "sha256"),
    ({"sources": [dict(SOURCE, file="../a.tar")]}, "file"),
    ({"sources": [dict(SOURCE, file="/etc/passwd")]}, "file"),
    ({"sources": [dict(SOURCE, file="..")]}, "file"),
])
def test_names_that_cannot_be_taken(differs, word):
    with pytest.raises(StoreError) as caught:
        address.check_recipe(recipe(**differs))
    assert word in str(caught.value)
    assert "expected" in str(caught.value)


def test_longest_name_can_be_published():
    """Its manifest's signature has the longest name of all."""
    made = recipe(name="a" * 200, version="1" * 3)
    address.check_recipe(made)
    assert len(address.name_of(address.output_path("/r", made)) + ".manifest.json.asc") == 255
    with pytest.raises(StoreError, match="found 204 characters; expected at most 203"):
        address.check_recipe(recipe(name="a" * 200, version="1" * 4))


@pytest.mark.parametrize("name", ["abc-hello-1", "a" * 32, "A" * 32 + "-hello-1", "1" * 32 + "-hello-1", ".trash"])
def test_names_that_are_no_outputs(name):
    assert not address.OUTPUT.match(name)


def test_name_of_an_output_matches():
    name = address.name_of(address.output_path("/r", recipe()))
    assert address.OUTPUT.match(name).group(1) == address.key(recipe()) == address.key_of_path("/x/store/%s/" % name)
