"""One model over several hosts: the units of one instance on its hosts, and the nodes of those that Ray joins.

The first host's node, the head, is a part of the server's unit; each other host has a unit vllm-stage@NAME.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from . import envs
from .errors import ConfigError

# Variable with what every host of an instance knows, and nobody else.
TOKEN = "RAY_AUTH_TOKEN"
# Variables of every process of a cluster of Ray. A host that was cut off is given up after some 12 s, and so is a head.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "15",
    # A rank that Ray ends for want of memory ends the server; memory is the kernel's and systemd's.
    "RAY_memory_monitor_refresh_ms": "0",
    # Raylet and ranks have crashed in the books that they keep of their own events.
    "RAY_event_stats": "false",
    # Nobody reads its metrics, and it complains of its exporter at each start.
    "RAY_enable_metrics_collection": "false",
    # Ranks count as much as the engine that polls for what they make; 15 without it.
    "RAY_worker_niceness": "0",
    # Its lines would name each call of each step.
    "RAY_ENABLE_RECORD_ACTOR_TASK_LOGGING": "0",
    "RAY_ROTATION_MAX_BYTES": str(16 << 20),
    "RAY_ROTATION_BACKUP_COUNT": "1",
}
# Ports from the head's on: of a server without Ray PyTorch's store; of Ray one for each part, then those of the ranks.
STORE = 1
RAYLET, PARTS = 1, ("node-manager-port", "object-manager-port", "runtime-env-agent-port",
                    "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
FIRST_RANK, SPAN = 20, 120
# Bytes of Ray's store of objects: stages hand activations on themselves.
OBJECTS = 100 << 20
VISIBLE = "CUDA_VISIBLE_DEVICES"
# Label of a node: the environment in the store that it runs. Ray refuses values that begin or end with a point.
LABEL = "kepler"
OUTPUT = Path(sys.prefix).name.strip(".-_")


@dataclass(frozen=True)
class Cluster:
    """The cluster of one instance, as one of its hosts sees it.

    Attributes:
        head: address of the first host on the link.
        port: port of the head, where hosts join.
        first: first of this host's SPAN ports; on every host of a link the head's.
        hosts: how many hosts there are.
        ranks: GPUs of each host that serve the instance.
        address: of this host on the link.
    """

    head: str
    port: int
    first: int
    hosts: int
    ranks: int
    address: str

    @property
    def folder(self) -> Path:
        """Ray's temporary folder. Every node takes the head's, and sockets in it ask for a short path."""
        return Path("/tmp", f"ray-{self.port}")

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the processes of this host's node."""
        # Ray takes an empty list, which hides GPUs from a server on the CPU, for a host without room.
        return {name: value for name, value in {**os.environ, **ENVIRONMENT}.items() if value or name != VISIBLE}


def read_cluster(environment: Mapping[str, str]) -> Cluster | None:
    """Return the cluster that a unit's environment describes; None for a server of one host. Raises ConfigError."""
    found = envs.head(environment)
    if found is None:
        return None
    head, port = found
    if not environment.get(TOKEN, "").strip():
        raise ConfigError(f"{TOKEN}: found no token; expected one, which every host of the instance has. Write a "
                          f"line {TOKEN}=TOKEN into the file that link_key_file names.")
    return Cluster(
        head, port, port, int(envs.number(environment, "VLLM_SERVING_HOSTS")),
        int(envs.number(environment, "VLLM_SERVING_RANKS")), environment.get("VLLM_HOST_IP", head),
    )


class Member(NamedTuple):
    """A host that has joined: its address, the environment in the store that it runs, and the GPUs that it lends."""

    address: str
    environment: str | None
    gpus: float


def describe(members: Iterable[Member], cluster: Cluster, environment: str) -> tuple[int, str]:
    """Return how many hosts are ready, and a text that names them and what keeps others away."""
    ready, others = [], []
    for address, found, gpus in members:
        if found != environment:
            others.append(f"{address} runs {found} instead of {environment}: activate the same generation on it")
        elif gpus != cluster.ranks:
            others.append(f"{address} lends {gpus:g} GPUs instead of {cluster.ranks}")
        else:
            ready.append(address)
    return len(ready), "; ".join([", ".join(sorted(ready)) or "none", *sorted(others)])


def node_command(cluster: Cluster) -> list[str]:
    """Return the command of this host's node of Ray. It ends with it; `ray stop` would end those of others, by name."""
    if cluster.address == cluster.head:
        role = ["--head", f"--port={cluster.port}", f"--temp-dir={cluster.folder}", "--include-dashboard=false",
                "--no-monitor"]
    else:
        role = [f"--address={cluster.head}:{cluster.port}"]
    parts = [f"--{name}={cluster.first + number}" for number, name in enumerate(PARTS, RAYLET)]
    return [
        sys.executable, "-m", "ray.scripts.scripts", "start", *role, "--block", f"--node-ip-address={cluster.address}",
        # Exactly the ranks of a host: no more may be placed here, and no fewer.
        f"--num-gpus={cluster.ranks}", "--num-cpus=1", f"--object-store-memory={OBJECTS}", *parts,
        f"--min-worker-port={cluster.first + FIRST_RANK}", f"--max-worker-port={cluster.first + SPAN - 1}",
        f"--labels={LABEL}={OUTPUT}", "--disable-usage-stats",
    ]


def answers(address: str, port: int, timeout: float = 3) -> bool | None:
    """Return whether something accepts connections there; None if nothing came back in time, as from a lost host."""
    try:
        with socket.create_connection((address, port), timeout=timeout):
            return True
    except ConnectionRefusedError:
        return False
    except OSError:
        return None
