"""Commands that outlive the connection: their result, what is shown of them, and who waits for them."""

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
import time

import module_run
import pytest

SLOW = (
    'echo $$ $PPID >> {0}/log; printf "50 %%\\r\\033[1m 75  %%\\033[0m\\n"; '
    "while [ ! -e {0}/end ]; do sleep 0.02; done; echo done"
)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Function that calls the module, which waits for 0.3 s."""
    module = module_run.load("long_command")
    monkeypatch.setattr(module, "WAIT", 0.3)

    def call(*argv, **options):
        return module_run.run(module, monkeypatch, capsys, argv=list(argv), directory=str(tmp_path / "c"), **options)

    return call


@pytest.fixture
def run(call):
    """Function that calls the module until the command has ended, as the action plugin does."""

    def run(*argv, fresh=True):
        answer = call(*argv, fresh=fresh)
        end = time.monotonic() + 60
        while answer.get("running"):
            assert time.monotonic() < end
            answer = call(*argv, fresh=False)
        return answer

    return run


@pytest.fixture
def slow(call, tmp_path):
    """Arguments of a command that goes on, has printed, and waits for the file `end`."""
    argv = ["sh", "-c", SLOW.format(tmp_path)]
    answer = call(*argv)
    while answer["progress"] != "75 %":
        assert answer["running"]
        answer = call(*argv, fresh=False)
    yield argv
    (tmp_path / "end").touch()


def test_result_and_surroundings(run):
    answer = run("sh", "-c", 'pwd; echo "$LC_ALL" >&2; cat')
    assert (answer["rc"], answer["running"], answer["changed"]) == (0, False, True)
    assert (answer["stdout"], answer["stderr"]) == ("/\n", "C.UTF-8\n")
    assert run("sh", "-c", "printf '\\377'")["stdout"] == "\ufffd"


@pytest.mark.parametrize(("argv", "status", "said"), [
    (["sh", "-c", "seq 99; echo Error: no space >&2; exit 3"], 3, "\nError: no space"),
    (["sh", "-c", "seq 99; exit 3"], 3, ":\n88\n89\n"),
    (["sh", "-c", "kill -9 $$"], -9, ""),
    (["no-such-program", "-x"], 127, "\nno-such-program: No such file or directory"),
])  # fmt: skip
def test_failure(run, argv, status, said):
    answer = run(*argv)
    assert answer["failed"]
    assert answer["rc"] == status
    assert answer["msg"].startswith(" ".join(argv[:3]) + f": found exit status {status}; expected 0. ")
    assert said in answer["msg"]
    # What one call was told does not stay.
    assert run(*argv)["rc"] == status


def test_a_later_play_takes_the_result_of_the_command_that_runs(call, run, slow, tmp_path):
    """The play that started it has ended: nobody asked again. Its command is not started twice."""
    assert call(*slow)["running"]
    (tmp_path / "end").touch()
    # Between two looks.
    while not list((tmp_path / "c").glob("*/result")):
        time.sleep(0.02)
    answer = run(*slow, fresh=False)
    assert answer["rc"] == 0
    assert answer["stdout"].endswith("done\n")
    assert (tmp_path / "log").read_text().count("\n") == 1
    # A result is nobody's who comes after it.
    assert run(*slow)["rc"] == 0
    assert (tmp_path / "log").read_text().count("\n") == 2


def test_one_command_at_a_time(call, run, request, tmp_path):
    """A later play may ask for the rest of what an earlier one installs: it waits, and each gets its own result."""
    other = ["env", "sh", "-c", f"echo other >> {tmp_path}/other; cat {tmp_path}/other"]
    assert run(*other)["stdout"] == "other\n"
    slow = request.getfixturevalue("slow")
    command = (tmp_path / "log").read_text().split()[0]
    for fresh in (True, False):
        waiting = call(*other, fresh=fresh)
        assert waiting["running"]
        assert waiting["progress"].startswith("waits for sh -c echo $$")
        assert waiting["progress"].endswith(f"(process {command}): 75 %")
    (tmp_path / "end").touch()
    assert run(*other, fresh=False)["stdout"] == "other\n" * 2
    # Another one has run meanwhile.
    assert run(*slow, fresh=False)["stdout"].endswith("done\n")
    assert (tmp_path / "log").read_text().count("\n") == 1


def test_a_look_is_not_taken_for_a_command(run, call, tmp_path):
    """Who looks whether something runs holds the lock for a moment."""
    number = ["sh", "-c", f"echo >> {tmp_path}/number; wc -l < {tmp_path}/number"]
    assert run(*number)["stdout"].strip() == "1"
    with (tmp_path / "c" / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(0.1, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        assert run(*number)["stdout"].strip() == "2"


@pytest.mark.parametrize("killed", ["keeper", "both"])
def test_a_keeper_that_was_killed(call, run, slow, tmp_path, killed):
    """Alone, or with its command: that is waited for as long as it goes on, and its result is lost."""
    command, keeper = map(int, (tmp_path / "log").read_text().split())
    os.kill(keeper, signal.SIGKILL)
    if killed == "both":
        os.kill(command, signal.SIGKILL)
    else:
        time.sleep(0.1)
        assert call(*slow)["running"]
        assert call(*slow, fresh=False)["running"]
        assert (tmp_path / "log").read_text().count("\n") == 1
        (tmp_path / "end").touch()
    answer = run(*slow, fresh=False)
    assert answer["failed"]
    assert "rc" not in answer
    assert "ended without a result" in answer["msg"]
    assert "journalctl -k" in answer["msg"]
    (tmp_path / "end").touch()
    assert run(*slow)["rc"] == 0


def test_what_a_service_holds_open_is_not_waited_for(run):
    """A package's scriptlet may start one, with what dnf had open."""
    began = time.monotonic()
    assert run("sh", "-c", "sleep 30 > /dev/null & echo installed $!")["stdout"].startswith("installed ")
    assert run("true")["rc"] == 0
    assert time.monotonic() - began < 20


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a disk")
def test_a_disk_that_is_full(run, tmp_path):
    """The command's own messages find no room; its result does."""
    disk = tmp_path / "c"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        answer = run("sh", "-c", "seq 99999; exit 5")
        assert answer["rc"] == 5
        for number in range(200):
            (disk / f"x{number}").touch()
            with contextlib.suppress(OSError):
                (disk / f"x{number}").write_text("x" * 4096)
        assert run("echo", "1")["msg"].startswith("directory: ")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_bad_arguments(call, tmp_path):
    assert "expected a program" in call()["msg"]
    (tmp_path / "c").write_text("")
    assert call("true")["msg"].startswith(f"directory: {tmp_path}/c: ")


def test_a_dry_run_leaves_it_out(call, tmp_path):
    assert call("touch", str(tmp_path / "made"), check_mode=True)["skipped"]
    assert not (tmp_path / "made").exists()


def test_a_play_takes_the_result(play):
    task = {"name": "Build", "kepler.vllm.long_command": {"argv": ["sh", "-c", "echo built"]}, "register": "found"}
    show = {"name": "Show", "ansible.builtin.debug": {"msg": "got {{ found.stdout_lines | join }} and {{ found.rc }}"}}
    status, output = play([task, show], gather_facts=False)
    assert status == 0, output
    assert "got built and 0" in output
