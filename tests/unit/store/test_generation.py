"""Generations: numbered, whole, one of them active."""

import json
import os
from pathlib import Path

import pytest
from module_utils.store import address, build, generation
from module_utils.store.errors import StoreError
from recipes import fill, needs_namespaces, recipe, small_disk

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


def test_packages_are_recorded_without_new_generation(root, wanted):
    generation.ensure(root, wanted, ["tar-2:1.30-9.el8.x86_64"])
    assert generation.ensure(root, wanted, ["tar-2:1.30-11.el8_10.x86_64"]) == (1, False)
    assert generation.read(root, 1)["packages"] == ["tar-2:1.30-9.el8.x86_64"]
    assert generation.ensure(root, dict(wanted, kernel="other"), ["tar-2:1.30-11.el8_10.x86_64"]) == (2, True)
    assert generation.read(root, 2)["packages"] == ["tar-2:1.30-11.el8_10.x86_64"]


@pytest.mark.parametrize("value", ["tar", {"tar": "1"}, [1], [None]])
def test_packages_of_another_kind_are_refused_and_none_are_taken(root, wanted, value):
    generation.ensure(root, wanted, ["tar-2:1.30-9.el8.x86_64"])
    path = Path(root, "generations", "1", "generation.json")
    described = json.loads(path.read_text())
    path.write_text(json.dumps(dict(described, packages=value)))
    with pytest.raises(StoreError, match=r"packages.* is "):
        generation.read(root, 1)
    del described["packages"]
    path.write_text(json.dumps(described))
    assert generation.read(root, 1)["packages"] == []


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


def test_a_full_disk_at_each_step(root):
    """One file more fits in each round, until all of it does; what did not fit leaves nothing."""
    os.makedirs(root)
    with small_disk(root, "size=8m,nr_inodes=200"):
        build.realise(root, recipe(), [], [])
        wanted = {
            "outputs": {"hello": address.output_path(root, recipe())}, "kernel": "k", "driver": "d", "lock_hash": "l",
        }
        generation.ensure(root, wanted)
        fillers = fill(root)
        # Its directory, the link in it, what it holds and the link to it.
        for number in range(4):
            with pytest.raises(StoreError, match=f"generation: the disk of {root}/generations is full"):
                generation.ensure(root, dict(wanted, kernel="other"))
            assert os.listdir(os.path.join(root, "generations")) == ["1"]
            assert os.readlink(os.path.join(root, "current")) == "generations/1"
            Path(root, f"filler-{fillers - 1 - number}").unlink()
        assert generation.ensure(root, dict(wanted, kernel="other")) == (2, True)


@pytest.fixture
def two(root, wanted):
    """Generations 1 and 2; 2 is active."""
    generation.ensure(root, wanted)
    generation.ensure(root, dict(wanted, lock_hash="other"))
    return root


def active(root):
    return generation.number_of(os.path.join(root, "current"))


def test_going_back_and_forth(two):
    assert generation.switch(two, "previous", "k", "d") == (1, True)
    assert active(two) == 1
    assert generation.switch(two, 1, "k", "d") == (1, False)
    assert generation.switch(two, 2, "k", "d") == (2, True)
    assert generation.switch(two, "previous", "k", "d") == (1, True)


@pytest.fixture
def four(root, wanted):
    """Generations 1 to 4; 4 is active."""
    for number in range(1, 5):
        generation.ensure(root, dict(wanted, lock_hash=str(number)))
    return root


def test_going_back_twice_is_going_back_once(four, wanted):
    """Whoever repeats a rollback that broke off stays where it led; going further takes a number."""
    assert generation.switch(four, "previous", "k", "d") == (3, True)
    assert generation.resolve(four, "previous") == 3
    assert generation.switch(four, "previous", "k", "d") == (3, False)
    assert active(four) == 3
    assert generation.switch(four, 2, "k", "d") == (2, True)
    assert generation.switch(four, "previous", "k", "d") == (1, True)
    assert generation.switch(four, "previous", "k", "d") == (1, False)
    assert generation.ensure(four, dict(wanted, lock_hash="5")) == (5, True)
    # What came before 5.
    assert generation.switch(four, "previous", "k", "d") == (1, True)
    assert generation.switch(four, 3, "k", "d") == (3, True)
    assert generation.switch(four, "previous", "k", "d") == (2, True)


def test_a_damaged_generation(two, wanted):
    described = Path(two, "generations", "2", "generation.json")
    described.write_text(described.read_text()[:20])
    with pytest.raises(StoreError, match=r"generation 2: found nothing that can be read .*2/generation.json"):
        generation.switch(two, "previous", "k", "d")
    # The play makes another one in its place.
    assert generation.ensure(two, dict(wanted, lock_hash="other")) == (3, True)


def test_there_is_nothing_before_the_first(two):
    generation.switch(two, 1, "k", "d")
    with pytest.raises(StoreError, match=r"generation: found previous, and generations 1, 2 in .* \(active: 1\)"):
        generation.switch(two, "previous", "k", "d")
    with pytest.raises(StoreError, match=r"generation: found 7, and generations 1, 2"):
        generation.switch(two, 7, "k", "d")
    assert active(two) == 1


@pytest.mark.parametrize(("kernel", "driver", "what"), [("k2", "d", "kernel k2"), ("k", "d2", "driver d2")])
def test_another_kernel_or_driver_is_refused(two, kernel, driver, what):
    with pytest.raises(StoreError, match=r"generation 1: found %s on the host; .* store_generation_force" % what):
        generation.switch(two, 1, kernel, driver)
    assert active(two) == 2
    assert generation.switch(two, 1, kernel, driver, force=True) == (1, True)


def test_a_generation_that_lost_an_output_is_refused(two):
    path = generation.read(two, 1)["outputs"]["hello"]
    build.remove_tree(path)
    with pytest.raises(StoreError, match=r"generation 1: its output hello, .*, is not in the store any more"):
        generation.switch(two, 1, "k", "d")
    assert active(two) == 2


def test_an_empty_store_has_no_generation(root):
    os.makedirs(os.path.join(root, "locks"))
    with pytest.raises(StoreError, match=r"generation: found none in .*; expected one to go to. Run site.yml"):
        generation.switch(root, "previous", "k", "d")
