"""The modules as Ansible runs them on a host: under a strict umask, on a full disk, with a password in an address."""

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ansible")

from ansible_run import ansible_playbook
from module_utils.store import address, build, collect, generation
from recipes import PLUGINS, fill, needs_namespaces, recipe, small_disk

pytestmark = needs_namespaces

RUN = """
import json, os, runpy, sys
from ansible.module_utils import basic
sys.path.insert(0, os.path.join(os.path.dirname(sys.argv[1]), "collections"))
from ansible_collections.kepler.vllm.plugins.module_utils.store import build
build.LOGS = build.RUN = sys.argv[2]
os.umask(int(sys.argv[3], 8))
basic._ANSIBLE_ARGS = sys.argv[5].encode()
runpy.run_path(os.path.join(sys.argv[1], "modules", sys.argv[4] + ".py"), run_name="__main__")
"""


@pytest.fixture
def run(tmp_path):
    """Function that runs a module in a process of its own: its answer."""

    def call(module, umask="022", check=False, **arguments):
        given = json.dumps({"ANSIBLE_MODULE_ARGS": dict(arguments, _ansible_check_mode=check)})
        command = [sys.executable, "-c", RUN, str(PLUGINS), str(tmp_path / "log"), umask, module, given]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        printed, said = process.communicate()
        assert printed, said.decode()
        return json.loads(printed.decode())

    return call


@pytest.fixture
def wait(run, root):
    """Function that runs store_output detached until it ends: the last answer, and how often work was started."""

    def until_it_ends(**arguments):
        starts, fresh = 0, True
        while True:
            answer = run("store_output", root=root, detach=True, fresh=fresh, index_urls=[], **arguments)
            fresh = False
            starts += bool(answer.get("started"))
            if not answer.get("running") or starts > 2:
                return answer, starts
            time.sleep(0.1)

    return until_it_ends


def mode(path):
    return stat.S_IMODE(os.stat(str(path)).st_mode)


def hello(**differs):
    made = recipe(**differs)
    return {name: made[name] for name in ("name", "version", "builder")}


@pytest.mark.parametrize("umask", ["027", "077"])
def test_services_can_read_what_a_hardened_host_makes(run, wait, root, tmp_path, umask):
    """What CIS sets for root is not for what the servers read."""
    answer, _starts = wait(umask=umask, **hello())
    assert address.is_committed(answer["path"]), answer
    made = run("store_generation", umask, root=root, outputs={"hello": answer["path"]}, kernel="k", driver="d",
               lock_hash="l")
    assert made["generation"] == 1
    for path in (root, root + "/store", answer["path"], root + "/generations", root + "/current/", tmp_path / "log"):
        assert stat.S_IMODE(os.stat(str(path)).st_mode) & 0o555 == 0o555, path
    assert mode(root + "/generations/1") == 0o755
    assert mode(root + "/generations/1/generation.json") == 0o644


def test_a_log_can_be_read(wait, tmp_path):
    answer, _starts = wait(umask="077", **hello())
    assert mode(answer["log"]) == 0o644


@pytest.mark.skipif(not shutil.which("gpg"), reason="needs gpg")
def test_what_a_hardened_host_publishes(run, wait, root, tmp_path):
    """The signing home stays closed."""
    # The agent's socket lies there, whose path may not be long.
    top = Path("/tmp") / ("kepler-gpg-modules-%d" % os.getpid())
    directory = tmp_path / "lib" / "kepler" / "published"
    answer, _starts = wait(umask="077", **hello())
    try:
        made = run("store_publish", "077", outputs={"hello": answer["path"]}, directory=str(directory),
                   gnupg_home=str(top / "signing"))
        assert made["published"] == ["hello"], made
        assert [mode(one) for one in (top, top / "signing")] == [0o755, 0o700]
        assert [mode(one) for one in (directory.parent.parent, directory.parent, directory)] == [0o755] * 3
        assert {mode(one) for one in directory.iterdir()} == {0o644}
    finally:
        subprocess.call(["gpgconf", "--homedir", str(top / "signing"), "--kill", "all"])
        shutil.rmtree(str(top))


