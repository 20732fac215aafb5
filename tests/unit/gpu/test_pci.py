"""Boards, bridges, BARs, links and ACS as sysfs shows them, read from made-up trees."""

import os
import struct

import pytest
from module_utils.gpu import pci

K80, K40 = "0x102d", "0x1023"
MAPPED = "0x00000000c6000000 0x00000000c6ffffff 0x0000000000040200\n0x0000033800000000 0x0000033bffffffff 0x14220c\n"
UNMAPPED = MAPPED.replace("0x0000033800000000 0x0000033bffffffff", "0x0000000000000000 0x00000003ffffffff")
ABSENT = MAPPED.replace("0x0000033800000000 0x0000033bffffffff", "0x0000000000000000 0x0000000000000000")


def extended(*capabilities):
    """A configuration space with `capabilities`: (number, control register), each of 16 bytes from 0x100 on."""
    config = bytearray(4096)
    for index, (number, control) in enumerate(capabilities):
        offset = 0x100 + 16 * index
        following = offset + 16 if index + 1 < len(capabilities) else 0
        struct.pack_into("<IHH", config, offset, number | 1 << 16 | following << 20, 0, control)
    return bytes(config)


class Bus:
    """A sysfs tree: functions below their bridges, and the flat directory of links to them."""

    def __init__(self, root):
        self.root = root
        self.devices = root / "bus" / "pci" / "devices"
        self.devices.mkdir(parents=True)

    def add(self, *path, vendor="0x10de", device=K80, **files):
        """A function at the addresses `path` from its root port down."""
        directory = self.root.joinpath("devices", "pci0000:00", *path)
        directory.mkdir(parents=True)
        (directory / "vendor").write_text(vendor + "\n")
        (directory / "device").write_text(device + "\n")
        for name, content in files.items():
            data = content if isinstance(content, bytes) else str(content).encode()
            (directory / name).write_bytes(data)
        (self.devices / path[-1]).symlink_to(directory)

    def bridge(self, *path, **files):
        self.add(*path, vendor="0x10b5", device="0x8747", **files)

    def board(self, root_port, first, dies=2, **files):
        """A K80 board behind `root_port`: an upstream port at bus `first`, the dies two and three buses on."""
        up = "0000:%02x:00.0" % first
        down = ["0000:%02x:%s.0" % (first + 1, port) for port in ("08", "10")]
        if not (self.devices / root_port).exists():
            self.bridge(root_port)
        self.bridge(root_port, up, current_link_width="8\n", max_link_width="16\n")
        for number in range(2):
            self.bridge(root_port, up, down[number], config=extended((0x0001, 0), (0x000D, 0x1D if number else 0x01)))
        for number in range(dies):
            files.setdefault("resource", MAPPED)
            self.add(root_port, up, down[number], "0000:%02x:00.0" % (first + 2 + number), **files)

    def slot(self, name, address):
        directory = self.root / "bus" / "pci" / "slots" / name
        directory.mkdir(parents=True)
        (directory / "address").write_text(address + "\n")

    def read(self):
        return pci.nvidia_devices(str(self.devices))


@pytest.fixture
def bus(tmp_path):
    return Bus(tmp_path)


def test_two_boards_behind_their_switches(bus):
    bus.board("0000:00:02.0", 3)
    bus.board("0000:00:03.0", 0x83)
    dies = bus.read()
    assert [die["address"] for die in dies] == ["0000:05:00.0", "0000:06:00.0", "0000:85:00.0", "0000:86:00.0"]
    assert [die["bridges"][-2]["address"] for die in dies] == ["0000:03:00.0"] * 2 + ["0000:83:00.0"] * 2
    assert [bridge["address"] for bridge in dies[1]["bridges"]] == ["0000:00:02.0", "0000:03:00.0", "0000:04:10.0"]


def test_one_board_that_lacks_a_die_is_named_by_its_slot(bus):
    bus.slot("1", "0000:00:02")
    bus.slot("4", "0000:03:00")
    bus.slot("9", "0000:83:00")
    bus.board("0000:00:02.0", 3, dies=1)
    (die,) = bus.read()
    assert die["slot"] == "4"


def test_a_tree_without_bridges(bus):
    bus.add("0000:05:00.0")
    (die,) = bus.read()
    assert die["bridges"] == []
    assert (die["slot"], die["bar1"], die["width"], die["iommu"]) == (None, None, None, None)


@pytest.mark.parametrize(
    ("resource", "start", "size"),
    [(MAPPED, 0x33800000000, 16 * 2**30), (UNMAPPED, 0, 16 * 2**30), (ABSENT, 0, 0)],
    ids=["mapped", "not placed", "taken away"],
)
def test_the_bar_of_a_dies_memory(bus, resource, start, size):
    bus.add("0000:05:00.0", resource=resource)
    assert bus.read()[0]["bar1"] == {"start": start, "size": size}


@pytest.mark.parametrize("text", [None, "", "0x0 0x0 0x0"])
def test_no_second_bar(text):
    assert pci.bar1(text) is None


def test_links_of_die_and_board(bus):
    bus.board("0000:00:02.0", 3, current_link_width="16", max_link_width="16")
    die = bus.read()[0]
    assert (die["width"], die["max_width"]) == (16, 16)
    assert (die["bridges"][1]["width"], die["bridges"][1]["max_width"]) == (8, 16)


