"""Building and committing: whole or not at all, whatever happens."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from module_utils.store import address, build, fetch, tree, verify
from module_utils.store.errors import StoreError
from recipes import PLUGINS, committed, needs_namespaces, recipe, small_disk, source

pytestmark = needs_namespaces


def realise(root, made, **options):
    return build.realise(root, made, [], [], **options)


def left_over(root):
    return sorted(os.listdir(os.path.join(root, "build"))), sorted(os.listdir(os.path.join(root, "store")))


def test_an_output_is_built_once(root):
    made = recipe()
    assert realise(root, made) is True
    assert realise(root, made) is False
    path = Path(address.output_path(root, made))
    # The builder saw the path that the output has for good.
    assert (path / "bin" / "where").read_text().strip() == str(path)
    assert left_over(root) == ([], [path.name])


def test_an_output_is_frozen(root):
    made = recipe()
    realise(root, made)
    path = Path(address.output_path(root, made))
    for entry in [path, *path.rglob("*")]:
        if not entry.is_symlink():
            assert entry.stat().st_mode & 0o222 == 0
        assert int(entry.lstat().st_mtime) == tree.SOURCE_DATE_EPOCH


def test_the_manifest_says_what_is_there(root):
    made = recipe()
    realise(root, made)
    path = Path(address.output_path(root, made))
    manifest = json.loads((path / address.MANIFEST).read_text())
    files = {entry["path"]: entry for entry in manifest["files"]}
    assert set(files) == {"bin", "bin/where", "link"}
    assert files["bin/where"]["sha256"] == fetch.sha256_of(str(path / "bin" / "where"))
    assert files["bin/where"]["executable"] is True
    assert files["link"]["target"] == "bin/where"
    assert manifest["key"] == address.key(made)


def test_an_input_reaches_the_builder(root):
    lower = recipe(name="lower")
    realise(root, lower)
    path = address.output_path(root, lower)
    upper = recipe(inputs={"lower": path}, builder='cat "$lower/bin/where" > "$out/copy"\n')
    realise(root, upper)
    assert Path(address.output_path(root, upper), "copy").read_text().strip() == path


def test_an_input_that_is_not_there_is_named(root):
    with pytest.raises(StoreError, match="the input lower is /nowhere"):
        realise(root, recipe(inputs={"lower": "/nowhere/abc-lower-1"}))


def test_sources_reach_the_builder(root, tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("content")
    made = recipe(sources=[source(path)], builder='cp "$src/data.txt" "$out/"\n')
    realise(root, made)
    assert Path(address.output_path(root, made), "data.txt").read_text() == "content"


def test_the_environment_is_clean(root, monkeypatch):
    monkeypatch.setenv("SECRET", "leaked")
    made = recipe(builder='env | cut -d= -f1 | sort > "$out/names"; umask > "$out/umask"\n', environment={"MORE": "1"})
    mask = os.umask(0o077)
    try:
        realise(root, made)
    finally:
        os.umask(mask)
    path = Path(address.output_path(root, made))
    known = {"PATH", "HOME", "TMPDIR", "LC_ALL", "SOURCE_DATE_EPOCH", "PYTHONHASHSEED", "out", "src", "MORE"}
    known |= {"PWD", "OLDPWD", "SHLVL", "_", "KEPLER_JOBS"}
    assert set((path / "names").read_text().split()) <= known
    assert (path / "umask").read_text().strip() == "0022"


@pytest.mark.parametrize(("jobs", "found"), [(3, "3"), (0, str(len(os.sched_getaffinity(0))))])
def test_jobs_are_the_builders_alone(root, jobs, found):
    """A host with less memory takes fewer, and its output is the same one."""
    made = recipe(builder='echo "$KEPLER_JOBS" > "$out/jobs"\n')
    assert address.key(dict(made, jobs=jobs)) == address.key(made)
    realise(root, dict(made, jobs=jobs))
    path = Path(address.output_path(root, made))
    assert (path / "jobs").read_text().strip() == found
    assert "jobs" not in address.manifest(str(path))["recipe"]


def test_a_builder_has_no_network(root, server, tmp_path):
    served = server(tmp_path)
    port = served.url.rpartition(":")[2]
    with pytest.raises(StoreError, match="unreachable|refused|ended with status"):
        realise(root, recipe(builder="exec 3<>/dev/tcp/127.0.0.1/%s\n" % port))
    assert served.requests == []


def test_a_failed_builder_leaves_a_message_and_nothing_else(root):
    made = recipe(builder='echo "the reason" >&2; touch "$out/half"; exit 7\n')
    with pytest.raises(StoreError) as caught:
        realise(root, made)
    for part in ("hello 1.0", "status 7", "the reason", ".log"):
        assert part in str(caught.value)
    assert left_over(root) == ([], [])
    assert not committed(root, made)


def test_a_failed_build_can_be_kept(root):
    with pytest.raises(StoreError):
        realise(root, recipe(builder="touch here; exit 1\n"), keep_failed=True)
    assert len(left_over(root)[0]) == 1


def test_a_full_disk_is_said_and_given_back(root, tmp_path):
    os.makedirs(root)
    with small_disk(root, "size=4m"):
        with pytest.raises(StoreError, match=r"GB are free there: make room"):
            realise(root, recipe(builder='head -c 8m /dev/zero > "$out/big"\n'))
        assert left_over(root) == ([], [])
        big = tmp_path / "big.bin"
        big.write_bytes(b"0" * (8 << 20))
        with pytest.raises(StoreError, match="disk of .* is full"):
            realise(root, recipe(sources=[source(big)]))
        assert not committed(root, recipe(sources=[source(big)]))


def test_a_failure_is_told_once_its_room_is_given_back(root):
    """Who is told may need some of it; the key is still held."""
    seen = []

    def failed(message):
        lock = build.Paths(root, recipe()).lock
        seen.append((message.split(":")[0], os.listdir(os.path.join(root, "build")), lock.acquire(wait=False)))

    with pytest.raises(StoreError):
        realise(root, recipe(builder='touch "$out/half"; exit 1\n'), failed=failed)
    assert seen[0][:2] == ("hello 1.0", [])


def test_who_dies_leaves_nothing_beside_the_build(root, tmp_path):
    """Not what its build needs either."""
    process = worker(root, tmp_path, recipe(name="dead"), "build")
    process.communicate()
    key = address.key(recipe(name="dead"))
    assert key + ".needs.json" in left_over(root)[0]
    Path(root, "build", key + ".state.json.new").write_text("{")
    realise(root, recipe())
    assert left_over(root)[0] == []


COUNTED = 'echo built >> "%s"; mkdir "$out/bin"; touch "$out/bin/x"'


def half_removed(path):
    (path / "lib").mkdir(parents=True)
    (path / "lib" / "left").write_text("left")
    (path / "lib").chmod(0o555)


def one_file(path):
    path.write_text("x")


def pipe(path):
    os.mkfifo(str(path))


def without_its_manifest(path):
    """Whole but for that."""
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "x").touch()
    path.chmod(0o555)


@pytest.mark.parametrize("stands", [half_removed, one_file, pipe, without_its_manifest])
def test_what_stands_at_the_final_path_is_moved_away(root, tmp_path, stands):
    """Before the build, which is then done once."""
    made = recipe(builder=COUNTED % (tmp_path / "count"))
    path = Path(address.output_path(root, made))
    path.parent.mkdir(parents=True)
    stands(path)
    assert [realise(root, made) for _ in range(2)] == [True, False]
    assert (tmp_path / "count").read_text() == "built\n"
    assert verify.verify(str(path)) == []
    assert os.listdir(os.path.join(root, "trash")) == []


@pytest.mark.parametrize("target", ["/nowhere", "empty", "full"])
def test_link_at_the_final_path_is_named(root, tmp_path, target):
    """It may lead to a disk that is not mounted: nothing is built, and it stays."""
    made = recipe(builder=COUNTED % (tmp_path / "count"))
    path = Path(address.output_path(root, made))
    path.parent.mkdir(parents=True)
    if target != "/nowhere":
        target = tmp_path / target
        target.mkdir()
        if target.name == "full":
            (target / "x").touch()
    path.symlink_to(target)
    with pytest.raises(StoreError, match="%s: found a link to %s, where no output is" % (path, target)):
        realise(root, made)
    assert path.is_symlink()
    assert not (tmp_path / "count").exists()
    assert left_over(root)[0] == []


def test_what_a_process_uses_at_the_final_path_is_named(root, tmp_path):
    """A server that still runs from an output whose manifest is lost."""
    made = recipe(builder=COUNTED % (tmp_path / "count"))
    realise(root, made)
    path = Path(address.output_path(root, made))
    (path / address.MANIFEST).unlink()
    with (path / "bin" / "x").open(), pytest.raises(StoreError, match="%s: found .* a running process uses" % path):
        realise(root, made)
    assert (path / "bin" / "x").exists()
    assert realise(root, made) is True
    assert (tmp_path / "count").read_text() == "built\n" * 2


def test_output_that_was_moved_is_present(root, tmp_path):
    made = recipe()
    realise(root, made)
    path = address.output_path(root, made)
    os.rename(path, str(tmp_path / "moved"))
    os.symlink(str(tmp_path / "moved"), path)
    assert realise(root, made) is False
    assert verify.verify(path) == []
    build.remove_tree(str(tmp_path / "moved"))


@pytest.mark.parametrize(("builder", "found"), [
    ('mkfifo "$out/x"', "x: found a pipe"), ('mkdir "$out/d"; mknod "$out/d/null" c 1 3', "d/null: found a device"),
    ("/usr/bin/env python3 -c 'import os, socket; os.chdir(os.environ[\"out\"]); socket.socket(1).bind(\"s\")'",
     "s: found a socket"),
    ('touch "$out/.kepler-manifest.json"', "found .kepler-manifest.json"),
    ('ln -s /etc/hostname "$out/.kepler-manifest.json"', "found .kepler-manifest.json"),
])
def test_what_no_output_can_hold_is_refused(root, builder, found):
    with pytest.raises(StoreError, match="hello 1.0: in what the builder made: %s.*Correct the recipe" % found):
        realise(root, recipe(builder=builder))
    assert left_over(root) == ([], [])


def test_pipe_in_an_output_is_found(root):
    """And nobody waits for it."""
    realise(root, recipe())
    path = address.output_path(root, recipe())
    os.mkfifo(path + "/bin/pipe")
    found = {one["path"]: one["problem"] for one in verify.verify(path)}
    assert found["bin/pipe"] == "found a pipe; expected a file, a directory or a link."


WORKER = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from module_utils.store import build, fetch, tree
build.LOGS = sys.argv[2]
point, root, recipe = sys.argv[3], sys.argv[4], json.loads(sys.argv[5])
def die(*arguments, **options):
    os.kill(os.getpid(), 9)
if point == "fetch": build.fetch_sources = die
elif point == "build": build.run_builder = die
elif point == "freeze": tree.freeze = die
elif point == "rename": os.sync = die
elif point == "after":
    rename = os.rename
    os.rename = lambda old, new: (rename(old, new), new.endswith("-1.0") and die())
build.realise(root, recipe, [], [])
print("built" if point == "none" else "survived")
"""