def test_directories_above_those_laid_down(run, tmp_path):
    """host_files names the last of them alone."""
    inner = tmp_path / "etc" / "kepler" / "instances"
    answer = run("host_files", "077", directories=[str(inner)], files=[{"dest": str(inner / "a"), "content": "a"}])
    assert answer["changed"], answer
    assert [mode(one) for one in (inner.parent.parent, inner.parent, inner, inner / "a")] == [0o755] * 3 + [0o644]


@pytest.fixture
def small(root):
    """A store on a disk of four megabytes and 120 files."""
    os.makedirs(root)
    with small_disk(root, "size=4m,nr_inodes=120"):
        yield root


FILLS = 'head -c 8m /dev/zero > "$out/big"\n'


@pytest.mark.parametrize("keep", [False, True])
def test_a_full_disk_is_told(wait, small, tmp_path, keep):
    """The message arrives, also where what was built is kept and the disk stays full."""
    answer, starts = wait(keep_failed=keep, **hello(builder=FILLS))
    assert answer.get("failed"), answer
    assert "GB are free there: make room" in answer["msg"]
    assert starts == 1
    left = os.listdir(os.path.join(small, "build"))
    assert left == ([answer["log"].split("/")[-1].split("-")[0]] if keep else [])
    assert [name for name in os.listdir(str(tmp_path / "log")) if "result" in name] == []


def test_a_disk_that_is_full_before_it_begins(run, small):
    """No room for a lock is no traceback."""
    build.Paths(small, recipe()).make()
    fill(small)
    for detach in (True, False):
        answer = run("store_output", root=small, detach=detach, index_urls=[], **hello())
        assert answer.get("failed"), answer
        assert "the disk of %s/locks is full" % small in answer["msg"]
        assert "kepler-store gc" in answer["msg"]


def test_an_input_that_is_not_there_is_told(wait, root):
    answer, starts = wait(inputs={"lower": root + "/store/abc-lower-1"}, **hello())
    assert "the input lower is" in answer["msg"]
    assert starts == 1


def test_half_a_result_is_none(wait, root):
    paths = build.Paths(root, recipe())
    os.makedirs(paths.builds)
    Path(paths.results[0]).write_text('{"msg": ')
    answer, _starts = wait(**hello())
    assert address.is_committed(answer["path"])


def test_going_back_is_asked_of_the_module_too(run, wait, root):
    """It knows the word, and says that nothing changed."""
    answer, _starts = wait(**hello())
    host = {"root": root, "kernel": "k", "driver": "d"}
    for number in range(3):
        run("store_generation", outputs={"hello": answer["path"]}, lock_hash=str(number), **host)
    assert run("store_generation", check=True, activate="previous", **host)["changed"] is True
    for changed in (True, False):
        said = run("store_generation", activate="previous", **host)
        assert (said["generation"], said["changed"]) == (2, changed)
    assert run("store_generation", check=True, activate="previous", **host)["changed"] is False
    assert run("store_generation", activate="1", **host)["generation"] == 1


def test_answer_that_an_output_is_present_keeps_it(run, wait, root):
    """Until the next generation; a dry run's answer does not, for no activation follows."""
    # A name of its own: a builder of the test before may still have what it built open.
    kept = hello(name="kept")
    answer, _starts = wait(**kept)
    other, _starts = wait(**hello(name="other"))

    def planned():
        return [item["path"] for item in collect.plan(root)]

    wanted = {"outputs": {"a": other["path"]}, "kernel": "k", "driver": "d"}
    for number in range(4):
        generation.ensure(root, dict(wanted, lock_hash=str(number)))
    assert run("store_output", check=True, root=root, **kept)["origin"] == "present"
    # Builders that end still have it open, on a machine that is busy.
    for _second in range(60):
        if answer["path"] in planned():
            break
        time.sleep(1)
    else:
        pytest.fail("a dry run's answer keeps an output")
    said = run("store_output", root=root, detach=True, **kept)
    assert (said["origin"], said["changed"]) == ("present", False)
    assert answer["path"] not in planned()
    generation.ensure(root, dict(wanted, lock_hash="9"))
    assert answer["path"] in planned()


