"""Shares the seed, the tiny models and the process that serves them with the port's tests."""

import os
import random
import sys
from pathlib import Path

PORT = Path(__file__).resolve().parent.parent / "port"
sys.path.insert(0, str(PORT))
os.environ["VLLM_KEPLER_DEVICE"] = ""
os.environ["VLLM_KEPLER_VERIFY"] = "1"

import importlib.util  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

spec = importlib.util.spec_from_file_location("port_conftest", PORT / "conftest.py")
port_conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(port_conftest)
seed, tiny = port_conftest.seed, port_conftest.tiny

# Memory that torch leaves uninitialised holds NaN from here on: an output or workspace that a kernel leaves out shows.
torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.fixture
def rng(seed, request) -> random.Random:
    """Fresh for each run and test; the seed that repeats it is printed."""
    return random.Random(f"{seed} {request.node.name}")


@pytest.fixture(autouse=True)
def fresh(rng) -> None:
    torch.manual_seed(rng.randrange(1 << 30))
