"""A rank of a qualification that at one of its sums sends itself a signal: one that hangs, or dies.

usage: faulty_rank.py SIGNAL MODE WITHOUT_P2P NOTE LOAD_PY ARGUMENT...

SIGNAL befalls the last rank of two in MODE (`pair` or `load`), and where WITHOUT_P2P is `works`, with peer-to-peer
alone. When it was, in seconds of the monotonic clock, is appended to NOTE. All other ranks are load.py as it is.
"""

import os
import runpy
import signal
import sys
import time
from pathlib import Path

import torch.distributed as dist

# Sums that are right before: the communicator stands by then, and under load the watcher has heard of the rank.
SUMS = {"pair": 3, "load": 50}


def main() -> None:
    name, mode, without, note, *command = sys.argv[1:]
    asked = dict(zip(command[1::2], command[2::2], strict=True))
    is_faulty = (
        (asked["--mode"], asked["--world"], asked["--rank"]) == (mode, "2", "1")
        and not (without == "works" and os.environ.get("NCCL_P2P_DISABLE") == "1")
    )  # fmt: skip
    sums, all_reduce = [], dist.all_reduce

    def fail_at_last(tensor):
        sums.append(tensor)
        if len(sums) > SUMS[mode]:
            with Path(note).open("a") as stream:
                stream.write(f"{time.monotonic()}\n")
            os.kill(os.getpid(), signal.Signals[name])
        return all_reduce(tensor)

    if is_faulty:
        dist.all_reduce = fail_at_last
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


main()
