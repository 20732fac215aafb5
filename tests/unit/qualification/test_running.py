"""Qualifications that run: real processes, what they leave on the disk, and what stops them. Python 3.6 runs it too."""

import json
import os
import time
from pathlib import Path

import pytest
from ansible_collections.kepler.vllm.plugins.module_utils import findings
from ansible_collections.kepler.vllm.plugins.module_utils.gpu import qualification, qualification_run, smi


def errors(host_record):
    return [(item["variable"], item["found"]) for item in findings.errors(host_record["findings"])]


def read_command(process):
    try:
        return (process / "cmdline").read_text()
    except OSError:  # it has ended meanwhile
        return ""


def steps(records):
    return [record["step"] for record in records if record["event"] == "step"]


def test_all_stages_pass(box):
    host_record, records = box.qualify()
    assert (host_record["result"], host_record["passed_size"], host_record["dies"]) == ("passed", 4, [0, 1, 3, 4])
    assert host_record["findings"] == []
    assert host_record["p2p"] is True
    assert steps(records) == [
        "load", "pair 0-1", "load", "pair 0-3", "pair 0-4", "pair 1-3", "pair 1-4", "pair 3-4", "load",
    ]
    assert records[0]["event"] == "begin"
    assert records[-1]["event"] == "end"
    samples = [record for record in records if record["event"] == "sample"]
    assert all(sorted(sample["dies"]) == ["0", "1", "3", "4"] for sample in samples)
    assert samples[0]["dies"]["0"]["power"] == 120.5
    assert samples[0]["dies"]["0"]["replays"] == 0
    assert not list(box.kept.glob("ranks-*")), "the ranks' files are removed"


TIMES = {"event": "done", "equal": True, "eager": 0.008, "graphs": 0.005}
# What the program of the engines does -> whether graphs are proved, and why.
GRAPHS = {
    "faster": ([["say", TIMES], ["exit", 0]], True, "the same answers, 5.0 ms a step with them, 8.0 without"),
    "slower": ([["say", {**TIMES, "graphs": 0.009}], ["exit", 0]], False, "9.0 ms a step with them, 8.0 without"),
    "other answers": ([["say", {**TIMES, "equal": False}], ["exit", 0]], False, "another answer with them"),
    "an engine that fails": ([["exit", 1]], False, "rank 0 ended with status 1"),
    "no result": ([["exit", 0]], False, "no result"),
}


@pytest.mark.parametrize("what", sorted(GRAPHS))
def test_graphs_are_tried_once_on_the_largest_stage(box, what):
    acts, proved, why = GRAPHS[what]
    box.behave({"graphs 0,1,3,4": acts})
    host_record, records = box.qualify(graphs=str(box.graphs))
    assert host_record["result"] == "passed"
    assert host_record["graphs"]["proved"] is proved
    assert why in host_record["graphs"]["because"]
    assert steps(records)[-1] == "graphs"
    assert steps(records).count("graphs") == 1


def test_the_cpu_has_no_graphs_to_try(box):
    host_record, records = box.qualify(graphs=str(box.graphs), device="cpu")
    assert host_record["graphs"] == {"proved": False, "because": "the CPU has none"}
    assert "graphs" not in steps(records)


def test_graphs_are_not_tried_unless_asked(box):
    host_record, records = box.qualify()
    assert host_record["graphs"] is None
    assert "graphs" not in steps(records)


