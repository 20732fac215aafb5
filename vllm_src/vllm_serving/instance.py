"""What one server is: the options that vLLM reads too, and the limits that the supervisor keeps."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import models
from .addresses import is_loopback

# Where a server that listens everywhere is reached.
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
# Characters of the runtime directory. A socket's path has 107 at most, and vLLM adds "/tmp/", a UUID and
# "_health_socket"; where they do not fit, it never becomes ready.
LONGEST = 107 - 5 - 36 - 14
# Exit status after which systemd does not start the unit again: somebody must correct its configuration first.
CONFIGURATION = 78


class Refused(Exception):
    """What is wrong with the options or the environment, in one sentence."""


@dataclass(frozen=True)
class Instance:
    """One server.

    Attributes:
        name: of the unit, after the @.
        options: file of options that `vllm serve --config` reads.
        model: directory or name of the model.
        host: address that the server listens on.
        port: port that it listens on.
        generation: number of the store's generation that it runs.
        gpus: numbers of the GPUs that serve it; `cpu` if CUDA is to see none.
        directory: its own, in memory; gone with the last stop.
        held: file that is there as long as nobody but those who know its word are answered.
        key: what a request must bring; none for a server without a key.
        start: longest time in seconds from start to ready.
        stall: longest time in seconds without progress while it starts.
        drain: longest time in seconds that running requests get when the server is stopped.
        watchdog: time in seconds without a sign of life after which systemd ends the unit; 0 for never.
    """

    name: str
    options: Path
    model: str
    host: str
    port: int
    generation: str
    gpus: str
    directory: Path
    held: Path
    key: str | None
    start: float
    stall: float
    drain: float
    watchdog: float

    @property
    def address(self) -> str:
        """Address at which this machine reaches the server."""
        return WILDCARDS.get(self.host, self.host)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"generation {self.generation}, model {self.model}, GPUs {self.gpus}, http://{host}:{self.port}"


def number(environment: Mapping[str, str], name: str, default: float) -> float:
    """A variable that holds a number from 0."""
    text = environment.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise Refused(f"{name}: found {text!r}; expected a number from 0. Correct the instance's environment file.")
    return value


def key_of(environment: Mapping[str, str]) -> str | None:
    """Return the key that requests must bring, or None. No header can carry a key of spaces."""
    return environment.get("VLLM_API_KEY", "").strip() or None


def refuse_open_server(host: str, key: str | None) -> None:
    """Raise Refused for a server that the network reaches and that wants no key."""
    if key is None and not is_loopback(host):
        raise Refused(f"VLLM_API_KEY: found no key for a server on {host}; expected one beyond 127.0.0.1, ::1 and "
                      "localhost. Write a line VLLM_API_KEY=KEY into the file that api_key_file names.")


def read_instance(name: str, options: Path, generation: str, environment: Mapping[str, str]) -> Instance:
    """The instance that a file of options and the unit's environment describe. Raises Refused."""
    try:
        # JSON below a comment: vLLM reads it as YAML.
        said = json.loads(re.sub("^#.*", "", options.read_text(), flags=re.MULTILINE))
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{options}: cannot be read: {' '.join(str(error).split())}. Run the play again.") from None
    if not isinstance(said, dict) or not isinstance(said.get("model"), str) or not isinstance(said.get("port"), int):
        raise Refused(f"{options}: expected options of vLLM with at least model and port. Run the play again.")
    if reason := models.refusal(said, environment):
        raise Refused(reason)
    if not environment.get("RUNTIME_DIRECTORY"):
        raise Refused("RUNTIME_DIRECTORY: found nothing; expected a directory in memory. Use vllm@NAME.service.")
    directory = Path(environment["RUNTIME_DIRECTORY"])
    if len(str(directory)) > LONGEST:
        raise Refused(f"RUNTIME_DIRECTORY: found {len(str(directory))} characters; expected at most {LONGEST}, for the "
                      "sockets in it. Give the instance a shorter name.")
    host, key = str(said.get("host") or "0.0.0.0"), key_of(environment)
    refuse_open_server(host, key)
    return Instance(
        name=name,
        options=options,
        model=said["model"],
        host=host,
        port=said["port"],
        generation=generation,
        gpus=environment.get("CUDA_VISIBLE_DEVICES", "all").replace(",", ", ") or "cpu",
        directory=directory,
        held=Path(environment.get("VLLM_SERVING_HELD", "/nonexistent")),
        key=key,
        start=number(environment, "VLLM_SERVING_START", 1800),
        stall=number(environment, "VLLM_SERVING_STALL", 600),
        drain=number(environment, "VLLM_SERVING_DRAIN", 300),
        watchdog=number(environment, "WATCHDOG_USEC", 0) / 1e6,
    )
