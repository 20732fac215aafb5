"""Xids and lost GPUs in the kernel log."""

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


def test_xid_of_a_part_of_a_gpu_has_its_address():
    assert xid.xid_of("NVRM: Xid (PCI:0000:41:00 GPU-I:05): 13, Graphics Exception") == {
        "address": "0000:41:00", "xid": 13, "text": "Graphics Exception"}


LOST = """\
2024-03-01T10:00:00+0000 k80-1 kernel: NVRM: GPU 0000:05:00.0: RmInitAdapter failed! (0x26:0xffff:1113)
2024-03-01T10:00:09+0000 k80-1 kernel: NVRM: GPU 0000:05:00.0: RmInitAdapter failed! (0x26:0xffff:1113)
2024-03-01T10:01:00+0000 k80-1 kernel: NVRM: RmInitAdapter failed! (0x24:0xffff:1211)
2024-03-01T10:02:00+0000 k80-1 kernel: NVRM: The NVIDIA GPU 0000:06:00.0 has fallen off the bus and is not responding.
2024-03-01T10:02:30+0000 k80-1 kernel: NVRM: krcWatchdog_IMPL: RC watchdog: GPU is probably locked!  Notify Timeout: 7
2024-03-01T10:02:40+0000 k80-1 kernel: NVRM: GPU 0000:07:00.0: GPU is lost.  Reboot the system to recover it.
2024-03-01T10:03:00+0000 k80-1 kernel: NVRM: loading NVIDIA UNIX x86_64 Kernel Module
"""


def test_lost_gpus_of_the_journal():
    events = xid.losses(LOST + JOURNAL)
    assert [(event["address"], event["count"]) for event in events] == [
        (None, 1), (None, 1), ("0000:05:00.0", 2), ("0000:06:00.0", 1), ("0000:07:00.0", 1)
    ]
    assert events[2]["last"] == "2024-03-01T10:00:09+0000"
    assert xid.losses(JOURNAL) == xid.losses(None) == []
