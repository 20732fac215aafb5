"""RPM's order of versions, and what an entry of the lock accepts."""

import random
import shutil
import subprocess

import pytest
from ansible_collections.kepler.vllm.plugins.module_utils import rpms

KNOWN = [
    ("1.0", "1.0", 0), ("1.0", "2.0", -1), ("2.0.1", "2.0", 1), ("3.0.13", "3.0.9", 1), ("1.0a", "1.0", 1),
    ("1.0~rc1", "1.0", -1), ("1.0~rc1", "1.0~rc2", -1), ("1.0^git1", "1.0", 1), ("1.0^git1", "1.0.1", -1),
    ("553.el8_10", "553.89.1.el8_10", -1), ("10.20180224.el8", "9.20190101.el8", 1), ("1a", "1.1", -1), ("01", "1", 0),
    ("1.1.1k", "1.1.1g", 1), ("1_0", "1.0", 0), ("12.el8_9", "14.el8_10", -1), ("", "1", -1),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second", "order"), KNOWN)
def test_versions_are_ordered(first, second, order):
    assert rpms.compare(first, second) == order
    assert rpms.compare(second, first) == -order


def test_the_order_is_rpms_own():
    if not shutil.which("rpm"):
        pytest.skip("rpm: none here")
    chosen = random.Random()
    texts = ["".join(chosen.choices("0123459abz._~^", k=chosen.randint(1, 7))) for _ in range(600)]
    pairs = [*zip(texts[::2], texts[1::2], strict=True), *((one, two) for one, two, _ in KNOWN if one)]
    lua = "\n".join(f'print(rpm.vercmp("{one}", "{two}") .. " ")' for one, two in pairs)
    done = subprocess.run(["rpm", "--eval", f"%{{lua:{lua}}}"], capture_output=True, text=True, check=True)
    orders = [int(line) for line in done.stdout.split()]
    assert len(orders) == len(pairs)
    assert [pair for pair, order in zip(pairs, orders, strict=True) if rpms.compare(*pair) != order] == []


def package(version, epoch=0, name="dkms", arch="noarch"):
    version, _, release = version.partition("-")
    return {"name": name, "epoch": epoch, "version": version, "release": release, "arch": arch, "repo": "epel"}


EXACT = {"name": "dkms", "epoch": 0, "version": "3.0.13", "release": "1.el8", "arch": "noarch"}
LEAST = {"name": "dkms", "minimum": "0:3.0.13-1.el8", "arch": "noarch"}


@pytest.mark.parametrize(("entry", "offered", "accepted"), [
    (EXACT, package("3.0.13-1.el8"), True),
    (EXACT, package("3.0.13-2.el8"), False),
    (EXACT, package("3.0.13-1.el8", epoch=1), False),
    (EXACT, package("3.0.13-1.el8", epoch=None), True),
    (EXACT, package("3.0.13-1.el8", arch="x86_64"), False),
    (LEAST, package("3.0.13-1.el8"), True),
    (LEAST, package("3.2.2-1.el8"), True),
    (LEAST, package("3.0.9-7.el8"), False),
    (LEAST, package("2.0-1", epoch=1), True),
    (LEAST, package("9.9-1", name="dkms-extra"), False),
    ({"name": "dkms", "minimum": "3.0.13"}, package("3.0.13-0.1"), True),
    ({"name": "dkms"}, package("0.1-1"), True),
    ({"name": "dkms"}, package("0.1-1", arch="i686"), False),
])  # fmt: skip
def test_what_an_entry_accepts(entry, offered, accepted):
    assert rpms.accepts(entry, offered) is accepted


def test_an_entry_as_dnf_takes_it():
    assert rpms.spec(EXACT) == "dkms-0:3.0.13-1.el8.noarch"
    assert rpms.spec(LEAST) == "dkms >= 0:3.0.13-1.el8"
    assert rpms.spec({"name": "dkms"}) == "dkms"


def test_the_newest_is_by_epoch_first():
    offered = [package("3.10-1"), package("3.9-1"), package("1.0-1", epoch=1)]
    assert rpms.newest(offered) is offered[2]
    assert rpms.newest(offered[:2]) is offered[0]


@pytest.mark.parametrize(("first", "second", "order"), [
    ((0, "1", "2"), (0, "1", "10"), -1), ((0, "2", "1"), (0, "1", "9"), 1), ((1, "1", "1"), (0, "9", "9"), 1),
    ((None, "1", "2"), (3, "1", "2"), 0), ((0, "1", None), (0, "1", "9"), 0), ((0, "2", None), (0, "1", "9"), 1),
])  # fmt: skip
def test_release_decides_between_equal_versions(first, second, order):
    found = rpms.compare_evr(first, second)
    assert (found > 0) - (found < 0) == order
    assert (rpms.compare_evr(second, first) > 0) - (rpms.compare_evr(second, first) < 0) == -order


def test_kernel_is_whole_whatever_else_is_of_its_version():
    def of(name, release):
        return {"name": name, "version": "4.18.0", "release": release, "arch": "x86_64"}

    unit = [{"name": "kernel-core"}, {"name": "kernel-devel"}]
    offered = [of("kernel-core", "553.el8_10"), of("kernel-devel", "553.el8_10"), of("kernel-debug", "553.el8_10"),
               of("kernel-core", "553.9.el8_10"), of("kernel-debug", "553.9.el8_10")]
    assert rpms.whole_kernels(unit, offered) == ["4.18.0-553.el8_10.x86_64"]
