"""The module qualification_run on a host with one board: when it runs, when it does not, and what it leaves."""

import json
import os

import pytest
from ansible.module_utils import basic
from ansible_collections.kepler.vllm.plugins.modules import qualification_run as run_module
from simulated import PROFILE


@pytest.fixture
def run(box, monkeypatch, capsys):
    """Function that runs the module to its end: what it answers."""
    root = box.install()
    monkeypatch.setattr(run_module.qualification_run, "INTERVAL", 0.05)
    monkeypatch.setattr(run_module.platform, "release", lambda: box.kernel)
    box.kernel = "4.18"

    def call(check=False, **options):
        arguments = {
            "directory": str(box.kept), "root": str(root), "load": str(box.load), "seconds": 0, "pair_timeout": 5,
            "profile": PROFILE, "nvidia_smi": str(box.smi), "kmsg": str(box.kmsg),
            "_ansible_check_mode": check, **options,
        }
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
        with pytest.raises(SystemExit):
            run_module.main()
        return json.loads(capsys.readouterr().out)

    return call


def kept(box):
    """Files of the host with their times."""
    return {path.name: path.stat().st_mtime_ns for path in box.kept.iterdir()}


def test_once(run, box):
    answer = run(check=True)
    assert answer["changed"]
    assert answer["reasons"] == ["this host was never qualified"]
    assert [stage["dies"] for stage in answer["stages"]] == [[0], [0, 1]]
    assert kept(box) == {}

    answer = run()
    assert answer["changed"]
    record = answer["record"]
    assert (record["result"], record["size"], record["dies"], record["generation"]) == ("passed", 2, [0, 1], "7")
    assert json.loads((box.kept / "stamp.json").read_text()) == record

    before = kept(box)
    for options in ({}, {"check": True}, {"retry": True}):
        answer = run(**options)
        assert not answer["changed"]
        assert answer["record"] == record
    assert kept(box) == before


@pytest.mark.parametrize("what", ["kernel", "driver", "serial", "board"])
def test_what_has_changed_asks_for_it_again(run, box, what):
    assert run()["record"]["result"] == "passed"
    if what == "kernel":
        box.kernel = "4.19"
    elif what == "board":
        box.state["dies"] = box.state["dies"][:1]
    else:
        box.state["dies"][1]["driver_version" if what == "driver" else "serial"] = "0320000000007"
        box.state["dies"][0]["driver_version" if what == "driver" else "name"] = "Tesla K80"
    box.write()
    (reason, *_) = run(check=True)["reasons"]
    assert reason.startswith({"serial": "boards", "board": "boards"}.get(what, what) + ": ")
    assert run()["record"]["trace"] == "trace-0002.jsonl"
    assert not run()["changed"]


def test_a_failure_stays_until_it_is_asked_for_again(run, box):
    box.behave({"load 0,1": [["exit", 9]]})
    assert (run()["record"]["result"], run()["record"]["size"]) == ("failed", 1)
    before = kept(box)
    assert not run()["changed"]
    assert not run(retry=True, fresh=False)["changed"], "a task asks once"
    assert kept(box) == before
    box.behave({})
    assert run(retry=True)["record"]["size"] == 2


def halt(box, boot="another"):
    """The machine stops in the load of the second stage, and is started anew."""
    record = box.kept / "stamp.json"
    trace = box.kept / json.loads(record.read_text())["trace"]
    record.unlink()
    lines = trace.read_text().splitlines()
    begin = json.loads(lines[0])
    begin["boot"] = boot or begin["boot"]
    place = max(number for number, line in enumerate(lines) if '"event": "step"' in line)
    trace.write_text("\n".join([json.dumps(begin), *lines[1:place + 3], lines[place + 3][:9]]))


