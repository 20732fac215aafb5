"""nvidia-smi: one that fails or never answers, and what its answers say."""

import pytest
from module_utils.gpu import smi


@pytest.fixture
def program(tmp_path):
    """Function that makes an nvidia-smi of a script."""

    def make(script):
        path = tmp_path / "nvidia-smi"
        path.write_text("#!/bin/sh\n" + script + "\n")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("echo a; echo b >&2", (True, "a\nb")),
        ("echo lost; exit 15", (False, "lost")),
        ("exit 9", (False, "{} ended with status 9 and printed nothing")),
        ("kill -KILL $$", (False, "{} ended with status -9 and printed nothing")),
        ("exec sleep 60", (False, "{} did not answer within 1 s")),
    ],
)
def test_what_it_says_and_whether_it_succeeded(program, script, answer):
    path = program(script)
    fine, text = smi.smi(path, [], timeout=1)
    assert (fine, text) == (answer[0], answer[1].format(path))


def test_bytes_of_a_damaged_inforom_are_no_traceback(program):
    fine, text = smi.smi(program(r"printf '0, Tesla K80, \377\376, \302\260\n'"), [])
    assert fine and text.startswith("0, Tesla K80, ") and text.endswith("\u00b0")


def test_values_that_are_no_number_have_none():
    for value in ("nan", "inf", "-inf", "[N/A]", "[Not Supported]", "ERR!", "[GPU is lost]", "", "0xZZ", "1,5"):
        assert smi.number_in(value) is None
    assert smi.number_in("25.30 W") == 25.3


def test_processes_without_numbers_are_passed_over():
    gpus = "0, 00000000:05:00.0\n[GPU is lost], 00000000:06:00.0\nUnknown Error, x\n"
    apps = "[Not Found], 00000000:05:00.0, 12 MiB\n77, 00000000:05:00.0, [N/A]\n"
    assert smi.processes(gpus, apps) == [(0, 77, "[N/A]")]


def test_replays_of_an_odd_answer():
    text = "GPU \n  Replays Since Reset : 3\nGPU 00000000:05:00.0\n  Replays Since Reset : N/A\n"
    assert smi.replay_counters(text) == {}


def test_a_program_that_is_missing(tmp_path):
    fine, text = smi.smi(str(tmp_path / "none"), [])
    assert not fine and "No such file" in text


def test_query_asks_for_bare_values(program):
    assert smi.query(program('echo "$@"'), ("a", "b")) == (True, "--query-gpu=a,b --format=csv,noheader,nounits")


def test_ecc_counts():
    table = "00000000:05:00.0, Enabled, 0, 12\n00000000:06:00.0, Enabled, [N/A], [N/A]\n"
    assert smi.ecc(table) == [
        {"address": "00000000:05:00.0", "mode": "Enabled", "volatile": 0, "aggregate": 12},
        {"address": "00000000:06:00.0", "mode": "Enabled", "volatile": None, "aggregate": None},
    ]


@pytest.mark.parametrize("text", ["", None, "\n"])
def test_no_ecc_counts(text):
    assert smi.ecc(text) == []


# Answers of nvidia-smi that are not well, and the address that each names.
UNWELL = [
    ("Unable to determine the device handle for GPU 0000:05:00.0: GPU is lost.  Reboot the system to recover this GPU",
     "0000:05:00.0"),
    ("00000000:05:00.0, [GPU is lost], [GPU is lost], [GPU is lost]", "00000000:05:00.0"),
    ("00000000:05:00.0, Enabled, [Unknown Error], [Unknown Error]", "00000000:05:00.0"),
    ("00000000:05:00.0, ERR!, ERR!, ERR!", "00000000:05:00.0"),
    ("00000000:05:00.0, [GPU requires reset], [N/A], [N/A]", "00000000:05:00.0"),
    ("00000000:05:00.0, Enabled, 0, -1", "00000000:05:00.0"),
    ("Failed to initialize NVML: Driver/library version mismatch", None),
    ("Failed to initialize NVML: Unknown Error", None),
    ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", None),
    ("No devices were found", None),
    ("WARNING: infoROM is corrupted at gpu 0000:05:00.0", "0000:05:00.0"),
]
WELL = "00000000:06:00.0, Enabled, 0, 0"


@pytest.mark.parametrize(("line", "address"), UNWELL)
def test_answer_that_is_not_well_is_kept(line, address):
    faults = [die for die in smi.ecc(WELL + "\n" + line + "\n") if "fault" in die]
    assert faults == [{"address": address, "fault": line}]


def test_die_without_ecc_is_well():
    assert [die["mode"] for die in smi.ecc("00000000:05:00.0, [N/A], [N/A], [N/A]\n")] == ["[N/A]"]
