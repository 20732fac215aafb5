"""The port's environment variables, each read when it is asked for, as in vllm.envs.

Imports no torch: vLLM asks for the platform before it needs one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import SettingError

if TYPE_CHECKING:
    VLLM_KEPLER_DEVICE: str = ""
    VLLM_KEPLER_VERIFY: bool = False
    VLLM_KEPLER_CUDA_GRAPHS: bool = False
    VLLM_KEPLER_CUDA_GRAPHS_AUTO: str = ""
    VLLM_KEPLER_LIBRARY: Path = Path(sys.prefix, "lib", "libvllm_kepler.so")


def one_of(values: dict[str, Any], expected: str) -> Callable[[str], Any]:
    """Make a reader of a variable, which returns what its text stands for or raises SettingError."""

    def read(name: str) -> Any:
        text = os.environ.get(name, "")
        if text not in values:
            raise SettingError(f"{name}: found {text!r}; expected {expected}.")
        return values[text]

    return read


SWITCH = {"": False, "0": False, "1": True}

environment_variables: dict[str, Callable[[str], Any]] = {
    # "cpu" lets the CPU stand in for a Kepler GPU.
    "VLLM_KEPLER_DEVICE": one_of({"": "", "cpu": "cpu"}, "cpu, or no value for a Kepler GPU"),
    # Serve on another NVIDIA GPU as on a Kepler GPU, to verify the port there.
    "VLLM_KEPLER_VERIFY": one_of(SWITCH, "1 to verify the port on another NVIDIA GPU, or no value for a Kepler GPU"),
    # Replay decoding steps of few sequences as CUDA graphs.
    "VLLM_KEPLER_CUDA_GRAPHS": one_of(SWITCH, "1 for CUDA graphs, or no value for eager decoding"),
    # Why somebody else has chosen that value: a model that cannot have graphs is eager then.
    "VLLM_KEPLER_CUDA_GRAPHS_AUTO": lambda name: os.environ.get(name, ""),
    # The file of the kernel library; by default that of the serving environment.
    "VLLM_KEPLER_LIBRARY": lambda name: Path(os.environ.get(name) or Path(sys.prefix, "lib", "libvllm_kepler.so")),
}

# Variables that ranks on other hosts take from the server; the rest is a host's own.
OF_ALL_HOSTS = ["VLLM_KEPLER_DEVICE", "VLLM_KEPLER_VERIFY", "VLLM_KEPLER_CUDA_GRAPHS",
                "VLLM_KEPLER_CUDA_GRAPHS_AUTO"]


def __getattr__(name: str) -> Any:
    if name not in environment_variables:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return environment_variables[name](name)
