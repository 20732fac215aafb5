"""What a measurement was made on: every table names it."""

import datetime
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from vllm_kepler.ops.library import library


def describe() -> dict[str, str]:
    """GPU, driver, torch, kernel library and date of this run."""
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    ).stdout.split("\n")[0]
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver,
        "torch": torch.__version__,
        "library": f"{library().version} ({', '.join(library().architectures)})",
        "date": datetime.date.today().isoformat(),
    }


def heading(machine: dict[str, str]) -> str:
    """One line for a table."""
    return "{gpu}, driver {driver}, torch {torch}, kernel library {library}, {date}.".format(**machine)


def decoding(program: str, directory: str, graphs: str, mark: str, *options: str) -> tuple[dict, str]:
    """(JSON behind `mark`, output) of `program --measure DIRECTORY OPTION...`, an engine in a process of its own.

    graphs: "1" with CUDA graphs, "0" without. Exits with the end of the output where the mark is not in it.
    """
    done = subprocess.run(
        [sys.executable, program, "--measure", directory, *options], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False,
        env={**os.environ, "VLLM_KEPLER_CUDA_GRAPHS": graphs, "VLLM_WORKER_MULTIPROC_METHOD": "spawn"},
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith(mark)]
    if not lines:
        sys.exit(done.stdout[-6000:])
    return json.loads(lines[-1][len(mark):]), done.stdout


def seconds(run: Callable[[], object], repeats: int = 20) -> float:
    """Median by events of the time of one call, after warming up."""
    for _ in range(3):
        run()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events) * 1e-3


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy far beyond any L2."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source))


def matmul_rate() -> float:
    """Floating-point operations a second of a large float32 matrix product, TF32 off."""
    torch.backends.cuda.matmul.allow_tf32 = False
    a, b = torch.randn(2, 8192, 8192, device="cuda").unbind(0)
    return 2 * 8192**3 / seconds(lambda: a @ b, 10)


def table(rows: list[dict[str, object]]) -> str:
    """Markdown; columns in the order in which rows name them."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([shown(row.get(name, "")) for name in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def shown(value: object) -> str:
    if isinstance(value, bool):
        return "met" if value else "**missed**"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
