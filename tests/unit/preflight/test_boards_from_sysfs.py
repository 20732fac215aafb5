"""From a sysfs tree to the decision: what is read and what is judged fit together."""

import sys
from pathlib import Path

import pytest
from ansible_collections.kepler.vllm.plugins.filter.kepler_boards import (
    bar_findings,
    board_findings,
    gpu_numbers,
    history_findings,
    isolation_findings,
    link_findings,
    profile_gpus,
    unlisted_findings,
)
from rendered import PROFILE

GPU = {"gpu": PROFILE["gpu"], "group": "k80-hosts"}
UNIT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bus(tmp_path, monkeypatch):
    """The made-up tree of the tests of `pci`."""
    monkeypatch.syspath_prepend(str(UNIT / "gpu"))
    from test_pci import Bus

    yield Bus(tmp_path)
    sys.modules.pop("test_pci")


def judged(bus):
    """(severity, found) of all findings about boards and bus."""
    host = {**GPU, "pci": bus.read(), "iommu": {"groups": 0, "passthrough": False}}
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
    assert (profile_gpus(host, PROFILE["gpu"]), gpu_numbers(host)) == (4, [0, 1, 2, 3])


def test_one_board(bus):
    bus.board("0000:00:02.0", 3)
    sound(bus, "0000:03:00.0")
    host, findings = judged(bus)
    assert findings == []
    assert profile_gpus(host, PROFILE["gpu"]) == 2


def test_a_board_that_lacks_a_die(bus):
    bus.board("0000:00:02.0", 3)
    bus.board("0000:00:03.0", 0x83, dies=1)
    bus.slot("6", "0000:83:00")
    sound(bus, "0000:03:00.0", "0000:83:00.0")
    assert judged(bus)[1] == [("warning", "a Tesla K80 board with 1 of 2 GPUs, 0000:85:00.0 (slot 6)")]


def test_a_k40_beside_k80s(bus):
    bus.bridge("0000:00:01.0")
    bus.add("0000:00:01.0", "0000:01:00.0", device="0x1023")
    bus.board("0000:00:02.0", 3)
    sound(bus, "0000:03:00.0")
    host, findings = judged(bus)
    assert findings == [("warning", "a Tesla K40m (sm_35) at 0000:01:00.0")]
    assert gpu_numbers(host) == [1, 2]


def test_a_firmware_that_maps_nothing_above_4g(bus):
    bus.board("0000:00:02.0", 3, resource="0xc6000000 0xc6ffffff 0x40200\n0x0 0x3ffffffff 0x14220c\n")
    sound(bus, "0000:03:00.0")
    assert [severity for severity, _ in judged(bus)[1]] == ["error", "error"]


def test_acs_and_a_narrow_link(bus):
    bus.board("0000:00:02.0", 3)
    assert judged(bus)[1] == [
        ("warning", "the board behind 0000:03:00.0: a link of 8 lanes"),
        ("warning", "ACS sends traffic between GPUs up to the root at 0000:04:10.0"),
    ]


def function(address, device, driver, **more):
    return {"address": address, "device": device, "driver": driver, "slot": None, **more}


DIES = [function(f"0000:{bus}:00.0", "0x102d", "nvidia") for bus in ("05", "06", "84", "85")]
UNBOUND = [dict(die, driver=None) for die in DIES]
FIRST = "0000:01:00.0"


@pytest.mark.parametrize(
    ("first", "dies", "numbers"),
    [
        (("0x10d8", None), DIES, [0, 1, 2, 3]),  # NVS 300
        (("0x0df8", "nouveau"), DIES, [0, 1, 2, 3]),  # Quadro 600
        (("0x128b", "nvidia"), DIES, [1, 2, 3, 4]),  # GT 710
        (("0x128b", "vfio-pci"), DIES, [0, 1, 2, 3]),
        (("0x128b", "nouveau"), DIES, [0, 1, 2, 3]),
        (("0x128b", None), UNBOUND, [1, 2, 3, 4]),
        (("0x128b", "nouveau"), UNBOUND, [1, 2, 3, 4]),
        (("0x128b", "vfio-pci"), UNBOUND, [0, 1, 2, 3]),
        (("0x0df8", None), UNBOUND, [0, 1, 2, 3]),
        (("0x0a65", "nouveau"), UNBOUND, [0, 1, 2, 3]),  # GeForce 210
        (("0x1140", None), UNBOUND, [0, 1, 2, 3]),  # GF117
        (("0x1200", None), UNBOUND, [0, 1, 2, 3]),  # GTX 560 Ti
        (("0x2331", None), UNBOUND, [0, 1, 2, 3]),  # H100
        (("0x2684", None), UNBOUND, [0, 1, 2, 3]),  # RTX 4090
        (("0x2b85", None), UNBOUND, [0, 1, 2, 3]),  # RTX 5090
        (("0x0fc0", None), UNBOUND, [1, 2, 3, 4]),  # GT 640
        (("0x1005", None), UNBOUND, [1, 2, 3, 4]),  # GTX TITAN
        (("0x11c0", None), UNBOUND, [1, 2, 3, 4]),  # GTX 660
        (("0x1381", None), UNBOUND, [1, 2, 3, 4]),  # GTX 750
        (("0x1db6", None), UNBOUND, [1, 2, 3, 4]),  # V100
        (("0x20b0", None), UNBOUND, [1, 2, 3, 4]),  # A100
        (("0x2531", None), UNBOUND, [1, 2, 3, 4]),  # RTX A2000
    ],
)
def test_boards_that_cuda_does_not_see_are_not_counted(first, dies, numbers):
    assert gpu_numbers({**GPU, "pci": [function(FIRST, *first), *dies]}) == numbers


