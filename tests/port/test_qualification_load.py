"""The ranks of a qualification on the serving environment's own Python and torch, over gloo on the CPU."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")

LOAD = Path(__file__).resolve().parents[2] / "roles" / "qualification" / "files" / "load.py"
CPU = torch.device("cpu")

specification: Any = importlib.util.spec_from_file_location("load", LOAD)
load = importlib.util.module_from_spec(specification)
specification.loader.exec_module(load)


def start(directory: Path, mode: str, world: int, seconds: float) -> list[subprocess.Popen]:
    """All ranks of a step, as the qualification starts them."""
    return [
        subprocess.Popen(
            [sys.executable, str(LOAD), "--mode", mode, "--device", "cpu", "--rank", str(rank), "--world", str(world),
             "--rendezvous", str(directory / "rendezvous"), "--seconds", str(seconds)],
            env={"PATH": "/usr/bin:/bin", "GLOO_SOCKET_IFNAME": "lo", "HOME": str(directory)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(world)
    ]


def events(output: str) -> list[dict]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


@pytest.mark.parametrize(("mode", "world"), [("load", 1), ("pair", 2), ("load", 2), ("load", 4)])
def test_ranks(tmp_path, mode, world):
    ranks = start(tmp_path, mode, world, 1.5)
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world, said
    done = [events(text)[-1] for text in said]
    assert {result["event"] for result in done} == {"done"}
    if mode == "load":
        assert len({result["products"] for result in done}) == 1, "all stop at the same sum"
        assert all(result["products"] > 0 for result in done), done
        # The rank whose time is up first ends all; one that began later has had less.
        assert max(result["seconds"] for result in done) >= 1.5, done
        assert all(events(text)[0] == {"event": "working", "products": 0} for text in said)
    else:
        assert done == [{"event": "done", "peer": None}] * world


def test_a_rank_that_stays_away_is_waited_for(tmp_path):
    """So that the watcher's limit ends it, not a result that means something else."""
    ranks = start(tmp_path, "load", 2, 0.5)
    ranks[1].kill()
    ranks[1].communicate()
    with pytest.raises(subprocess.TimeoutExpired):
        ranks[0].wait(timeout=15)
    ranks[0].kill()
    ranks[0].communicate()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_leave_together(monkeypatch, capsys, tmp_path, world):
    """One that is done waits for those that still compute: what they await may be on its way from this one."""
    monkeypatch.setattr(load, "pair", lambda arguments, device: {})
    monkeypatch.setattr(load.ctypes, "CDLL", lambda name: type("C", (), {"prctl": staticmethod(lambda *a: 0)}))
    monkeypatch.setattr(load.os, "_exit", lambda status: None)
    ranks = []
    for rank in range(world):
        assert all(other.is_alive() for other in ranks)
        assert capsys.readouterr().out == ""
        arguments = ["load.py", "--mode", "pair", "--device", "cpu", "--rank", str(rank), "--world", str(world)]
        monkeypatch.setattr(
            sys, "argv", [*arguments, "--seconds", "0", "--rendezvous", str(tmp_path / "rendezvous")]
        )
        ranks.append(threading.Thread(target=load.main, daemon=True))
        ranks[-1].start()
        ranks[-1].join(0.2)
    for rank in ranks:
        rank.join(10)
        assert not rank.is_alive()
    assert events(capsys.readouterr().out) == [{"event": "done"}] * world


def test_a_rank_does_not_outlive_its_watcher(tmp_path):
    """The watcher is killed, as the kernel does for its memory."""
    watcher = subprocess.Popen(
        [sys.executable, "-c",
         "import subprocess, sys; p = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE); "
         "print(p.pid, p.stdout.readline(), flush=True); p.wait()",
         sys.executable, str(LOAD), "--mode", "load", "--device", "cpu", "--rank", "0", "--world", "1",
         "--rendezvous", str(tmp_path / "rendezvous"), "--seconds", "60"],
        stdout=subprocess.PIPE, text=True,
    )
    rank = Path("/proc") / watcher.stdout.readline().split()[0]
    assert rank.exists()
    watcher.kill()
    watcher.communicate()
    latest = time.monotonic() + 10
    while rank.exists() and "State:\tZ" not in (rank / "status").read_text():
        assert time.monotonic() < latest, "it goes on"
        time.sleep(0.1)


def flip(tensor: Any) -> None:
    """Change the lowest bit of one element."""
    tensor.view(torch.int32).view(-1)[7] ^= 1


def test_one_wrong_bit_of_a_product_is_found():
    product = load.Product(CPU, 64, 0)
    product.again()
    product.check()
    flip(product.result)
    with pytest.raises(load.WrongResult, match="1 of 4096 elements of a product differ"):
        product.check()


@pytest.mark.parametrize("garbage", [0.0, 1e3, float("nan"), float("inf")])
def test_a_first_product_that_is_garbage_is_found(garbage):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 64, generator=generator) for _ in range(2))
    product = load.Product(CPU, 64, 0)
    product.compare(a, b, generator)
    product.first[3, 5] = garbage
    with pytest.raises(load.WrongResult, match="1 of 64 rows of the first product are off"):
        product.compare(a, b, generator)


def test_one_wrong_element_of_a_sum_is_found(monkeypatch):
    total = load.Sum(CPU, 100, 1, 4)

    def all_reduce(vector: Any) -> None:
        """What four ranks give, none of which votes."""
        vector[:-1] = torch.arange(99) % 1000 * 4 + 6

    monkeypatch.setattr(load.dist, "all_reduce", all_reduce)
    assert total.again(False) is False
    assert total.again(True) is True
    monkeypatch.setattr(load.dist, "all_reduce", lambda vector: (all_reduce(vector), flip(vector)))
    with pytest.raises(load.WrongResult, match="1 of 99 elements of a sum"):
        total.again(False)


def test_garbage_is_said_with_a_status(monkeypatch, capsys, tmp_path):
    def garbage(arguments: Any, device: Any) -> dict:
        raise load.WrongResult("3 of 4 elements")

    monkeypatch.setattr(load, "load", garbage)
    monkeypatch.setattr(load.ctypes, "CDLL", lambda name: type("C", (), {"prctl": staticmethod(lambda *a: 0)}))
    arguments = ["load.py", "--mode", "load", "--device", "cpu", "--rank", "0", "--world", "1", "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--rendezvous", str(tmp_path / "rendezvous")])
    assert load.main() == load.WRONG
    assert events(capsys.readouterr().out) == [{"event": "wrong", "what": "3 of 4 elements"}]
