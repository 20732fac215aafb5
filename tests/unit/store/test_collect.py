"""Garbage collection: what is kept, what goes, and that nothing is ever half gone."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from module_utils.store import address, build, collect, generation, substitute
from module_utils.store.errors import StoreError
from recipes import PLUGINS, fill, needs_namespaces, recipe, small_disk, source
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
    loose = make(root, "loose")
    paths = generations(root, 5)
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
        until = time.monotonic() + 10
        while path not in collect.in_use(root):
            assert time.monotonic() < until, "not in use"
            time.sleep(0.05)
        assert collect.collect(root) == []
        assert address.is_committed(path)
    finally:
        process.kill()
        process.wait()
    assert [item["path"] for item in collect.collect(root)] == [path]


STANDS = """
import os, signal, sys
os.chdir("/")
getattr(os, sys.argv[1])(os.environ["P"])
print("stands", flush=True)
signal.pause()
"""


@pytest.mark.parametrize("how", ["chdir", "chroot"])
def test_output_stays_while_a_process_stands_in_it(root, how):
    """The process executes and maps nothing of it: its directory, or its root, lies there."""
    path = make(root, "old")
    generations(root, 1)
    process = subprocess.Popen(
        [sys.executable, "-c", STANDS, how], env=dict(os.environ, P=path), stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"stands\n"
        assert collect.collect(root) == []
    finally:
        process.kill()
        process.communicate()
    assert [item["path"] for item in collect.collect(root)] == [path]


def test_what_is_being_built_stays(root):
    path = make(root, "loose")
    generations(root, 1)
    lock = build.Lock(os.path.join(root, "locks", address.key_of_path(path)))
    assert lock.acquire()
    try:
        assert collect.collect(root) == []
    finally:
        lock.release()
    assert len(collect.collect(root)) == 1


WORKER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from module_utils.store import build
build.LOGS = sys.argv[2]
build.realise(sys.argv[3], json.loads(sys.argv[4]), [], [])
"""


def test_what_a_build_needs_stays(root, tmp_path):
    """Its inputs, theirs, and its sources; also where its maker died and the builder goes on."""
    (tmp_path / "a").write_text("a")
    lowest = make(root, "lowest")
    lower = make(root, "lower", inputs={"lowest": lowest})
    generations(root, 1)
    needed = source(tmp_path / "a")
    made = recipe(
        name="upper", inputs={"lower": lower}, sources=[needed],
        builder='echo $$ > "%s/pid"; while [ ! -e "%s/go" ]; do sleep 0.1; done; cp "$src/a" "$out/"' % (
            tmp_path, tmp_path),
    )
    command = [sys.executable, "-c", WORKER, str(PLUGINS), str(tmp_path / "log"), root]
    process = subprocess.Popen(command + [json.dumps(made)], stderr=subprocess.PIPE)
    try:
        while not (tmp_path / "pid").exists():
            time.sleep(0.05)
        # A dry run does not name them either.
        assert collect.plan(root, sources=True) == []
        assert collect.collect(root, sources=True) == []
        process.kill()
        process.communicate()
        assert collect.collect(root, sources=True) == []
        assert address.is_committed(lower) and address.is_committed(lowest)
        assert os.listdir(os.path.join(root, "sources")) == [needed["sha256"]]
    finally:
        (tmp_path / "go").touch()
    build.realise(root, made, [], [])
    upper = address.output_path(root, made)
    build.remove_tree(upper)
    # Nobody needs them any more; what the builder left goes with the next build.
    assert {item["path"] for item in collect.collect(root, sources=True)} == {
        lower, lowest, os.path.join(root, "sources", needed["sha256"])}
    assert os.listdir(os.path.join(root, "build")) == []


def test_what_is_in_no_generation_yet_stays(root):
    """An upgrade builds for hours before it makes one; a first run too."""
    first = make(root, "first")
    assert collect.collect(root) == []
    generations(root, 2)
    base = make(root, "base")
    awaited = make(root, "awaited", inputs={"base": base})
    # Going back is no upgrade.
    generation.switch(root, 1, "k", "d")
    assert [item["path"] for item in collect.collect(root)] == [first]
    assert address.is_committed(base)
    generation.switch(root, 2, "k", "d")
    generation.ensure(root, {"outputs": {"hello": base}, "kernel": "k", "driver": "d", "lock_hash": "3"})
    assert [item["path"] for item in collect.collect(root)] == [awaited]


def test_a_build_whose_input_goes_away_says_so(root):
    base = make(root, "base")
    build.remove_tree(base)
    with pytest.raises(StoreError, match="the input base is .*, which is not in the store"):
        build.realise(root, recipe(inputs={"base": base}), [], [])
    assert os.listdir(os.path.join(root, "build")) == []


def test_downloads_that_nobody_is_at_go(root):
    """A running one stays, and so does one that a build is to go on with."""
    generations(root, 1)
    forsaken, held, needed = (Path(root, "sources", ".%s.part" % (digit * 64)) for digit in "123")
    for part in (forsaken, held, needed):
        part.write_text("half")
    lock = build.Lock(os.path.join(root, "locks", "key"))
    lock.acquire()
    build.write_atomically(os.path.join(root, "build", "key.needs.json"), {"inputs": [], "sources": ["3" * 64]})
    with held.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        planned = collect.plan(root)
        assert [(item["kind"], item["path"]) for item in planned] == [("source", str(forsaken))]
        assert collect.collect(root) == planned
    lock.release()
    assert sorted(item["path"] for item in collect.collect(root)) == [str(held), str(needed)]


PUBLISHER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from module_utils.store import substitute
def waits(*arguments):
    print("publishing", flush=True)
    time.sleep(60)
