"""Xids, ECC counts and enrollment, from recorded answers."""

import pytest
from module_utils.gpu import xid

JOURNAL = """\
2024-03-01T10:00:00+0000 k80-1 kernel: NVRM: Xid (PCI:0000:06:00): 79, pid=1234, GPU has fallen off the bus.
2024-03-02T10:00:00+0000 k80-1 kernel: NVRM: Xid (PCI:0000:05:00): 48, An uncorrectable double bit error (DBE)
2024-03-05T11:30:00+0000 k80-1 kernel: NVRM: Xid (PCI:0000:06:00): 79, pid='<unknown>', GPU has fallen off the bus.
2024-03-05T11:30:01+0000 k80-1 kernel: NVRM: A GPU crash dump has been created.
-- Reboot --
"""


def test_xids_by_die_and_number():
    events = xid.xids(JOURNAL)
    assert [(event["address"], event["xid"], event["count"]) for event in events] == [
        ("0000:05:00", 48, 1), ("0000:06:00", 79, 2)
    ]
    assert events[1]["last"] == "2024-03-05T11:30:00+0000"
    assert "fallen off the bus" in events[1]["text"]
    assert xid.xids("") == xid.xids(None) == []


def test_ecc_counts():
    table = "00000000:05:00.0, Enabled, 0, 12\n00000000:06:00.0, Enabled, [N/A], [N/A]\n"
    assert xid.ecc(table) == [
        {"address": "00000000:05:00.0", "mode": "Enabled", "volatile": 0, "aggregate": 12},
        {"address": "00000000:06:00.0", "mode": "Enabled", "volatile": None, "aggregate": None},
    ]


@pytest.mark.parametrize("text", ["", None, "\n"])
def test_no_ecc_counts(text):
    assert xid.ecc(text) == []


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
    faults = [die for die in xid.ecc(WELL + "\n" + line + "\n") if "fault" in die]
    assert faults == [{"address": address, "fault": line}]


def test_die_without_ecc_is_well():
    assert [die["mode"] for die in xid.ecc("00000000:05:00.0, [N/A], [N/A], [N/A]\n")] == ["[N/A]"]


LOST = """\
2024-03-01T10:00:00+0000 k80-1 kernel: NVRM: GPU 0000:05:00.0: RmInitAdapter failed! (0x26:0xffff:1113)
2024-03-01T10:00:09+0000 k80-1 kernel: NVRM: GPU 0000:05:00.0: RmInitAdapter failed! (0x26:0xffff:1113)
2024-03-01T10:01:00+0000 k80-1 kernel: NVRM: RmInitAdapter failed! (0x24:0xffff:1211)
2024-03-01T10:02:00+0000 k80-1 kernel: NVRM: The NVIDIA GPU 0000:06:00.0 has fallen off the bus and is not responding.
2024-03-01T10:03:00+0000 k80-1 kernel: NVRM: loading NVIDIA UNIX x86_64 Kernel Module
"""


def test_lost_gpus_of_the_journal():
    events = xid.driver_faults(LOST + JOURNAL)
    assert [(event["address"], event["count"]) for event in events] == [
        (None, 1), ("0000:05:00.0", 2), ("0000:06:00.0", 1)
    ]
    assert events[1]["last"] == "2024-03-01T10:00:09+0000"
    assert xid.driver_faults(JOURNAL) == xid.driver_faults(None) == []


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ("/var/lib/dkms/mok.pub is already enrolled\n", "enrolled"),
        ("/var/lib/dkms/mok.pub is already in the enrollment request\n", "pending"),
        ("/var/lib/dkms/mok.pub is not enrolled\n", "absent"),
        ("EFI variables are not supported on this system\n", None),
        ("", None),
        (None, None),
    ],
)
def test_enrollment(answer, state):
    assert xid.enrollment(answer) == state