def test_a_machine_that_halted(run, box):
    run()
    halt(box)
    box.behave({"load": [["exit", 9]]})  # a load would be seen
    answer = run()
    assert answer["changed"]
    record = answer["record"]
    assert (record["result"], record["size"], record["dies"], record["p2p"]) == ("halted", 1, [0], True)
    assert 'stopped in stage 2 of 2 (GPUs 0, 1), in the step "load"' in record["findings"][0]["found"]
    assert "GPU 0 60 degrees 120.5 W, GPU 1 60 degrees 120.5 W, at" in record["findings"][0]["found"]
    assert not run()["changed"]
    box.behave({})
    assert run(retry=True)["record"]["result"] == "passed"


def test_a_machine_that_halts_while_it_is_tried_again(run, box):
    """The record of the first try must not hide it."""
    box.behave({"load 0,1": [["exit", 9]]})
    run()
    looked = box.directory / "looked"
    look = f'open({str(looked)!r}, "a").write(str(os.listdir({str(box.kept)!r})))\n'
    box.load.write_text(box.load.read_text() + look)
    run(retry=True)
    assert looked.read_text()
    assert "stamp.json" not in looked.read_text()


@pytest.mark.parametrize("why", ["the process was ended", "another kernel", "another board"])
def test_a_trace_without_an_end_that_is_no_halt_of_this_host(run, box, why):
    run()
    halt(box, boot=None if why == "the process was ended" else "another")
    if why == "another kernel":
        box.kernel = "4.19"
    elif why == "another board":
        box.state["dies"][1]["serial"] = box.state["dies"][0]["serial"] = "0320000000007"
        box.write()
    record = run()["record"]
    assert (record["result"], record["trace"]) == ("passed", "trace-0002.jsonl")


def test_skipping(run, box):
    assert run(check=True, mode="skip")["changed"]
    assert kept(box) == {}
    record = run(mode="skip")["record"]
    assert (record["result"], record["passed_size"], record["size"], record["dies"]) == ("skipped", 0, 2, [0, 1])
    assert not list(box.kept.glob("trace*"))
    assert not run(mode="skip")["changed"]
    assert run()["record"]["result"] == "passed"


def test_what_is_missing_is_named(run, box):
    (box.directory / "kepler" / "current").unlink()
    assert "Run playbooks/build.yml first" in run()["msg"]
    assert "Run playbooks/build.yml first" in run(check=True)["fault"]
    assert run(check=True, mode="skip")["fault"] == ""
    box.state["fault"], box.state["dies"] = "No devices were found", []
    box.write()
    assert "nvidia-smi: found No devices were found; expected the Tesla K80 GPUs of the host" in run()["msg"]
    assert "none/nvidia-smi: No such file" in run(nvidia_smi="/none/nvidia-smi")["msg"]
    answer = run(check=True, nvidia_smi="/none/nvidia-smi", directory="/none")
    assert answer["reasons"] == ["this host was never qualified"], "a dry run on an empty host"
    assert "none/nvidia-smi: No such file" in answer["fault"]


def test_two_at_once(run, box):
    lock = run_module.Lock(str(box.kept / "lock"))
    lock.acquire()
    assert "another qualification is running" in run()["msg"]
    answer = run(detach=True)
    assert (answer["running"], answer["started"], answer["progress"]) == (True, False, "starting")
    assert run(check=True)["reasons"] == ["a qualification is running"]
    lock.release()
    assert run()["record"]["result"] == "passed"


def test_half_a_stamp_is_none(run, box):
    run()
    (box.kept / "stamp.json").write_text('{"schema": 1, ')
    assert run()["record"]["trace"] == "trace-0002.jsonl"


def test_a_fault_of_the_program_is_told_once(run, box):
    (box.kept / "fault.json").write_text(json.dumps({"msg": "unexpected fault"}))
    assert run(fresh=False)["msg"] == "unexpected fault"
    (box.kept / "fault.json").write_text(json.dumps({"msg": "of an older run"}))
    assert run()["record"]["result"] == "passed"
    assert not os.path.lexists(box.kept / "fault.json")