def test_generation_that_cannot_be_taken(run, wait, root):
    """A digit that is no plain one, a line end behind a number, no path."""
    answer, _starts = wait(**hello())
    host = {"root": root, "kernel": "k", "driver": "d"}
    generation.ensure(
        root, {"outputs": {"hello": answer["path"]}, "kernel": "k", "driver": "d", "lock_hash": "1"})
    for which in ("²", "1\n"):
        said = run("store_generation", activate=which, **host)
        assert said["msg"].startswith("generation: found %s, and generations 1 in" % which)
    said = run("store_generation", outputs={"hello": None}, lock_hash="1", **host)
    assert said["msg"].startswith("outputs.hello: found None, which is not in the store")


def test_names_that_cannot_be_taken(run, root):
    for check in (True, False):
        said = run("store_output", check=check, root=root, detach=True, index_urls=[], **hello(name="hello\n"))
        assert said.get("failed") and "Correct the recipe" in said["msg"]
    assert not os.path.exists(root)


def test_a_generation_takes_the_place_of_a_damaged_one(run, wait, root):
    answer, _starts = wait(**hello())
    host = {"root": root, "kernel": "k", "driver": "d", "outputs": {"hello": answer["path"]}, "lock_hash": "l"}
    run("store_generation", **host)
    Path(root, "current", "generation.json").write_text("{")
    said = run("store_generation", **host)
    assert (said["generation"], said["changed"]) == (2, True), said


def test_a_generation_records_what_is_installed(run, wait, root, tmp_path, monkeypatch):
    answer, _starts = wait(**hello())
    program = tmp_path / "bin" / "rpm"
    program.parent.mkdir()
    lines = ["tar\ttar-2:1.30-11.el8_10.x86_64", "tar-doc\ttar-doc-2:1.30-11.el8_10.noarch",
             "dkms\tdkms-0:3.3.0-1.el8.noarch"]
    program.write_text("#!/bin/sh\nprintf '%s\\n' " + " ".join(f"'{line}'" for line in lines) + "\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    host = {"root": root, "kernel": "k", "driver": "d", "outputs": {"hello": answer["path"]}, "lock_hash": "l"}
    run("store_generation", packages=["dkms", "tar", "gcc"], **host)
    described = json.loads(Path(root, "current", "generation.json").read_text())
    assert described["packages"] == ["dkms-0:3.3.0-1.el8.noarch", "tar-2:1.30-11.el8_10.x86_64"]
    assert run("store_generation", packages=["dkms"], **host)["changed"] is False


def test_no_password_is_printed(root, tmp_path):
    """Not even at -vvv."""
    task = {"name": "Make it", "kepler.vllm.store_output": dict(
        hello(), root=root, index_urls=["http://user:geheim@127.0.0.1:9/simple", "http://127.0.0.1:9/plain"],
        substituters=["http://user:geheim@127.0.0.1:9/"], trusted_keys="/nowhere", build=False,
    )}
    play = [{"name": "Play", "hosts": "box", "gather_facts": False, "tasks": [task]}]
    (tmp_path / "play.yml").write_text(json.dumps(play))
    done = ansible_playbook(
        tmp_path, "-vvv", "-i", "box,", "-c", "local", "-e", "ansible_python_interpreter=" + sys.executable, "play.yml",
    )
    assert "http://127.0.0.1:9/simple" in done.stdout, done.stdout + done.stderr
    assert "geheim" not in done.stdout
