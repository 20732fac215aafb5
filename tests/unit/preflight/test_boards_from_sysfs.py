"""From a sysfs tree to the decision: what is read and what is judged fit together."""

import sys
from pathlib import Path

import pytest
from kepler_boards import bar_findings, board_findings, isolation_findings, k80_dies, k80_numbers, link_findings

UNIT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bus(tmp_path, monkeypatch):
    """The made-up tree of the tests of facts_pci."""
    monkeypatch.syspath_prepend(str(UNIT.parents[1] / "plugins" / "module_utils"))
    monkeypatch.syspath_prepend(str(UNIT / "host"))
    from test_host_pci import Bus

    yield Bus(tmp_path)
    sys.modules.pop("test_host_pci")


def judged(bus):
    """(severity, found) of all findings about boards and bus."""
    host = {"pci": bus.read(), "iommu": {"groups": 0, "passthrough": False}}
    findings = board_findings(host) + bar_findings(host) + link_findings(host) + isolation_findings(host, False)
    return host, [(item["severity"], item["found"]) for item in findings]


def sound(bus, *upstream):
    """Take ACS and the narrow link, which the tree has for other tests, off the boards at these upstream ports."""
    for address in upstream:
        directory = (bus.devices / address).resolve()
        (directory / "current_link_width").write_text("16\n")
        for config in directory.glob("*/config"):
            config.write_bytes(bytes(4096))


def test_two_boards(bus):
    bus.board("0000:00:02.0", 3)
    bus.board("0000:00:03.0", 0x83)
    sound(bus, "0000:03:00.0", "0000:83:00.0")
    host, findings = judged(bus)
    assert findings == []
    assert (k80_dies(host), k80_numbers(host)) == (4, [0, 1, 2, 3])


def test_one_board(bus):
    bus.board("0000:00:02.0", 3)
    sound(bus, "0000:03:00.0")
    host, findings = judged(bus)
    assert findings == []
    assert k80_dies(host) == 2


def test_a_board_that_lacks_a_die(bus):
    bus.board("0000:00:02.0", 3)
    bus.board("0000:00:03.0", 0x83, dies=1)
    bus.slot("6", "0000:83:00")
    sound(bus, "0000:03:00.0", "0000:83:00.0")
    assert judged(bus)[1] == [("warning", "a K80 board with one die alone, 0000:85:00.0 (slot 6)")]


def test_a_k40_beside_k80s(bus):
    bus.bridge("0000:00:01.0")
    bus.add("0000:00:01.0", "0000:01:00.0", device="0x1023")
    bus.board("0000:00:02.0", 3)
    sound(bus, "0000:03:00.0")
    host, findings = judged(bus)
    assert findings == [("warning", "a Tesla K40m at 0000:01:00.0")]
    assert k80_numbers(host) == [1, 2]


def test_a_firmware_that_maps_nothing_above_4g(bus):
    bus.board("0000:00:02.0", 3, resource="0xc6000000 0xc6ffffff 0x40200\n0x0 0x3ffffffff 0x14220c\n")
    sound(bus, "0000:03:00.0")
    assert [severity for severity, _ in judged(bus)[1]] == ["error", "error"]


def test_acs_and_a_narrow_link(bus):
    bus.board("0000:00:02.0", 3)
    assert judged(bus)[1] == [
        ("warning", "the board behind 0000:03:00.0: a link of 8 lanes"),
        ("warning", "ACS sends traffic between dies up to the root at 0000:04:10.0"),
    ]
