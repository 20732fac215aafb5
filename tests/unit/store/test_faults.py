"""A kill at every step of fetch, build, commit and activation: the store stays whole and the next run succeeds."""

import json
import os
from itertools import count
from pathlib import Path

import pytest
from faults import walk
from module_utils.store import address, build, generation, tree
from recipes import committed, needs_namespaces, recipe, source

pytestmark = needs_namespaces


def assert_whole(root, half=()):
    """Every output is as its manifest says, beside what it refers to; `current` names a whole generation, if anything.

    half: paths of what was no whole output before.
    """
    for path in Path(root, "store").glob("*-*") if Path(root, "store").exists() else ():
        if str(path) in half:
            continue
        if not address.is_committed(str(path)):
            assert not list(path.iterdir()), "half an output: %s" % path
            continue
        manifest = json.loads((path / address.MANIFEST).read_text())
        found = [entry for entry in tree.describe_all(str(path)) if entry["path"] != address.MANIFEST]
        assert found == manifest["files"]
        assert [one for one in manifest["references"] if not address.is_committed(one)] == []
    current = Path(root, "current")
    if current.is_symlink():
        described = generation.read(root, generation.number_of(str(current)))
        for name, path in described["outputs"].items():
            assert os.readlink(str(current / name)) == path
            assert address.is_committed(path)


@pytest.fixture
def fresh(root, tmp_path):
    """Function that makes the root of a new store."""
    numbers = count()
    made = []

    def new():
        made.append("%s-%d" % (root, next(numbers)))
        return made[-1]

    yield new
    for one in made:
        build.remove_tree(one)


def test_making_an_output(fresh, tmp_path):
    """Fetch, build and commit."""
    (tmp_path / "a.txt").write_text("a")
    wanted = recipe(sources=[source(tmp_path / "a.txt")], builder='cp "$src/a.txt" "$out/"; mkdir "$out/d"')

    def check(root):
        assert_whole(root)
        build.realise(root, wanted, [], [])
        assert committed(root, wanted)
        assert_whole(root)
        assert os.listdir(os.path.join(root, "build")) == []

    deaths = walk(fresh, lambda root: build.realise(root, wanted, [], []), check)
    assert deaths > 25


def two_generations(root):
    """A store with generation 1 active; what generation 2 would hold."""
    first, second = recipe(), recipe(version="2.0")
    for made in (first, second):
        build.realise(root, made, [], [])
    one, two = (
        {"outputs": {"hello": address.output_path(root, made)}, "kernel": "k", "driver": "d", "lock_hash": "l"}
        for made in (first, second)
    )
    generation.ensure(root, one)
    return two


def test_activating_a_new_generation(fresh):
    def prepare():
        root = fresh()
        return root, two_generations(root)

    def check(state):
        root, two = state
        assert_whole(root)
        assert generation.number_of(os.path.join(root, "current")) in (1, 2)
        generation.ensure(root, two)
        assert generation.read(root, generation.number_of(os.path.join(root, "current")))["outputs"] == two["outputs"]
        assert_whole(root)

    assert walk(prepare, lambda state: generation.ensure(*state), check) > 5


def test_going_back(fresh):
    """By "previous", said once more after each death; there is one before generation 1, which is not meant."""

    def prepare():
        root = fresh()
        two = two_generations(root)
        generation.ensure(root, two)
        described = Path(root, "generations", "1", "generation.json")
        described.write_text(described.read_text().replace('"previous": null', '"previous": 2'))
        return root

    def check(root):
        assert_whole(root)
        assert generation.number_of(os.path.join(root, "current")) in (1, 2)
        generation.switch(root, "previous", "k", "d")
        assert generation.number_of(os.path.join(root, "current")) == 1

    assert walk(prepare, lambda root: generation.switch(root, "previous", "k", "d"), check) >= 3
