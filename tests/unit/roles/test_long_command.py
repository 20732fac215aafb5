"""Commands that outlive the connection: their result, what is shown of them, and who waits for them."""

import os
import signal
import time

import module_run
import pytest

SLOW = (
    'echo $$ $PPID >> {0}/log; printf "50 %%\\r\\033[1m 75  %%\\033[0m\\n"; '
    "while [ ! -e {0}/end ]; do sleep 0.02; done; echo done"
)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Function that calls the module with a shell's command; a call waits for 0.3 s."""
    module = module_run.load("long_command")
    monkeypatch.setattr(module, "WAIT", 0.3)

    def call(*argv, **options):
        return module_run.run(module, monkeypatch, capsys, argv=list(argv), directory=str(tmp_path / "c"), **options)

    return call


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


@pytest.fixture
def end(tmp_path):
    """Function that ends the slow command, and returns when it has ended."""

    def end():
        before = set((tmp_path / "c").glob("sh/*/result"))
        (tmp_path / "end").touch()
        while not set((tmp_path / "c").glob("sh/*/result")) - before:
            time.sleep(0.02)

    return end


def test_result_and_surroundings(call):
    answer = call("sh", "-c", 'pwd; echo "$LC_ALL" >&2; cat')
    assert (answer["rc"], answer["running"], answer["changed"]) == (0, False, True)
    assert (answer["stdout"], answer["stderr"]) == ("/\n", "C.UTF-8\n")
    assert call("sh", "-c", "printf '\\377'")["stdout"] == "\ufffd"


@pytest.mark.parametrize(("argv", "status", "said"), [
    (["sh", "-c", "seq 99; echo Error: no space >&2; exit 3"], 3, "\nError: no space"),
    (["sh", "-c", "seq 99; exit 3"], 3, ":\n88\n89\n"),
    (["sh", "-c", "kill -9 $$"], -9, ""),
    (["no-such-program", "-x"], 127, "\nno-such-program: No such file or directory"),
])  # fmt: skip
def test_failure(call, argv, status, said):
    answer = call(*argv)
    assert answer["failed"]
    assert answer["rc"] == status
    assert answer["msg"].startswith(" ".join(argv[:3]) + f": found exit status {status}; expected 0. ")
    assert said in answer["msg"]
    # What one call was told does not stay.
    assert call(*argv)["rc"] == status


def test_a_later_play_waits_for_the_command_that_runs(call, slow, end, tmp_path):
    """The play that started it has ended: nobody asked again. Its command is not started twice."""
    assert call(*slow)["running"]
    end()
    answer = call(*slow, fresh=False)
    assert (answer["rc"], answer["running"]) == (0, False)
    assert answer["stdout"].endswith("done\n")
    assert (tmp_path / "log").read_text().count("\n") == 1
    # A result is nobody's who comes after it.
    assert call(*slow)["rc"] == 0
    assert (tmp_path / "log").read_text().count("\n") == 2


def test_one_command_of_a_program_at_a_time(call, request, end, tmp_path):
    """A later play may ask for the rest of what an earlier one installs: it waits, and each gets its own result."""
    other = ["sh", "-c", f"echo other >> {tmp_path}/other; cat {tmp_path}/other"]
    assert call(*other)["stdout"] == "other\n"
    slow = request.getfixturevalue("slow")
    assert call("env", "true")["rc"] == 0
    waiting = call(*other)
    assert (waiting["running"], waiting["progress"]) == (True, "75 %")
    assert call(*other, fresh=False)["running"]
    end()
    assert call(*other, fresh=False)["stdout"] == "other\n" * 2
    assert call(*slow, fresh=False)["stdout"].endswith("done\n")


def test_a_command_that_was_killed_with_its_keeper(call, slow, tmp_path):
    command, keeper = map(int, (tmp_path / "log").read_text().split())
    for process in (keeper, command):
        os.kill(process, signal.SIGKILL)
    answer = call(*slow, fresh=False)
    assert answer["failed"]
    assert "ended without a result" in answer["msg"]
    assert "journalctl -k" in answer["msg"]
    (tmp_path / "end").touch()
    assert call(*slow)["rc"] == 0


def test_what_a_service_holds_open_is_not_waited_for(call):
    """A package's scriptlet may start one, with what dnf had open."""
    began = time.time()
    assert call("sh", "-c", "sleep 3 & echo installed")["stdout"] == "installed\n"
    assert time.time() - began < 2


def test_bad_arguments(call, tmp_path):
    assert "expected a program" in call()["msg"]
    (tmp_path / "c").write_text("")
    assert call("/bin/true")["msg"].startswith(f"directory: {tmp_path}/c/")


def test_a_dry_run_leaves_it_out(call, tmp_path):
    assert call("touch", str(tmp_path / "made"), check_mode=True)["skipped"]
    assert not (tmp_path / "made").exists()


def test_a_play_takes_the_result(play):
    task = {"name": "Build", "kepler.vllm.long_command": {"argv": ["sh", "-c", "echo built"]}, "register": "found"}
    show = {"name": "Show", "ansible.builtin.debug": {"msg": "got {{ found.stdout_lines | join }} and {{ found.rc }}"}}
    status, output = play([task, show], gather_facts=False)
    assert status == 0, output
    assert "got built and 0" in output