def worker(root, tmp_path, made, point="none"):
    """Start a process that makes `made` and dies by SIGKILL at a point."""
    command = [sys.executable, "-c", WORKER, str(PLUGINS), str(tmp_path / "log"), point, root]
    return subprocess.Popen([*command, json.dumps(made)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("point", ["fetch", "build", "freeze", "rename", "after"])
def test_a_killed_worker_leaves_nothing_half_made(root, tmp_path, point):
    made = recipe()
    process = worker(root, tmp_path, made, point)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    # After the rename the output is whole, though its maker died.
    assert committed(root, made) is (point == "after")
    assert realise(root, made) is (point != "after")
    assert left_over(root) == ([], [os.path.basename(address.output_path(root, made))])


def test_a_builder_that_outlives_its_maker_keeps_the_key(root, tmp_path):
    """Two builders of one key never run side by side."""
    log = tmp_path / "order"
    made = recipe(builder='echo start >> "%s"; sleep 2; echo end >> "%s"; touch "$out/file"\n' % (log, log))
    process = worker(root, tmp_path, made)
    while not log.exists():
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert realise(root, made) is True
    assert log.read_text().split() == ["start", "end", "start", "end"]


def test_what_a_dead_build_left_is_cleaned_by_another(root, tmp_path):
    process = worker(root, tmp_path, recipe(name="dead"), "freeze")
    process.communicate()
    assert left_over(root)[0] != []
    realise(root, recipe())
    assert left_over(root) == ([], [os.path.basename(address.output_path(root, recipe()))])


def test_concurrent_requests_make_one_build(root, tmp_path):
    made = recipe(builder='echo build >> "%s"; sleep 1; touch "$out/file"\n' % (tmp_path / "count"))
    workers = [worker(root, tmp_path, made) for _ in range(8)]
    printed = [process.communicate() for process in workers]
    assert [process.returncode for process in workers] == [0] * 8, printed
    assert (tmp_path / "count").read_text() == "build\n"
    assert committed(root, made)


def test_a_live_build_is_not_cleaned_away(root, tmp_path):
    waits = 'while [ ! -e "%s" ]; do sleep 0.1; done; touch "$out/file"\n' % (tmp_path / "go")
    slow = recipe(name="slow", builder=waits)
    process = worker(root, tmp_path, slow)
    while not os.path.exists(build.Paths(root, slow).log):
        time.sleep(0.05)
    realise(root, recipe())
    (tmp_path / "go").touch()
    assert process.communicate()[0].strip() == b"built"
    assert committed(root, slow)


@pytest.mark.skipif(not os.path.exists("/usr/bin/python3"), reason="needs a Python for the builder")
def test_builds_do_not_differ_by_the_seed_of_hashes(root):
    """As sets in compiled Python would, whose order is that of their hashes."""
    made = recipe(builder="/usr/bin/python3 -c 'print(hash(\"x\"))' > \"$out/hash\"\n")
    realise(root, made)
    assert verify.rebuild(root, address.output_path(root, made)) == []


def test_two_stores_hold_the_same_bytes(root, tmp_path):
    """But for what the builder writes of its own path."""
    made = recipe(builder='mkdir "$out/d"; echo fixed > "$out/d/file"; date > /dev/null\n')
    other = str(tmp_path / "other")
    try:
        realise(root, made)
        realise(other, made)
        assert tree.describe_all(address.output_path(root, made) + "/d") == tree.describe_all(
            address.output_path(other, made) + "/d"
        )
    finally:
        build.remove_tree(other)
