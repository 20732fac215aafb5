#!/usr/bin/env python3
"""The work of one rank of a qualification, on the Python of the serving environment.

Prints JSON lines: `working` about once a second, `wrong` with what was wrong, `done` at the end. Ranks find one another
by a file, so that no port is taken.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

# Rows of the square matrices. One product of 4096 rows takes 50 ms at 2.7 TFLOP/s.
ROWS = {"cuda": 4096, "cpu": 384}
# Elements of the vector that the ranks sum.
ELEMENTS = {"cuda": 4 * 2**20, "cpu": 2**16}
# Share of the root mean square of A (B x) that a row of (A B) x may be off: fp32 rounding is a hundred times smaller,
# one wrong element a hundred times larger.
TOLERANCE = 1e-4
# Longer than the watcher's limits, so the watcher reports a hang first.
RENDEZVOUS = datetime.timedelta(minutes=10)
WRONG = 3  # exit status


def report(event: str, **content: object) -> None:
    print(json.dumps(dict(content, event=event)), flush=True)


class WrongResult(Exception):
    """A device computed garbage."""


class Product:
    """A product of two fp32 matrices that is computed over and over; each result has the bits of the first."""

    def __init__(self, device: torch.device, rows: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        a, b = (torch.randn(rows, rows, generator=generator) for _ in range(2))
        self.a, self.b = a.to(device), b.to(device)
        self.first = self.a @ self.b
        self.result = torch.empty_like(self.first)
        self.compare(a, b, generator)

    def compare(self, a: torch.Tensor, b: torch.Tensor, generator: torch.Generator) -> None:
        """Compare the first result with a reference: for any x, (A B) x is A (B x), in double precision on the CPU."""
        x = torch.randn(a.shape[0], generator=generator, dtype=torch.float64)
        reference = a.double() @ (b.double() @ x)
        difference = (self.first.cpu().double() @ x - reference).abs() / reference.square().mean().sqrt()
        # A row that is not a number is wrong too.
        wrong = int((~(difference <= TOLERANCE)).sum())
        if wrong:
            raise WrongResult(f"{wrong} of {len(x)} rows of the first product are off; worst by {difference.max():.3g}")

    def again(self) -> None:
        """Compute it once more."""
        torch.mm(self.a, self.b, out=self.result)

    def check(self) -> None:
        """Compare the last result with the first. Waits for the device."""
        if not torch.equal(self.result, self.first):
            wrong = int((self.result != self.first).sum())
            raise WrongResult(f"{wrong} of {self.first.numel()} elements of a product differ from its first result")


class Sum:
    """A vector that all ranks sum; each sum is a whole number, so it is exact in fp32. Its last element is a vote."""

    def __init__(self, device: torch.device, elements: int, rank: int, world: int) -> None:
        base = (torch.arange(elements) % 1000).float()
        self.mine = (base + rank).to(device)
        self.expected = (world * base + world * (world - 1) // 2)[:-1].to(device)
        self.result = torch.empty_like(self.mine)

    def again(self, vote: bool) -> bool:
        """Sum once more and compare; whether any rank voted."""
        self.result.copy_(self.mine)
        self.result[-1] = float(vote)
        dist.all_reduce(self.result)
        if not torch.equal(self.result[:-1], self.expected):
            wrong = int((self.result[:-1] != self.expected).sum())
            raise WrongResult(f"{wrong} of {len(self.expected)} elements of a sum over the ranks are wrong")
        return bool(self.result[-1] > 0)


def join(arguments: argparse.Namespace) -> None:
    """Find the other ranks."""
    dist.init_process_group(
        "gloo" if arguments.device == "cpu" else "nccl", init_method=f"file://{arguments.rendezvous}",
        rank=arguments.rank, world_size=arguments.world, timeout=RENDEZVOUS,
    )


def leave(arguments: argparse.Namespace) -> None:
    """Wait until the other ranks have their results: NCCL may still be sending what they await of this one."""
    done = [arguments.rendezvous.with_name(f"done-{rank}") for rank in range(arguments.world)]
    done[arguments.rank].touch()
    while not all(path.exists() for path in done):
        time.sleep(0.01)


def copies(rank: int) -> bool:
    """Copy between the two devices, each way, and compare. Returns whether they may reach one another directly."""
    here, there = torch.device("cuda", rank), torch.device("cuda", 1 - rank)
    sent = torch.arange(ELEMENTS["cuda"], device=here)
    back = sent.to(there).to(here)
    if not torch.equal(back, sent):
        wrong = int((back != sent).sum())
        raise WrongResult(f"{wrong} of {len(sent)} elements copied to the other GPU and back differ")
    return torch.cuda.can_device_access_peer(rank, 1 - rank)


def pair(arguments: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """Copies between two dies, and a few sums."""
    # Without peer-to-peer the servers' ranks copy through NCCL alone.
    direct = device.type == "cuda" and os.environ.get("NCCL_P2P_DISABLE") != "1"
    peer = copies(arguments.rank) if direct else None
    join(arguments)
    for elements in (2, ELEMENTS[device.type]):
        total = Sum(device, elements, arguments.rank, arguments.world)
        for _ in range(5):
            total.again(False)
    return {"peer": peer}


def load(arguments: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """Products, and sums over the ranks, for the seconds that were asked for."""
    if arguments.world > 1:
        join(arguments)
    product = Product(device, ROWS[device.type], arguments.rank)
    total = Sum(device, ELEMENTS[device.type], arguments.rank, arguments.world) if arguments.world > 1 else None
    begun = reported = time.monotonic()
    products, stop = 0, False
    report("working", products=0)
    while not stop:
        product.again()
        product.check()
        products += 1
        now = time.monotonic()
        stop = now - begun >= arguments.seconds
        if total:
            # The ranks' times end at different moments; this sum makes all stop at the same step.
            stop = total.again(stop)
        if now - reported >= 1:
            reported = now
            report("working", products=products)
    seconds = time.monotonic() - begun
    return {
        "products": products, "seconds": round(seconds, 1),
        "gflops": round(2e-9 * ROWS[device.type] ** 3 * products / seconds, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=("pair", "load"), required=True)
    parser.add_argument("--device", choices=tuple(ROWS), required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--world", type=int, required=True)
    parser.add_argument("--rendezvous", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    # A rank whose watcher has died must not load the host for ever: PR_SET_PDEATHSIG.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    device = torch.device(arguments.device, arguments.rank if arguments.device == "cuda" else 0)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        # The sums' order, and with it the last bits, depend on the number of threads.
        torch.set_num_threads(1)
    try:
        done = {"pair": pair, "load": load}[arguments.mode](arguments, device)
    except WrongResult as wrong:
        report("wrong", what=str(wrong))
        return WRONG
    leave(arguments)
    report("done", **done)
    # Not by return: gloo's threads may abort the process while Python shuts down.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
