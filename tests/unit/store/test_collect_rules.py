"""What a collection must leave, whatever the paths, the clock and the order of events; and what it must not touch."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from faults import walk
from module_utils.store import address, build, collect, disk, generation, processes, verify
from module_utils.store.errors import StoreError
from module_utils.store.references import References
from recipes import PLUGINS, needs_namespaces, recipe, source
from test_faults import assert_whole

pytestmark = needs_namespaces


@pytest.fixture
def looks():
    """For tests that need what the processes of this machine really use."""


@pytest.fixture(autouse=True)
def nobody_uses_anything(request, monkeypatch):
    """A look at all processes costs more than the rest of a test."""
    if "looks" not in request.fixturenames:
        monkeypatch.setattr(collect, "in_use", lambda _root: set())


PROGRAMS = """\
mkdir "$out/bin"
cp /bin/sleep "$out/bin/sleep"
printf '#!/bin/sh\\necho ready; read line; true\\n' > "$out/bin/run"
chmod +x "$out/bin/run"
echo 'import time; print("ready", flush=True); time.sleep(60)' > "$out/bin/script.py"
ln -s "%s" "$out/bin/python"
""" % sys.executable


def make(root, name, **differs):
    """An output in the store: its path."""
    made = recipe(name=name, **differs)
    build.realise(root, made, [], [])
    return address.output_path(root, made)


def activate(root, *paths, **differs):
    """Make a generation of the outputs; lock_hash tells it from the one before."""
    wanted = {"outputs": {"hello%d" % n: path for n, path in enumerate(paths)}, "kernel": "k", "driver": "d"}
    return generation.ensure(root, dict(wanted, lock_hash=str(time.monotonic()), **differs))


def leave_behind(root, *paths):
    """Let later generations leave outputs behind that one of them held: nothing but their use keeps them."""
    activate(root, *paths)
    other = make(root, "other")
    for _ in range(4):
        activate(root, other)


def names(items):
    return {os.path.basename(item["path"]) for item in items}


def executes(path):
    return subprocess.Popen([path + "/bin/sleep", "60"])


def runs_a_script(path):
    """A shell holds the script that it reads open."""
    process = subprocess.Popen([path + "/bin/run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


# The path is in their environment: a command line that names it would count by itself.
HOLDS = "import os, time; stream = open(os.environ['P'] + '/bin/run'); print('ready', flush=True); time.sleep(60)"
HOLDS_DIRECTORY = "import os, time; os.open(os.environ['P'], os.O_RDONLY); print('ready', flush=True); time.sleep(60)"
STANDS = "import os, time; os.chdir(os.environ['P'] + '/bin'); print('ready', flush=True); time.sleep(60)"
MAPS = (
    "import mmap, os, time; stream = open(os.environ['P'] + '/bin/sleep', 'rb'); "
    "held = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ); stream.close(); print('ready', flush=True); "
    "time.sleep(60)"
)


def python(program):
    def start(path):
        environment = dict(os.environ, P=path)
        process = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        return process

    return start


def runs_python(path):
    """Read once, and closed: the command line names it."""
    process = subprocess.Popen([sys.executable, path + "/bin/script.py"], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


def runs_environment(path):
    """By the name of the environment's interpreter, which is a link out of it."""
    program = "print('ready', flush=True); import time; time.sleep(60)"
    process = subprocess.Popen([path + "/bin/python", "-c", program], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


MOUNTS = 'mount --bind "$P" /mnt && exec /mnt/bin/run'


def mounts(path):
    """As a container does, at a path that does not name the output."""
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", MOUNTS], env=dict(os.environ, P=path),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


WAYS = {
    "executes": executes, "script": runs_a_script, "holds": python(HOLDS), "directory": python(HOLDS_DIRECTORY),
    "stands": python(STANDS), "maps": python(MAPS), "python": runs_python, "environment": runs_environment,
    "mounts": mounts,
}


def assert_in_use(root, *paths):
    """A process that was just started needs a moment to execute its program."""
    until = time.monotonic() + 10
    while True:
        unused = set(paths) - collect.in_use(root)
        if not unused:
            return
        assert time.monotonic() < until, "not in use: %s" % unused
        time.sleep(0.02)


def assert_kept_while_used(root, paths):
    """paths: of outputs by the way in which each is used."""
    started = []
    try:
        for way, path in paths.items():
            started.append(WAYS[way](path))
        assert_in_use(root, *paths.values())
        collect.collect(root)
        assert [way for way, path in paths.items() if not address.is_committed(path) or verify.verify(path)] == []
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert {os.path.basename(path) for path in paths.values()} <= names(collect.collect(root))


def test_output_stays_while_used(root, looks):
    paths = {way: make(root, way, builder=PROGRAMS) for way in WAYS}
    leave_behind(root, *paths.values())
    assert_kept_while_used(root, paths)


def test_output_that_is_used_by_now_stays(root, looks):
    path = make(root, "runs", builder=PROGRAMS)
    leave_behind(root, path)
    with open(path + "/bin/run"):
        assert not collect.remove(root, "output", path)
    assert collect.remove(root, "output", path)


def link_root(root, tmp_path):
    (tmp_path / "data").mkdir()
    os.symlink(str(tmp_path / "data"), root)
    return root


def link_above_root(root, tmp_path):
    (tmp_path / "disk" / "kepler").mkdir(parents=True)
    os.symlink(str(tmp_path / "disk"), str(tmp_path / "opt"))
    return str(tmp_path / "opt" / "kepler")


def link_store(root, tmp_path):
    """The whole of it, but for the root itself: store and build have to be on one file system."""
    (tmp_path / "data").mkdir()
    os.makedirs(root)
    for name in ("store", "build", "trash"):
        (tmp_path / "data" / name).mkdir()
    for name in ("store", "build"):
        os.symlink(str(tmp_path / "data" / name), os.path.join(root, name))
    return root


@pytest.mark.parametrize(("lay", "way"), [
    (link_root, "executes"), (link_above_root, "script"), (link_store, "stands"),
])
def test_output_behind_a_link_stays_while_used(root, tmp_path, looks, lay, way):
    root = lay(root, tmp_path)
    path = make(root, "runs", builder=PROGRAMS)
    leave_behind(root, path)
    assert_kept_while_used(root, {way: path})
    build.remove_tree(os.path.realpath(root))


def test_output_behind_a_mount_stays_while_used(root, tmp_path, looks):
    """The process was started by the path of the other mount."""
    data = tmp_path / "data"
    data.mkdir()
    os.makedirs(root)
    subprocess.check_call(["mount", "--bind", str(data), root])
    try:
        path = make(root, "runs", builder=PROGRAMS)
        leave_behind(root, path)
        process = executes(str(data / "store" / os.path.basename(path)))
        try:
            assert_in_use(root, path)
            collect.collect(root)
            assert address.is_committed(path)
        finally:
            process.kill()
            process.wait()
        assert os.path.basename(path) in names(collect.collect(root))
        build.remove_tree(os.path.join(root, "store"))
    finally:
        subprocess.check_call(["umount", root])


def test_generations_count_under_another_name_of_the_root(root, tmp_path):
    """Their outputs were named through a link; the collection goes by the place itself, or the other way round."""
    link_root(root, tmp_path)
    low = make(root, "low")
    path = make(root, "high", inputs={"low": low})
    activate(root, path)
    loose = make(root, "loose")
    activate(root, path)
    data = str(tmp_path / "data")
    assert names(collect.plan(data)) == names(collect.plan(root)) == {os.path.basename(loose)}
    assert names(collect.collect(data + "/")) == {os.path.basename(loose)}
    assert address.is_committed(low) and address.is_committed(path)
    assert verify.find(data, path) == [os.path.join(data, "store", os.path.basename(path))]


def chain(root, number):
    """Three outputs, each made from the one before, and one that is made from the first and the last."""
    low = make(root, "low%d" % number)
    middle = make(root, "middle%d" % number, inputs={"low": low})
    high = make(root, "high%d" % number, inputs={"middle": middle})
    wide = make(root, "wide%d" % number, inputs={"low": low, "high": high})
    return [low, middle, high, wide]


def test_outputs_go_before_what_they_came_from(root):
    """Whatever their keys are."""
    chains = [chain(root, number) for number in range(4)]
    activate(root, make(root, "kept"))
    planned = [item["path"] for item in collect.plan(root)]
    assert len(planned) == 16
    for paths in chains:
        assert [path for path in planned if path in paths] == paths[::-1]
    assert [item["path"] for item in collect.collect(root)] == planned


@pytest.mark.parametrize("damaged", [0, 2])
def test_damaged_output_goes_after_who_refers_to_it(root, damaged):
    paths = chain(root, 0)
    activate(root, make(root, "kept"))
    manifest = Path(paths[damaged], address.MANIFEST)
    manifest.chmod(0o644)
    manifest.write_text("{")
    went = [item["path"] for item in collect.collect(root)]
    assert sorted(went) == sorted(paths)
    assert all(went.index(high) < went.index(paths[damaged]) for high in paths[damaged + 1:])


def test_output_stays_while_another_refers_to_it(root):
    """One that somebody builds again right now keeps what it came from."""
    paths = chain(root, 0)
    activate(root, make(root, "kept"))
    planned = collect.plan(root)
    with disk.locked(disk.lock_of(root, address.key_of_path(paths[-1]))):
        assert not any(collect.remove(root, item["kind"], item["path"]) for item in planned)
    assert all(collect.remove(root, item["kind"], item["path"]) for item in planned)


def test_kill_at_every_step_leaves_no_output_without_its_inputs(root, tmp_path):
    """Nor does it cost a build: what is kept is there, and the next run ends what was begun."""
    saved = str(tmp_path / "saved")
    (tmp_path / "a").write_text("a")
    make(root, "high0", inputs={"low": make(root, "low0")})
    half = make(root, "half")
    kept = [make(root, "low1")]
    kept.append(make(root, "high1", inputs={"low": kept[0]}))
    activate(root, kept[-1])
    activate(root, kept[-1])
    activate(root, kept[-1])
    os.unlink(half + "/" + address.MANIFEST)
    os.makedirs(os.path.join(root, "trash"))
    Path(root, "trash", "file").write_text("left")
    os.symlink(str(tmp_path), os.path.join(root, "trash", "link"))
    Path(root, "sources", "0" * 64 + ".rejected-1").write_text("x")
    shutil.copytree(root, saved, symlinks=True)
    times = {name: os.stat(os.path.join(root, "locks", name)).st_mtime_ns for name in os.listdir(root + "/locks")}

    def prepare():
        build.remove_tree(root)
        shutil.copytree(saved, root, symlinks=True)
        assert {name: os.stat(os.path.join(root, "locks", name)).st_mtime_ns for name in times} == times

    def check(_state):
        assert_whole(root, half=[half])
        assert all(address.is_committed(path) for path in kept)
        collect.collect(root, keep=1, sources=True)
        assert collect.outputs(root) == sorted(kept)
        assert os.listdir(os.path.join(root, "trash")) == os.listdir(os.path.join(root, "sources")) == []
        assert sorted(os.listdir(os.path.join(root, "store"))) == sorted(map(os.path.basename, kept))
        assert generation.numbers(root) == [2, 3]
        assert (tmp_path / "a").read_text() == "a"
        # A build after it does not stumble over what was left.
        make(root, "again")
        assert_whole(root)

    try:
        assert walk(prepare, lambda _state: collect.collect(root, keep=1, sources=True), check) > 25
    finally:
        build.remove_tree(saved)


def test_build_that_starts_during_a_collection(root, monkeypatch):
    """The collection has decided: the build says what it misses. Begun before the decision, it keeps its input."""
    low = make(root, "low")
    activate(root, make(root, "kept"))
    made = recipe(name="high", inputs={"low": low}, builder='sleep 1; test -e "$low/bin" && mkdir "$out/bin"')
    needs, calls, ended = collect.needs, [], []

    def job():
        try:
            ended.append(build.realise(root, made, [], []))
        except StoreError as error:
            ended.append(str(error))

    started = threading.Thread(target=job)

    def slow(where):
        found = needs(where)
        calls.append(where)
        if len(calls) == 2:
            started.start()
            time.sleep(0.5)
        return found

    monkeypatch.setattr(collect, "needs", slow)
    collect.collect(root)
    started.join()
    assert "the input low is %s, which is not in the store" % low in ended[0]
    assert not address.is_committed(address.output_path(root, made))
    # The other way round: the build is at work when the collection decides.
    low = make(root, "low")
    activate(root, make(root, "kept"))
    ended.clear()
    started = threading.Thread(target=job)
    started.start()
    while not os.path.exists(build.Paths(root, made).log):
        time.sleep(0.02)
    collect.collect(root)
    started.join()
    assert ended == [True]
    assert address.is_committed(low)


def test_source_that_a_build_wants_by_now_stays(root, tmp_path, monkeypatch):
    """Also where that build has ended in between: its output names the source."""
    (tmp_path / "a").write_text("a")
    wanted = source(tmp_path / "a")
    loose = make(root, "loose", sources=[wanted])
    activate(root, make(root, "kept"))
    planned = collect.plan(root, sources=True)
    assert [item["kind"] for item in planned] == ["output", "source"]
    assert collect.remove(root, "output", loose)
    make(root, "by-now", sources=[wanted])
    assert not collect.remove(root, "source", planned[1]["path"])


def test_activation_waits_for_a_collection(root):
    """What it names was decided about while nobody could activate."""
    path = make(root, "loose")
    activate(root, make(root, "kept"))
    with disk.locked(disk.lock_of(root, "generations")):
        refused = []

        def waiting():
            with pytest.raises(StoreError, match="is not in the store") as caught:
                activate(root, path)
            refused.append(caught)

        waits = threading.Thread(target=waiting)
        waits.start()
        time.sleep(0.2)
        assert generation.numbers(root) == [1]
        assert collect.remove(root, "output", path)
    waits.join()
    assert refused
    assert generation.numbers(root) == [1]


def cut(path):
    path.chmod(0o644)
    path.write_text(path.read_text()[:50])


def unlink(path):
    path.unlink()


def dangle(path):
    path.unlink()
    path.symlink_to("/nowhere/manifest")


def pipe(path):
    path.unlink()
    os.mkfifo(str(path))


def empty(path):
    path.chmod(0o644)
    path.write_text("")


@pytest.mark.parametrize(("which", "damage"), [
    ("named", cut), ("named", unlink), ("named", dangle), ("named", pipe), ("named", empty), ("referred to", unlink),
    ("in use", unlink),
])
def test_kept_output_without_a_manifest_ends_the_collection(root, monkeypatch, damage, which):
    """Nobody knows what it refers to; nothing goes."""
    low = make(root, "low")
    middle = make(root, "middle", inputs={"low": low})
    high = make(root, "high", inputs={"middle": middle}, builder=PROGRAMS)
    process = None
    if which == "in use":
        monkeypatch.setattr(collect, "in_use", processes.in_use)
        leave_behind(root, high)
        process = runs_a_script(high)
    else:
        activate(root, high)
        make(root, "loose")
        activate(root, high)
    before = collect.outputs(root)
    broken = Path(middle if which == "referred to" else high)
    damage(broken / address.MANIFEST)
    try:
        for run in (collect.plan, collect.collect):
            with pytest.raises(StoreError, match="%s: found no manifest that can be read" % broken):
                run(root)
    finally:
        if process:
            process.kill()
            process.communicate()
    assert {path for path in before if os.path.isdir(path + "/bin")} == set(before)


@pytest.mark.parametrize("which", ["named", "referred to"])
def test_kept_output_that_is_gone_ends_the_collection(root, which):
    low = make(root, "low")
    high = make(root, "high", inputs={"low": low})
    activate(root, high)
    build.remove_tree(high if which == "named" else low)
    with pytest.raises(StoreError, match="%s: found no" % (high if which == "named" else low)):
        collect.collect(root)
    assert os.path.exists(low if which == "named" else high)
    # Activating it again is refused as well; making what is missing helps.
    with pytest.raises(StoreError, match="not in the store|found nothing there"):
        activate(root, high)
    make(root, "low")
    make(root, "high", inputs={"low": low})
    assert collect.collect(root) == []


def test_active_generation_that_nobody_finds_ends_the_collection(root):
    make(root, "loose")
    activate(root, make(root, "kept"))
    current = Path(root, "current")
    for target in ("generations/9", "generations/x", "/elsewhere", None):
        current.unlink()
        if target:
            current.symlink_to(target)
        else:
            current.write_text("1")
        with pytest.raises(StoreError, match="%s: found no link to a generation that is there" % current):
            collect.collect(root)
    assert len(collect.outputs(root)) == 2


def test_needs_that_cannot_be_read_end_the_collection(root):
    make(root, "loose")
    activate(root, make(root, "kept"))
    path = Path(root, "build", "a.needs.json")
    with disk.locked(disk.lock_of(root, "a")):
        for content in ("{", "[]", '{"inputs": null, "sources": []}', '{"inputs": [1], "sources": []}'):
            path.write_text(content)
            with pytest.raises(StoreError, match="a.needs.json: found nothing that can"):
                collect.collect(root)
    assert len(collect.outputs(root)) == 2
    assert len(collect.collect(root)) == 1


def modes(top):
    return {str(path): path.lstat().st_mode for path in Path(top).rglob("*")}


@pytest.fixture
def elsewhere(tmp_path):
    """A frozen tree that is not the store's: (its path, function that says whether it is as it was)."""
    top = tmp_path / "disk2"
    (top / "a" / "bin").mkdir(parents=True)
    (top / "a" / "bin" / "x").write_text("x")
    (top / "a" / "bin" / "x").chmod(0o444)
    (top / "a" / "bin").chmod(0o555)
    before = modes(top)
    yield top / "a", lambda: modes(top) == before
    build.remove_tree(str(top))


def test_moved_output_stays_while_used_then_loses_its_link(root, tmp_path, looks):
    path = make(root, "runs", builder=PROGRAMS)
    leave_behind(root, path)
    (tmp_path / "disk2").mkdir()
    os.rename(path, str(tmp_path / "disk2" / "moved"))
    os.symlink(str(tmp_path / "disk2" / "moved"), path)
    before = modes(tmp_path / "disk2")
    process = WAYS["script"](str(tmp_path / "disk2" / "moved"))
    try:
        assert path in collect.in_use(root)
        collect.collect(root)
        assert os.path.islink(path)
    finally:
        process.kill()
        process.communicate()
    for times in range(2):
        assert (os.path.basename(path) in names(collect.collect(root))) is (times == 0)
    assert not os.path.lexists(path)
    assert modes(tmp_path / "disk2") == before
    build.remove_tree(str(tmp_path / "disk2"))


def plant_in_trash(root, target):
    os.makedirs(os.path.join(root, "trash"), exist_ok=True)
    os.symlink(str(target), os.path.join(root, "trash", "left"))


def plant_as_trash(root, target):
    os.symlink(str(target), os.path.join(root, "trash"))


def plant_as_generation(root, target):
    os.symlink(str(target), os.path.join(root, "generations", "1"))


def plant_as_rejected(root, target):
    os.symlink(str(target), os.path.join(root, "sources", "0" * 64 + ".rejected-1"))


def plant_as_download(root, target):
    os.symlink(str(target), os.path.join(root, "sources", ".%s.part" % ("0" * 64)))


def plant_as_output(root, target):
    os.symlink(str(target), os.path.join(root, "store", "a" * 32 + "-a-1"))


def plant_as_build(root, target):
    os.symlink(str(target), os.path.join(root, "build", "a" * 32))


def plant_as_own_build(root, target):
    os.symlink(str(target), os.path.join(root, "build", address.key(recipe(name="next"))))


def plant_as_state(root, target):
    os.symlink(str(target / "bin" / "x"), os.path.join(root, "build", "a" * 32 + ".state.json"))


def plant_as_draft(root, target):
    os.symlink(str(target / "bin" / "x"), os.path.join(root, "current.new"))


def plant_as_draft_of_needs(root, target):
    draft = os.path.join(root, "build", address.key(recipe(name="next")) + ".needs.json.new")
    os.symlink(str(target / "bin" / "x"), draft)


PLANTED = {
    "as trash": [plant_as_trash],
    "elsewhere": [
        plant_in_trash, plant_as_rejected, plant_as_download, plant_as_output, plant_as_build, plant_as_own_build,
        plant_as_state, plant_as_draft, plant_as_draft_of_needs,
    ],
}


@pytest.mark.parametrize("where", PLANTED)
def test_nothing_behind_a_link_changes(root, elsewhere, where):
    """The link goes, at the latest with the next build; collections and builds do their work."""
    target, is_untouched = elsewhere
    loose, kept = make(root, "loose"), make(root, "kept")
    activate(root, kept)
    for plant in PLANTED[where]:
        plant(root, target)
    assert loose in [item["path"] for item in collect.collect(root)]
    activate(root, make(root, "next"))
    collect.collect(root)
    assert is_untouched()
    links = [str(path) for path in Path(root).rglob("*") if path.is_symlink() and str(target) in os.readlink(str(path))]
    assert links == []


def test_generation_that_is_a_link_goes_as_one(root, elsewhere):
    target, is_untouched = elsewhere
    kept = make(root, "kept")
    for _ in range(5):
        activate(root, kept)
    build.remove_tree(os.path.join(root, "generations", "1"))
    plant_as_generation(root, target)
    assert "1" in names(collect.collect(root))
    assert is_untouched()
    assert not os.path.lexists(os.path.join(root, "generations", "1"))


@pytest.mark.parametrize("kind", ["file", "pipe", "socket", "directory"])
def test_leftovers_of_every_kind_go(root, kind):
    activate(root, make(root, "kept"))
    os.makedirs(os.path.join(root, "trash"))
    places = [
        os.path.join(root, "trash", "left"), os.path.join(root, "sources", ".%s.part" % ("0" * 64)),
        os.path.join(root, "sources", "1" * 64 + ".rejected-1"), os.path.join(root, "store", "a" * 32 + "-a-1"),
        os.path.join(root, "build", "b" * 32),
    ]
    for place in places:
        if kind == "file":
            Path(place).write_text("x")
        elif kind == "pipe":
            os.mkfifo(place)
        elif kind == "socket":
            # Its own path may be too long.
            here = os.getcwd()
            os.chdir(os.path.dirname(place))
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(os.path.basename(place))
            os.chdir(here)
        else:
            os.makedirs(place + "/inner")
            os.chmod(place, 0o555)
    collect.collect(root)
    make(root, "next")
    assert [place for place in places if os.path.lexists(place)] == []


def test_mount_in_an_output_is_named_and_not_emptied(root, elsewhere):
    target, is_untouched = elsewhere
    loose = make(root, "loose")
    activate(root, make(root, "kept"))
    subprocess.check_call(["mount", "--bind", str(target), loose + "/bin"])
    try:
        with pytest.raises(StoreError, match="found a mount at .*/bin; expected none"):
            collect.collect(root)
        assert is_untouched()
        assert address.is_committed(loose)
    finally:
        subprocess.check_call(["umount", loose + "/bin"])
    assert names(collect.collect(root)) == {os.path.basename(loose)}


STRANGERS = {
    "store": ["lost+found/x", "backup/.kepler-manifest.json", "notes.txt", "README", ".snapshot/x"],
    "build": ["lost+found/x", "notes.txt", "mine/x", "KEY-but-longer/x", ".snapshot/x"],
    "sources": ["list.rejected-by-me", "notes.txt", ".hidden.part"],
}


def test_what_others_put_there_stays(root):
    """Builds and collections know their own by its name."""
    build.Paths(root, recipe()).make()
    placed = [os.path.join(root, top, name) for top, inner in STRANGERS.items() for name in inner]
    for path in placed:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(path).write_text("{}")
    os.makedirs(os.path.join(root, "store", "empty"))
    loose = make(root, "loose")
    copy = loose + ".bak"
    shutil.copytree(loose, copy)
    activate(root, make(root, "kept"))
    assert [item["path"] for item in collect.collect(root, sources=True)] == [loose]
    make(root, "next")
    assert [path for path in [*placed, copy, os.path.join(root, "store", "empty")] if not os.path.lexists(path)] == []
    assert any("is of the output" in one["problem"] for one in verify.verify(copy))
    assert [name for name in os.listdir(os.path.join(root, "locks")) if not address.OUTPUT.match(name + "-x")] == [
        name for name in os.listdir(os.path.join(root, "locks")) if name in ("generations", "removal")]


def hours(path, many):
    then = time.time() + 3600 * many
    os.utime(path, (then, then))


@pytest.mark.parametrize("ahead", [-8760, 8760])
def test_clock_that_was_wrong(root, ahead):
    """What was made since the last generation stays, whenever that seems to have been."""
    activate(root, make(root, "first"))
    for path in (root + "/locks/generations", root + "/generations/1", root + "/generations/1/generation.json"):
        hours(path, ahead)
    path = make(root, "new")
    hours(path, ahead)
    assert collect.collect(root) == []
    activate(root, path)
    for _ in range(4):
        activate(root, path)
    assert names(collect.collect(root)) >= {os.path.basename(address.output_path(root, recipe(name="first")))}
    assert address.is_committed(path)


def test_clock_that_stands_still_or_jumps(root, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    activate(root, make(root, "first"))
    path = make(root, "second")
    monkeypatch.setattr(time, "time", lambda: 4e9)
    activate(root, make(root, "third"))
    assert os.path.basename(path) in names(collect.plan(root))
    monkeypatch.setattr(time, "time", lambda: 86400.0)
    assert build.realise(root, recipe(name="second"), [], []) is False
    assert collect.collect(root) == []


def test_times_of_an_older_version_count_for_nothing(root):
    """It left times of the clock on the locks."""
    path = make(root, "old")
    activate(root, make(root, "first"))
    hours(disk.lock_of(root, address.key_of_path(path)), 1)
    assert names(collect.collect(root)) == {os.path.basename(path)}


def test_output_found_by_a_run_stays_until_next_generation(root):
    """A play goes back to earlier variables; so does one of which only a part is made anew."""
    low = make(root, "low")
    old = make(root, "old", inputs={"low": low})
    leave_behind(root, old)
    assert old in [item["path"] for item in collect.plan(root)]
    assert build.realise(root, recipe(name="old", inputs={"low": low}), [], []) is False
    assert {old, low} & {item["path"] for item in collect.collect(root)} == set()
    # Going back and forth is no new generation.
    generation.switch(root, "previous", "k", "d")
    assert {old, low} & {item["path"] for item in collect.collect(root)} == set()
    activate(root, make(root, "other"))
    assert [item["path"] for item in collect.collect(root) if item["path"] in (old, low)] == [old, low]


def test_answer_leaves_its_note_while_somebody_builds_it_again(root):
    """For hours, perhaps: the answer does not wait for that."""
    path = make(root, "old")
    leave_behind(root, path)
    with disk.locked(disk.lock_of(root, address.key_of_path(path))):
        assert build.realise(root, recipe(name="old"), [], []) is False
    assert path not in [item["path"] for item in collect.collect(root)]


def test_lost_lock_is_no_obstacle_to_the_note(root):
    path = make(root, "old")
    leave_behind(root, path)
    os.unlink(disk.lock_of(root, address.key_of_path(path)))
    assert build.realise(root, recipe(name="old"), [], []) is False
    assert path not in [item["path"] for item in collect.collect(root)]


def test_references_of_what_is_gone(root):
    low = make(root, "low")
    high = make(root, "high", inputs={"low": low})
    build.remove_tree(low)
    with pytest.raises(StoreError, match="%s: found nothing there; .* that %s refers to" % (low, high)):
        References(root).closure({os.path.basename(high)})


@pytest.mark.parametrize("ending", ["", "/bin/x", " (deleted)"])
@pytest.mark.parametrize("name", ["exe", "cwd", "root", "fd/3"])
def test_what_the_kernel_tells_of_a_process(root, tmp_path, name, ending):
    """Paths as /proc writes them; nothing else of another process counts."""
    path = address.output_path(root, recipe())
    os.makedirs(path)
    proc = tmp_path / "proc"
    (proc / "7" / "fd").mkdir(parents=True)
    (proc / "self").mkdir()
    (proc / "7" / name).symlink_to("/another/name/of/store/" + os.path.basename(path) + ending)
    (proc / "7" / "fd" / "4").symlink_to("socket:[12]")
    assert processes.in_use(root, str(proc)) == ({path} if ending != " (deleted)" else set())
    (proc / "7" / name).unlink()
    lines = "7f00-7f01 r-xp 00000000 08:01 17   /x/store/%s/bin/with blank\n" % os.path.basename(path)
    (proc / "7" / "maps").write_text(lines + "7f00-7f01 rw-p 00000000 00:00 0\n")
    assert processes.in_use(root, str(proc)) == {path}
    (proc / "7" / "maps").write_text(lines.replace(os.path.basename(path), os.path.basename(path) + "-more"))
    assert processes.in_use(root, str(proc)) == set()
    (proc / "7" / "cmdline").write_text("python\0--path=%s\0" % path)
    assert processes.in_use(root, str(proc)) == {path}


def test_collection_that_fails_names_what(root, monkeypatch):
    loose = make(root, "loose")
    activate(root, make(root, "kept"))

    def fails(old, new):
        raise OSError(5, "Input/output error", old)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(StoreError, match="%s: could not be removed: .*Input/output error" % loose):
        collect.collect(root)
    assert address.is_committed(loose)


def test_killed_collector_frees_its_locks(root):
    loose = make(root, "loose")
    activate(root, make(root, "kept"))
    program = (
        "import os, sys, time; sys.path.insert(0, sys.argv[1]); from module_utils.store import collect, disk\n"
        "disk.set_aside = lambda *arguments: print('at it', flush=True) or time.sleep(60)\n"
        "collect.collect(sys.argv[2])\n"
    )
    command = [sys.executable, "-c", program, str(PLUGINS), root]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"at it\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert names(collect.collect(root)) == {os.path.basename(loose)}