def test_what_the_loaded_driver_lists_is_counted():
    pci = [function(FIRST, "0x128b", "nvidia"), *DIES]
    held = [die["address"] for die in DIES]
    assert gpu_numbers({**GPU, "pci": pci, "nvidia_gpus": held}) == [0, 1, 2, 3]
    assert gpu_numbers({**GPU, "pci": pci, "nvidia_gpus": [FIRST, *held]}) == [1, 2, 3, 4]
    assert gpu_numbers({**GPU, "pci": pci, "nvidia_gpus": [FIRST, *held[1:]]}) == [1, 2, 3]
    # A driver that does not serve the K80 holds the other board: the one to come counts.
    assert gpu_numbers({**GPU, "pci": [pci[0], *UNBOUND], "nvidia_gpus": [FIRST]}) == [1, 2, 3, 4]
    assert gpu_numbers({**GPU, "pci": pci, "nvidia_gpus": None}) == [1, 2, 3, 4]


def well(*addresses):
    return [{"address": address, "mode": "Enabled", "volatile": 0, "aggregate": 0} for address in addresses]


def test_lost_boards_are_not_counted():
    pci = [function(FIRST, "0x128b", "nvidia"), *DIES]
    others = [f"0000{address}" for address in (FIRST, "0000:06:00.0", "0000:84:00.0", "0000:85:00.0")]
    for fault in ("Unable to determine the device handle for GPU 0000:05:00.0: GPU is lost.",
                  "00000000:05:00.0, [GPU is lost], [GPU is lost], [GPU is lost]"):
        for address in ("0000:05:00.0", "00000000:05:00.0", "0000:05:00"):
            assert gpu_numbers({**GPU, "pci": pci, "ecc": [{"address": address, "fault": fault}]}) == [1, 2, 3]
    assert gpu_numbers({**GPU, "pci": pci, "ecc": well(*others)}) == [1, 2, 3]
    unknown = {"address": "00000000:05:00.0", "fault": "00000000:05:00.0, ERR!, ERR!, ERR!"}
    assert gpu_numbers({**GPU, "pci": pci, "ecc": [*well(*others), unknown]}) == [1, 2, 3, 4]


def test_what_is_no_gpu_is_not_counted():
    chipset = function("0000:00:01.0", "0x0a85", None, **{"class": "0x050000"})
    switch = function("0000:02:00.0", "0x1af1", "nvidia", **{"class": "0x068000"})
    gpu = function("0000:03:00.0", "0x128b", "nvidia", **{"class": "0x030000"})
    assert gpu_numbers({**GPU, "pci": [chipset, switch, gpu, *DIES]}) == [1, 2, 3, 4]


def test_class_of_a_function_is_read(bus):
    bus.add("0000:05:00.0")
    (bus.devices / "0000:05:00.0" / "class").write_text("0x030200\n")
    assert bus.read()[0]["class"] == "0x030200"


def test_gpus_of_the_driver_are_read(bus, tmp_path):
    from ansible_collections.kepler.vllm.plugins.module_utils.gpu import pci

    assert pci.driver_gpus(str(tmp_path / "none")) is None
    (tmp_path / "gpus" / "0000:05:00.0").mkdir(parents=True)
    assert pci.driver_gpus(str(tmp_path / "gpus")) == ["0000:05:00.0"]


@pytest.mark.parametrize(
    ("fault", "step"),
    [("Failed to initialize NVML: Driver/library version mismatch", "Boot the host"),
     ("00000000:05:00.0, ERR!, ERR!, ERR!", "power"), ("nvidia-smi did not answer within 60 s", "power")],
)
def test_fault_of_nvidia_smi_is_a_finding(fault, step):
    (found,) = history_findings({"xids": [], "ecc": [{"address": None, "fault": fault}]})
    assert fault in found["found"]
    assert step in found["next_step"]


def test_gpu_lost_in_the_journal_is_a_finding():
    event = {"address": "0000:05:00.0", "count": 2, "last": "2024-03-01T10:00:09+0000",
             "text": "GPU 0000:05:00.0: RmInitAdapter failed! (0x26:0xffff:1113)"}
    (found,) = history_findings({"xids": [], "ecc": [], "driver_faults": [event]})
    assert "RmInitAdapter failed" in found["found"] and "2 times" in found["found"]


def test_die_that_nvidia_smi_passes_over_is_a_finding():
    rows = well(*(f"0000{die['address']}" for die in DIES[1:]))
    (found,) = unlisted_findings({**GPU, "pci": DIES, "ecc": rows})
    assert "0000:05:00.0" in found["found"]
    named = {"address": "0000:05:00.0", "fault": "GPU is lost"}
    assert unlisted_findings({**GPU, "pci": DIES, "ecc": [*rows, named]}) == []
    assert unlisted_findings({**GPU, "pci": DIES, "ecc": []}) == []
    assert unlisted_findings({**GPU, "pci": UNBOUND, "ecc": rows}) == []