def test_a_line_is_on_the_disk_before_the_step_that_it_announces(box, monkeypatch):
    """The order of syncs and of starts, as a machine that halts would leave them."""
    order = []
    real_sync, real_start = os.fsync, qualification_run.Ranks

    def sync(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        lines = path.read_text().splitlines() if path.is_file() else []
        order.append(json.loads(lines[-1])["event"] if lines else "directory")
        real_sync(descriptor)

    def start(options, mode, dies, p2p):
        order.append(f"start {mode}")
        return real_start(options, mode, dies, p2p)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(qualification_run, "Ranks", start)
    _, records = box.qualify()
    assert [event for event in order if event not in ("directory", "start load", "start pair")] == [
        record["event"] for record in records
    ]
    for place, event in enumerate(order):
        if event.startswith("start"):
            assert order[place - 2:place] == ["step", "sample"]


SIGNS = {
    "hot": (lambda box: box.becomes(1, temperature=86), "GPU 1", "86 degrees"),
    "throttled": (lambda box: box.becomes(3, throttle="0x0000000000000008"), "GPU 3", "hardware slowdown"),
    "uncorrectable": (lambda box: box.becomes(0, uncorrected=1), "GPU 0", "1 uncorrectable ECC errors"),
    "gone": (lambda box: box.becomes(4, temperature="[GPU is lost]"), "GPU 4", "gone at"),
    "xid": (lambda box: box.logs("NVRM: Xid (PCI:0000:06:00): 79, fell off"), "GPU 1", "Xid 79 (the GPU has fallen"),
}


@pytest.mark.parametrize("what", sorted(SIGNS))
def test_a_bad_sign_under_load_stops_it_at_once(box, what):
    act, where, found = SIGNS[what]
    box.behave({"load 0,1": [act(box), ["sleep", 30]]})
    begun = time.monotonic()
    host_record, records = box.qualify()
    assert time.monotonic() - begun < 15
    assert (host_record["result"], host_record["passed_size"], host_record["dies"]) == ("failed", 1, [0])
    assert errors(host_record)[0][0] == where
    assert found in errors(host_record)[0][1]
    assert steps(records) == ["load", "pair 0-1", "load"]
    assert records[-1]["event"] == "end"
    assert records[-1]["findings"] == host_record["findings"]


def test_an_old_line_of_the_kernel_log_is_no_sign(box):
    box.behave({"load": [["sleep", 0.2]]})
    assert box.qualify()[0]["findings"] == []


def test_warnings_do_not_stop_it(box):
    box.behave({"load 0,1": [box.becomes(0, corrected=3, replays=2), ["sleep", 0.2]]})
    host_record, _ = box.qualify()
    assert (host_record["result"], host_record["passed_size"]) == ("passed", 4)
    assert [item["severity"] for item in host_record["findings"]] == ["warning", "warning"]
    box.state["unknown"] = ["clocks_throttle_reasons.active", "ecc.errors.corrected.volatile.total"]
    box.write()
    box.behave({})
    host_record, _ = box.qualify(kmsg=str(box.directory / "none"))
    assert host_record["result"] == "passed"
    assert "does not know clocks_throttle_reasons.active, ecc.errors" in host_record["findings"][0]["found"]
    assert "none cannot be read" in host_record["findings"][1]["found"]


def test_nvidia_smi_without_temperatures_is_refused(box):
    box.state["unknown"] = ["temperature.gpu"]
    box.write()
    host_record, records = box.qualify()
    assert (host_record["result"], host_record["passed_size"]) == ("failed", 0)
    assert "temperature.gpu" in errors(host_record)[0][1]
    assert steps(records) == []


def test_a_pair_that_hangs(box):
    box.behave({"pair 1,3": [["sleep", 60]]})
    host_record, records = box.qualify(pair_timeout=0.5)
    assert (host_record["result"], host_record["passed_size"]) == ("failed", 2)
    assert errors(host_record) == [("pair 1-3", "no end within 0 s; without peer-to-peer: no end within 0 s")]
    assert steps(records)[-2:] == ["pair 1-3", "pair 1-3 without P2P"]


def test_a_pair_that_hangs_with_peer_to_peer_alone(box):
    box.behave({"pair 0,1 direct": [["sleep", 60]]})
    host_record, records = box.qualify(pair_timeout=0.5)
    assert (host_record["result"], host_record["passed_size"], host_record["p2p"]) == ("passed", 4, False)
    assert [(item["severity"], item["variable"]) for item in host_record["findings"]] == [("warning", "pair 0-1")]
    assert "works without" in host_record["findings"][0]["found"]
    begun = [record for record in records if record["event"] == "step"]
    assert [record["step"] for record in begun[1:3]] == ["pair 0-1", "pair 0-1 without P2P"]
    assert [record["p2p"] for record in begun] == [True, True] + [False] * (len(begun) - 2)


def test_a_process_of_a_pair_is_ended(box, tmp_path):
    box.behave({"pair 0,1": [["append", str(tmp_path / "marker"), "x"], ["sleep", 60]]})
    box.qualify(pair_timeout=0.5)
    assert (tmp_path / "marker").read_text() == "xx", "with and without peer-to-peer"
    commands = [read_command(path) for path in Path("/proc").glob("[0-9]*")]
    assert [command for command in commands if str(box.load) in command] == []


def test_a_wrong_result(box):
    wrong = {"event": "wrong", "what": "3 of 16777216 elements of a product differ from its first result"}
    box.behave({"load 0,1,3,4": [["say", wrong], ["sleep", 30]]})
    host_record, _ = box.qualify()
    assert (host_record["result"], host_record["passed_size"]) == ("failed", 2)
    assert errors(host_record) == [("GPUs 0, 1, 3, 4", "under load: rank 0: wrong result: " + wrong["what"])]


def test_a_rank_that_fails_or_falls_silent(box):
    box.behave({"load 0": [["exit", 7]]})
    host_record, _ = box.qualify()
    assert host_record["passed_size"] == 0
    assert errors(host_record) == [("GPU 0", "under load: rank 0 ended with status 7: no word")]
    box.behave({"load 0": [["say", {"event": "working"}], ["sleep", 30]]})
    host_record, _ = box.qualify(stall=0.5)
    assert errors(host_record) == [("GPU 0", "under load: no result for 0 s")]


def test_an_nvidia_smi_that_hangs(box, monkeypatch):
    """With a driver that hangs it does so for ever."""
    real = smi.smi
    monkeypatch.setattr(smi, "smi", lambda command, arguments, _timeout=None: real(command, arguments, 0.5))
    state = json.loads(json.dumps(box.state))
    state["sleep"] = 60
    box.behave({"load 0": [["state", str(box.directory / "state.json"), state], ["sleep", 30]]})
    host_record, _ = box.qualify()
    assert errors(host_record)[0][0] == "nvidia-smi"
    assert "did not answer within 0 s" in errors(host_record)[0][1]


def test_traces_are_numbered(box):
    assert box.qualify()[0]["trace"] == "trace-0001.jsonl"
    (box.kept / "trace-0009.jsonl").write_text("")
    assert box.qualify()[0]["trace"] == "trace-0010.jsonl"
    assert qualification_run.trace_names(str(box.kept))[-1] == "trace-0010.jsonl"


def test_a_halt_at_every_line(box):
    """A trace that is cut after any of its lines, and in the middle of the next one, says where the machine stopped."""
    box.behave({"load": [["sleep", 0.1]]})
    _, whole = box.qualify()
    ended = 0
    for count in range(len(whole)):
        lines = [json.dumps(record) for record in whole[:count]] + [json.dumps(whole[count])[:20]]
        told = qualification.summarize(qualification.read_trace("\n".join(lines)))
        if not count:
            assert told["ended"], "nothing was begun"
            continue
        assert not told["ended"]
        last = whole[count - 1]
        ended += last["event"] == "stage end"
        passed, fault = qualification.interrupted(told)
        blamed = min(ended, 2)
        assert passed == [0, 1, 2][blamed]
        assert f"the machine stopped in stage {blamed + 1} of 3" in fault["found"]
        begun = [record for record in whole[:count] if record["event"] == "step"]
        named = begun and begun[-1]["stage"] == blamed
        assert (f"in the step \"{begun[-1]['step']}\"" in fault["found"]) if named else ("step" not in fault["found"])
        readings = [record for record in whole[:count] if record["event"] == "sample"]
        last_words = "GPU 0 60 degrees 120.5 W, GPU 1" if readings else "the last reading: none"
        assert last_words in fault["found"]
        assert "qualification_retry: true" in fault["next_step"]
    assert ended == 3
    assert qualification.summarize(whole)["ended"]


def test_progress(box):
    _, whole = box.qualify()
    assert qualification.progress([]) == "starting"
    said = [qualification.progress(whole[:count]) for count in range(1, len(whole))]
    assert said[0] == "starting"
    assert said[-1].startswith("stage 3 of 3, GPUs 0, 1, 3, 4: load, 0 s, 60 degrees, 482 W in all")
    assert any(text.startswith("stage 2 of 3, GPUs 0, 1: pair 0-1") for text in said)
    sample = next(record for record in whole if record["event"] == "sample")
    slow = [whole[0], dict(whole[2], t=0.4)]
    for second in range(1, 26):
        dies = {"0": dict(sample["dies"]["0"], temperature=second)}
        slow.append(dict(sample, t=float(second), dies=dies))
    said = [qualification.progress(slow[:count]) for count in range(3, len(slow) + 1)]
    assert [text.split("load, ")[1] for text in sorted(set(said))] == [
        "0 s, 1 degrees, 120 W in all", "10 s, 11 degrees, 120 W in all", "20 s, 21 degrees, 120 W in all",
    ]
