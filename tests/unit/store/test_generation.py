"""Generations: numbered, whole, one of them active."""

import json
import os
from pathlib import Path

import pytest
from recipes import needs_namespaces, recipe
from store import address, build, generation
from store.errors import StoreError

pytestmark = needs_namespaces


@pytest.fixture
def wanted(root):
    """A generation of one output that is in the store."""
    build.realise(root, recipe(), [], [])
    return {"outputs": {"hello": address.output_path(root, recipe())}, "kernel": "k", "driver": "d", "lock_hash": "l"}


def test_a_generation_is_made_once(root, wanted):
    assert generation.ensure(root, wanted) == (1, True)
    assert generation.ensure(root, wanted) == (1, False)
    assert os.readlink(os.path.join(root, "current")) == "generations/1"
    assert Path(root, "current", "hello", "bin", "where").exists()


@pytest.mark.parametrize("field", ["kernel", "driver", "lock_hash"])
def test_what_it_was_proven_with_counts(root, wanted, field):
    generation.ensure(root, wanted)
    assert generation.ensure(root, dict(wanted, **{field: "other"})) == (2, True)
    described = json.loads(Path(root, "current", "generation.json").read_text())
    assert described["previous"] == 1
    assert described[field] == "other"
    assert Path(root, "generations", "1", "hello").exists()


def test_an_output_that_is_not_in_the_store_is_refused(root, wanted):
    generation.ensure(root, wanted)
    half = os.path.join(root, "store", "abc-half-1")
    os.mkdir(half)
    with pytest.raises(StoreError, match=r"outputs\.half: found .*abc-half-1, which is not in the store"):
        generation.ensure(root, dict(wanted, outputs={"half": half}))
    assert os.readlink(os.path.join(root, "current")) == "generations/1"
    assert sorted(os.listdir(os.path.join(root, "generations"))) == ["1"]


def test_what_a_crash_left_is_no_obstacle(root, wanted):
    os.makedirs(os.path.join(root, "generations", ".new-1"))
    os.symlink("/nowhere", os.path.join(root, "generations", ".new-1", "stale"))
    os.symlink("/nowhere", os.path.join(root, "current.new"))
    assert generation.ensure(root, wanted) == (1, True)
    assert sorted(os.listdir(os.path.join(root, "generations", "1"))) == ["generation.json", "hello"]
