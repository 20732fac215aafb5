"""Environment variables of a server: of a unit vllm@NAME, which the role vllm_service writes, or of a container."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path

from .errors import ConfigError

# The port's own variable: in a container the user sets nothing else to say that there is no GPU.
DEVICE = "VLLM_KEPLER_DEVICE"
# Variables that hold a number from 0, and their defaults.
NUMBERS: dict[str, float] = {
    # Longest time in seconds from start to ready.
    "VLLM_SERVING_START": 1800,
    # Longest time in seconds without progress while the server starts.
    "VLLM_SERVING_STALL": 600,
    # Longest time in seconds that running requests get when the server is stopped.
    "VLLM_SERVING_DRAIN": 300,
    # Largest body of a request in MiB.
    "VLLM_SERVING_BODY": 8,
    # Most sequences of one request: its prompts times n, or times best_of.
    "VLLM_SERVING_SEQUENCES": 128,
    # In a container: seconds without a sign of life after which the server is ended; 0 for never.
    "VLLM_SERVING_WATCHDOG": 180,
    # Hosts that one model is spread over, and GPUs of each that serve it.
    "VLLM_SERVING_HOSTS": 1,
    "VLLM_SERVING_RANKS": 1,
    # Set by systemd: microseconds without a sign of life after which it ends the unit; 0 for never.
    "WATCHDOG_USEC": 0,
}


def number(environment: Mapping[str, str], name: str) -> float:
    """Return a variable of NUMBERS. Raises ConfigError for a text that is no number from 0."""
    text = environment.get(name, str(NUMBERS[name]))
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise ConfigError(
            f"{name}: found {text!r}; expected a number from 0. Correct the server's environment."
        )
    return value


def is_published(environment: Mapping[str, str]) -> bool:
    """Return whether the server listens in a container's own network: who reaches it is decided by who publishes it."""
    return environment.get("VLLM_SERVING_PUBLISHED") == "1"


def publish(environment: MutableMapping[str, str]) -> None:
    """Note for this process and the server's that `is_published`."""
    environment["VLLM_SERVING_PUBLISHED"] = "1"


def computes_on_cpu(environment: Mapping[str, str]) -> bool:
    """Return whether the CPU stands in for the GPU."""
    return environment.get(DEVICE) == "cpu"


def wants_parsers(environment: Mapping[str, str]) -> bool:
    """Return whether answers are parsed for tool calls and reasoning, as the model's chat template writes them."""
    return environment.get("VLLM_SERVING_PARSERS", "1") != "0"


def adapters(environment: Mapping[str, str]) -> dict[str, Path]:
    """Return the directory of each LoRA adapter by its name in the API: NAME=DIRECTORY, parted by spaces."""
    pairs = (pair.partition("=") for pair in environment.get("VLLM_SERVING_ADAPTERS", "").split())
    return {name: Path(directory) for name, _, directory in pairs}


def capability(environment: Mapping[str, str]) -> str | None:
    """Return the compute capability of the GPUs that a released vLLM runs on, such as 7.0; None for the port."""
    return environment.get("VLLM_SERVING_CAPABILITY")


def head(environment: Mapping[str, str]) -> tuple[str, int] | None:
    """Return address and port of the head of a server's cluster; None for a server of one host. Raises ConfigError."""
    text = environment.get("VLLM_SERVING_HEAD", "")
    address, _, port = text.rpartition(":")
    if text and not (address and port.isdigit()):
        raise ConfigError(f"VLLM_SERVING_HEAD: found {text!r}; expected ADDRESS:PORT. Run the play again.")
    return (address, int(port)) if text else None


def quarantine_file(environment: Mapping[str, str]) -> Path:
    """Return the file that puts the server in quarantine while it exists, and holds the token that is answered."""
    return Path(environment.get("VLLM_SERVING_HELD", "/nonexistent"))
