"""Garbage collection: what is kept, what goes, and that nothing is ever half gone."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from faults import walk
from recipes import needs_namespaces, recipe
from store import address, build, collect, generation
from store.errors import StoreError
from test_faults import assert_whole

pytestmark = needs_namespaces


def make(root, version, **differs):
    """An output of that version in the store: its path."""
    made = recipe(version=version, **differs)
    build.realise(root, made, [], [])
    return address.output_path(root, made)


def generations(root, many):
    """As many generations, each of an output of its own that has an input of its own; the outputs' paths."""
    paths = []
    for number in range(1, many + 1):
        base = make(root, "%d.base" % number)
        paths.append((base, make(root, str(number), inputs={"base": base})))
        generation.ensure(root, {"outputs": {"hello": paths[-1][1]}, "kernel": "k", "driver": "d",
                                 "lock_hash": str(number)})
    return paths


def test_the_last_generations_and_their_inputs_stay(root):
    paths = generations(root, 5)
    loose = make(root, "loose")
    removed = {item["path"] for item in collect.collect(root, keep=2)}
    assert removed == {os.path.join(root, "generations", str(n)) for n in (1, 2, 3)} | {loose} | {
        path for pair in paths[:3] for path in pair
    }
    assert collect.outputs(root) == sorted(path for pair in paths[3:] for path in pair)
    assert generation.numbers(root) == [4, 5]
    assert collect.collect(root, keep=2) == []
    assert_whole(root)


def test_after_going_back_the_active_one_and_the_one_before_stay(root):
    paths = generations(root, 5)
    generation.switch(root, 2, "k", "d")
    collect.collect(root, keep=1)
    # 2 is active, 1 came before it, 5 is the last.
    assert generation.numbers(root) == [1, 2, 5]
    assert all(address.is_committed(path) for number in (0, 1, 4) for path in paths[number])
    assert not any(address.is_committed(path) for number in (2, 3) for path in paths[number])
    assert generation.switch(root, "previous", "k", "d") == (1, True)


def test_what_a_process_uses_stays(root):
    """Its program lies in an output that no generation names."""
    path = make(root, "old", builder='mkdir "$out/bin"; cp /bin/sleep "$out/bin/sleep"')
    generations(root, 1)
    process = subprocess.Popen([os.path.join(path, "bin", "sleep"), "60"])
    try:
        while path not in collect.in_use(root):
            time.sleep(0.05)
        assert collect.collect(root) == []
        assert address.is_committed(path)
    finally:
        process.kill()
        process.wait()
    assert [item["path"] for item in collect.collect(root)] == [path]


def test_what_is_being_built_stays(root):
    path = make(root, "loose")
    lock = build.Lock(os.path.join(root, "locks", address.key_of_path(path)))
    assert lock.acquire()
    try:
        assert collect.collect(root) == []
    finally:
        lock.release()
    assert len(collect.collect(root)) == 1


def test_sources_go_on_request(root, tmp_path):
    from recipes import source

    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    kept = make(root, "1", sources=[source(tmp_path / "a")])
    make(root, "2", sources=[source(tmp_path / "b")])
    generation.ensure(root, {"outputs": {"hello": kept}, "kernel": "k", "driver": "d", "lock_hash": "l"})
    wrong = Path(root, "sources", "0" * 64 + ".rejected-1")
    wrong.write_text("wrong")
    assert {item["kind"] for item in collect.collect(root)} == {"output", "source"}
    assert not wrong.exists()
    assert len(os.listdir(os.path.join(root, "sources"))) == 2
    assert [item["kind"] for item in collect.collect(root, sources=True)] == ["source"]
    assert os.listdir(os.path.join(root, "sources")) == [source(tmp_path / "a")["sha256"]]


def test_a_plan_says_how_much_and_changes_nothing(root):
    generations(root, 4)
    before = sorted(os.walk(root))
    planned = collect.plan(root, keep=1)
    assert sorted(os.walk(root)) == before
    assert all(item["bytes"] > 0 for item in planned)
    assert collect.collect(root, keep=1) == planned


def test_keeping_nothing_is_refused(root):
    generations(root, 1)
    with pytest.raises(StoreError, match="keep: found 0; expected at least 1"):
        collect.collect(root, keep=0)


def test_a_kill_at_every_step(root, tmp_path):
    kept = str(tmp_path / "kept")
    generations(root, 3)
    make(root, "loose")
    shutil.copytree(root, kept, symlinks=True)

    def prepare():
        build.remove_tree(root)
        shutil.copytree(kept, root, symlinks=True)

    def check(_state):
        assert_whole(root)
        assert generation.number_of(os.path.join(root, "current")) == 3
        collect.collect(root, keep=1)
        assert generation.numbers(root) == [2, 3]
        assert len(collect.outputs(root)) == 4
        assert os.listdir(os.path.join(root, "trash")) == []
        # A build after it does not stumble over what was left.
        make(root, "again")
        assert_whole(root)

    try:
        assert walk(prepare, lambda _state: collect.collect(root, keep=1), check) > 10
    finally:
        build.remove_tree(kept)