substitute.write_archive = waits
substitute.is_published = lambda *arguments: False
substitute.publish(sys.argv[2], sys.argv[3], "/nowhere", "nobody")
"""


def test_what_a_killed_publisher_left_goes(root, tmp_path):
    published = tmp_path / "published"
    path = generations(root, 1)[0][1]
    command = [sys.executable, "-c", PUBLISHER, str(PLUGINS), path, str(published)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.readline()
    (left,) = published.iterdir()
    assert left.name.startswith(substitute.PUBLISHING)
    (published / "a.tar").write_text("whole")
    assert collect.collect(root, published=str(published)) == []
    process.send_signal(signal.SIGKILL)
    process.communicate()
    planned = collect.plan(root, published=str(published))
    assert [(item["kind"], item["path"]) for item in planned] == [("leftover", str(left))]
    assert collect.collect(root, published=str(published)) == planned
    assert [one.name for one in published.iterdir()] == ["a.tar"]
    assert collect.plan(root, published="/nowhere") == []


def test_archives_of_what_is_not_kept(root, tmp_path):
    """They go where that is asked for, the signature first; others, and other files, stay."""
    published = tmp_path / "published"
    published.mkdir()
    loose = make(root, "loose")
    (kept, _path), = generations(root, 1)
    gone = "a" * 32 + "-gone-1.2"
    endings = (".manifest.json.asc", ".manifest.json", ".tar")
    for stem in (os.path.basename(kept), os.path.basename(loose), gone):
        for ending in endings:
            (published / (stem + ending)).write_text("x")
    (published / "notes.tar").write_text("x")
    assert [item["path"] for item in collect.plan(root, published=str(published))] == [loose]
    stems = sorted([gone, os.path.basename(loose)])
    expected = [str(published / (stem + ending)) for stem in stems for ending in endings]
    planned = collect.plan(root, published=str(published), archives=True)
    assert [item["path"] for item in planned] == [loose, *expected]
    assert {item["kind"] for item in planned[1:]} == {"archive"}
    # A publisher at work may not be done with them.
    with substitute.shared(str(published)):
        assert [item["path"] for item in collect.plan(root, published=str(published), archives=True)] == [loose]
        assert not collect.remove(root, "archive", expected[0])
    # What is in the store stays: it may have been built again in between.
    assert not collect.remove(root, "archive", str(published / (os.path.basename(loose) + ".tar")))
    assert collect.collect(root, published=str(published), archives=True) == planned
    assert sorted(one.name for one in published.iterdir()) == sorted(
        [*(os.path.basename(kept) + ending for ending in endings), "notes.tar"])


def test_what_a_build_needs_by_now_stays(root, tmp_path):
    """It began after the plan was made."""
    (tmp_path / "a").write_text("a")
    needed = source(tmp_path / "a")
    base = make(root, "base", sources=[needed])
    lower = make(root, "lower", inputs={"base": base})
    generations(root, 1)
    planned = collect.plan(root, sources=True)
    assert {item["path"] for item in planned} == {base, lower, os.path.join(root, "sources", needed["sha256"])}
    lock = build.Lock(os.path.join(root, "locks", "key"))
    lock.acquire()
    build.write_atomically(
        os.path.join(root, "build", "key.needs.json"), {"inputs": [lower], "sources": [needed["sha256"]]})
    assert [collect.remove(root, item["kind"], item["path"]) for item in planned] == [False] * 3
    lock.release()
    assert [collect.remove(root, item["kind"], item["path"]) for item in planned] == [True] * 3


def test_a_disk_without_room_for_a_lock(root):
    """Collecting is the way to make room."""
    os.makedirs(root)
    with small_disk(root, "size=8m,nr_inodes=200"):
        loose = make(root, "loose")
        generations(root, 1)
        os.makedirs(os.path.join(root, collect.TRASH))
        for name in os.listdir(os.path.join(root, "locks")):
            os.unlink(os.path.join(root, "locks", name))
        rejected = Path(root, "sources", "0" * 64 + ".rejected-1")
        rejected.touch()
        fill(root)
        with pytest.raises(StoreError, match="the disk of .* is full"):
            build.realise(root, recipe(name="more"), [], [])
        assert [item["path"] for item in collect.plan(root)] == [loose, str(rejected)]
        assert [item["path"] for item in collect.collect(root)] == [loose, str(rejected)]
        assert not address.is_committed(loose) and not rejected.exists()


def test_a_disk_without_room_for_the_way_out(root):
    """What comes after it goes; the next collection has room."""
    os.makedirs(root)
    with small_disk(root, "size=8m,nr_inodes=200"):
        loose = make(root, "loose")
        generations(root, 1)
        rejected = Path(root, "sources", "0" * 64 + ".rejected-1")
        rejected.touch()
        fill(root)
        assert [item["path"] for item in collect.collect(root)] == [str(rejected)]
        assert [item["path"] for item in collect.collect(root)] == [loose]


def damage(path):
    """Cut a frozen manifest in the middle."""
    os.chmod(path, 0o755)
    manifest = Path(path, address.MANIFEST)
    manifest.chmod(0o644)
    manifest.write_text(manifest.read_text()[:100])


def test_a_damaged_manifest(root):
    """What nothing refers to goes all the same; what is kept stops it, for it may refer to anything."""
    loose = make(root, "loose")
    (base, path), = generations(root, 1)
    damage(loose)
    assert [item["path"] for item in collect.collect(root)] == [loose]
    damage(path)
    with pytest.raises(StoreError, match="-hello-1: found no manifest that can be read .* remove that output"):
        collect.collect(root)
    assert address.is_committed(base) and address.is_committed(path)


def test_sources_go_on_request(root, tmp_path):
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
