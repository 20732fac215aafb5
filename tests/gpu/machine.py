"""What a measurement was made on: every table names it."""

import datetime
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "vllm_src"))
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
