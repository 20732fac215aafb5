"""One server: the options that vLLM reads too, and the limits that the supervisor keeps."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import envs, models
from .addresses import WILDCARDS, authority, is_loopback
from .errors import ConfigError

# Characters of the runtime directory. A socket's path has 107 at most, and vLLM adds "/tmp/", a UUID and
# "_health_socket". With a longer path it never becomes ready.
LONGEST = 107 - 5 - 36 - 14
# Exit status after which systemd does not start the unit again: somebody must correct its configuration first.
CONFIGURATION = 78


@dataclass(frozen=True)
class Instance:
    """One server.

    Attributes:
        name: of the unit, after the @.
        options: file of options that `vllm serve --config` reads.
        model: directory, GGUF file or name of the model.
        files: directory that was made for a model that is a GGUF file alone; None if vLLM reads the model's own.
        host: address that the server listens on.
        port: port that it listens on.
        generation: number of the store's generation that it runs.
        gpus: numbers of the GPUs that serve it; `cpu` if CUDA is to see none.
        directory: the unit's runtime directory, in memory; gone after the last stop.
        quarantine: file; while it exists, only requests with the token in it are answered.
        key: API key that requests must bring; None for a server without one.
        arguments: those of `vllm serve` beside its options: LoRA adapters, and parsers that follow from the model.
        start_timeout: longest time in seconds from start to ready.
        stall_timeout: longest time in seconds without progress while it starts.
        drain_timeout: longest time in seconds that running requests get when the server is stopped.
        watchdog: time in seconds without a sign of life after which systemd ends the unit; 0 for never.
    """

    name: str
    options: Path
    model: str
    files: Path | None
    host: str
    port: int
    generation: str
    gpus: str
    directory: Path
    quarantine: Path
    key: str | None
    arguments: list[str]
    start_timeout: float
    stall_timeout: float
    drain_timeout: float
    watchdog: float

    @property
    def address(self) -> str:
        """Address at which this machine reaches the server."""
        return WILDCARDS.get(self.host, self.host)

    def __str__(self) -> str:
        url = f"http://{authority(self.host, self.port)}"
        return f"generation {self.generation}, model {self.model}, GPUs {self.gpus}, {url}"


def key_of(environment: Mapping[str, str]) -> str | None:
    """Return the API key that requests must bring, or None. No header can carry a key of spaces."""
    return environment.get("VLLM_API_KEY", "").strip() or None


def refuse_open_server(host: str, key: str | None, environment: Mapping[str, str]) -> None:
    """Raise ConfigError for a server without an API key that the network reaches."""
    if key is None and not is_loopback(host) and not envs.is_published(environment):
        raise ConfigError(f"VLLM_API_KEY: found no key for a server on {host}; expected one beyond 127.0.0.1, ::1 and "
                          "localhost. Write a line VLLM_API_KEY=KEY into the file that api_key_file names.")


def read_instance(name: str, options: Path, generation: str, environment: Mapping[str, str]) -> Instance:
    """Return the instance that a file of options and the unit's environment describe. Raises ConfigError."""
    try:
        # JSON below a comment: vLLM reads it as YAML.
        found = json.loads(re.sub("^#.*", "", options.read_text(), flags=re.MULTILINE))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{options}: cannot be read: {' '.join(str(error).split())}. Run the play again.") from None
    if not isinstance(found, dict) or not isinstance(found.get("model"), str) or not isinstance(found.get("port"), int):
        raise ConfigError(f"{options}: expected options of vLLM with at least model and port. Run the play again.")
    return instance_of(name, options, found, generation, environment)


def instance_of(
    name: str, options: Path, found: Mapping[str, Any], generation: str, environment: Mapping[str, str]
) -> Instance:
    """Return the instance with the options `found`, of which vLLM reads those in a file. Raises ConfigError."""
    if not environment.get("RUNTIME_DIRECTORY"):
        raise ConfigError("RUNTIME_DIRECTORY: found nothing; expected a directory in memory. Use vllm@NAME.service.")
    directory = Path(environment["RUNTIME_DIRECTORY"])
    if len(str(directory)) > LONGEST:
        raise ConfigError(f"RUNTIME_DIRECTORY: found {len(str(directory))} characters; expected at most {LONGEST}, for "
                          "the sockets in it. Give the instance a shorter name.")
    served = models.with_files(found, environment, directory / "model")
    files = None if served is found else Path(served["model"])
    if reason := models.refusal(served, environment):
        raise ConfigError(reason)
    host, key = str(found.get("host") or "0.0.0.0"), key_of(environment)
    refuse_open_server(host, key, environment)
    return Instance(
        name=name,
        options=options,
        model=found["model"],
        files=files,
        host=host,
        port=found["port"],
        generation=generation,
        gpus=environment.get("CUDA_VISIBLE_DEVICES", "all").replace(",", ", ") or "cpu",
        directory=directory,
        quarantine=envs.quarantine_file(environment),
        key=key,
        arguments=[
            *(["--served-model-name", found["model"]] if files and not found.get("served-model-name") else []),
            *models.parser_arguments(served, environment), *models.adapter_arguments(found, environment),
        ],
        start_timeout=envs.number(environment, "VLLM_SERVING_START"),
        stall_timeout=envs.number(environment, "VLLM_SERVING_STALL"),
        drain_timeout=envs.number(environment, "VLLM_SERVING_DRAIN"),
        watchdog=envs.number(environment, "WATCHDOG_USEC") / 1e6,
    )
