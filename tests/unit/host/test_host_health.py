"""Xids, ECC counts and enrolment, from recorded answers."""

import pytest
from host import facts_health

JOURNAL = """\
2024-03-01T10:00:00+0000 k80-1 kernel: NVRM: Xid (PCI:0000:06:00): 79, pid=1234, GPU has fallen off the bus.
2024-03-02T10:00:00+0000 k80-1 kernel: NVRM: Xid (PCI:0000:05:00): 48, An uncorrectable double bit error (DBE)
2024-03-05T11:30:00+0000 k80-1 kernel: NVRM: Xid (PCI:0000:06:00): 79, pid='<unknown>', GPU has fallen off the bus.
2024-03-05T11:30:01+0000 k80-1 kernel: NVRM: A GPU crash dump has been created.
-- Reboot --
"""


def test_xids_by_die_and_number():
    events = facts_health.xids(JOURNAL)
    assert [(event["address"], event["xid"], event["count"]) for event in events] == [
        ("0000:05:00", 48, 1), ("0000:06:00", 79, 2)
    ]
    assert events[1]["last"] == "2024-03-05T11:30:00+0000"
    assert "fallen off the bus" in events[1]["text"]
    assert facts_health.xids("") == facts_health.xids(None) == []


def test_ecc_counts():
    table = "00000000:05:00.0, Enabled, 0, 12\n00000000:06:00.0, Enabled, [N/A], [N/A]\n"
    assert facts_health.ecc(table) == [
        {"address": "00000000:05:00.0", "mode": "Enabled", "volatile": 0, "aggregate": 12},
        {"address": "00000000:06:00.0", "mode": "Enabled", "volatile": None, "aggregate": None},
    ]


@pytest.mark.parametrize("text", ["", None, "Unable to determine the device handle for GPU 0000:06:00.0: GPU is lost."])
def test_no_ecc_counts(text):
    assert facts_health.ecc(text) == []


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
def test_enrolment(answer, state):
    assert facts_health.enrolment(answer) == state
