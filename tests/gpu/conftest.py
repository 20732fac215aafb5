"""Shares the seed, the tiny models and the process that serves them with the port's tests."""

import functools
import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "port"))
os.environ["VLLM_KEPLER_DEVICE"] = ""
os.environ["VLLM_KEPLER_VERIFY"] = os.environ["VLLM_NO_USAGE_STATS"] = "1"

import pytest
import torch
from tiny_models import seed, tiny  # noqa: F401


def poisoned(make):
    """`make`, with NaN in what it leaves uninitialized."""

    @functools.wraps(make)
    def make_with_nan(*args, **kwargs):
        made = make(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    return make_with_nan


# Memory that torch leaves uninitialized holds NaN from here on: an output or workspace that a kernel leaves out shows.
torch.use_deterministic_algorithms(True, warn_only=True)
if not hasattr(torch.utils, "deterministic"):  # PyTorch 2.0.1 does not do it
    torch.empty, torch.empty_like = poisoned(torch.empty), poisoned(torch.empty_like)
    torch.Tensor.new_empty = poisoned(torch.Tensor.new_empty)


@pytest.fixture
def rng(seed, request) -> random.Random:  # noqa: F811
    """Fresh for each run and test; the seed that repeats it is printed."""
    return random.Random(f"{seed} {request.node.name}")


@pytest.fixture(autouse=True)
def fresh(rng) -> None:
    torch.manual_seed(rng.randrange(1 << 30))