def test_the_iommu_of_a_die(bus):
    bus.add("0000:05:00.0")
    group = bus.root / "kernel" / "iommu_groups" / "7"
    group.mkdir(parents=True)
    (group / "type").write_text("DMA\n")
    (bus.root / "devices" / "pci0000:00" / "0000:05:00.0" / "iommu_group").symlink_to(group)
    assert bus.read()[0]["iommu"] == "DMA"
    assert pci.iommu(str(group.parent), "ro intel_iommu=on") == {"groups": 1, "passthrough": False}
    assert pci.iommu(str(group.parent), "ro iommu=pt")["passthrough"]
    assert pci.iommu(str(group.parent), "iommu.passthrough=1")["passthrough"]
    assert not pci.iommu(str(group.parent), "iommu=pt2")["passthrough"]
    assert pci.iommu(str(bus.root / "none"), None) == {"groups": 0, "passthrough": False}


def test_acs_of_the_bridges(bus):
    bus.board("0000:00:02.0", 3)
    assert [bridge["acs"] for bridge in bus.read()[0]["bridges"]] == [None, None, False]
    assert [bridge["acs"] for bridge in bus.read()[1]["bridges"]] == [None, None, True]


@pytest.mark.parametrize(
    ("control", "redirects"), [(0x00, False), (0x01, False), (0x04, True), (0x08, True), (0x1D, True), (0x50, False)]
)
def test_acs_redirection_is_two_bits_of_the_control_register(control, redirects):
    assert pci.acs_redirects(extended((0x0001, 0), (0x0019, 0xFFFF), (0x000D, control))) is redirects


def loop():
    config = bytearray(4096)
    struct.pack_into("<I", config, 0x100, 0x0001 | 1 << 16 | 0x100 << 20)
    return bytes(config)


@pytest.mark.parametrize(
    "config", [b"", bytes(64), bytes(256), bytes(4096), b"\xff" * 4096, extended((0x0001, 0)), loop()],
    ids=["nothing", "no privileges", "no extended space", "empty", "gone", "another capability", "a loop"],
)
def test_no_acs(config):
    assert pci.acs_redirects(config) is None


def test_a_configuration_that_may_not_be_read(tmp_path):
    assert pci.read_bytes(str(tmp_path / "config")) == b""


def test_the_tree_is_only_read(bus):
    bus.board("0000:00:02.0", 3)
    before = sorted(os.walk(str(bus.root)))
    bus.read()
    assert sorted(os.walk(str(bus.root))) == before


def test_a_k40_beside_k80s(bus):
    bus.board("0000:00:02.0", 3)
    bus.bridge("0000:00:03.0")
    bus.add("0000:00:03.0", "0000:82:00.0", device=K40)
    assert [device["device"] for device in bus.read()] == [K80, K80, K40]


def functions_on(root, functions):
    """A sysfs directory with `functions`: address -> (vendor, device, driver or None)."""
    for address, (vendor, device, driver) in functions.items():
        directory = root / address
        directory.mkdir(parents=True)
        (directory / "vendor").write_text(vendor + "\n")
        (directory / "device").write_text(device + "\n")
        if driver:
            (directory / "driver").symlink_to("../../../bus/pci/drivers/" + driver)
    return str(root)


NEIGHBORS = {"0000:00:1f.2": ("0x8086", "0x8d02", "ahci"), "0000:03:00.0": ("0x8086", "0x1533", "igb")}
BOARD = {"0000:06:00.0": ("0x10de", K80, "nvidia"), "0000:07:00.0": ("0x10de", K80, "nvidia")}
BOARD_2 = {"0000:84:00.0": ("0x10de", K80, "nouveau"), "0000:85:00.0": ("0x10de", K80, None)}


@pytest.mark.parametrize(
    ("functions", "devices", "drivers"),
    [
        (dict(NEIGHBORS, **dict(BOARD, **BOARD_2)), [K80] * 4, ["nvidia", "nvidia", "nouveau", None]),
        (dict(NEIGHBORS, **BOARD), [K80] * 2, ["nvidia", "nvidia"]),
        (NEIGHBORS, [], []),
        (dict(BOARD, **{"0000:82:00.0": ("0x10de", K40, None)}), [K80, K80, K40], ["nvidia", "nvidia", None]),
    ],
    ids=["four dies", "two dies", "none", "a K40 beside a K80"],
)
def test_nvidia_functions_on_the_pci_bus(tmp_path, functions, devices, drivers):
    found = pci.nvidia_devices(functions_on(tmp_path / "devices", functions))
    assert [device["device"] for device in found] == devices
    assert [device["driver"] for device in found] == drivers
    assert [device["address"] for device in found] == sorted(device["address"] for device in found)


def test_no_pci_bus(tmp_path):
    assert pci.nvidia_devices(str(tmp_path / "nothing")) == []


def test_a_pci_function_without_vendor_is_passed_over(tmp_path):
    (tmp_path / "0000:00:00.0").mkdir()
    assert pci.nvidia_devices(str(tmp_path)) == []


@pytest.mark.parametrize("text", [None, "", "one line\n", "a\nb c\n", "a\n0x1 0xzz 0x3\n", "a\n0x1 0x2\n"])
def test_resource_that_is_none_has_no_bar(text):
    assert pci.bar1(text) is None
