"""Start the head of a server over several hosts, wait for the other hosts, then become vLLM.

The supervisor runs this in front of vLLM's command: `python -m vllm_serving.head COMMAND...`. What it starts shares the
unit's control group, temporary files and shared memory with the engine, and ends with the unit.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from .cluster import LABEL, OUTPUT, Cluster, Member, answers, describe, node_command, read_cluster
from .gate import STORE_ENVIRONMENT, node_arguments
from .log import HOSTS_COMPLETE, HOSTS_MISSING
from .versions import table_of

# Prints the nodes of the cluster every second: a process of its own, so that vLLM starts without a trace of Ray.
NODES = """
import json, time, ray
ray.init(logging_level="ERROR", log_to_driver=False, configure_logging=False)
while True:
    print(json.dumps(ray.nodes()), flush=True)
    time.sleep(1)
"""
# Seconds without an answer after which the head counts as broken.
SILENCE = 60
# Variables of vLLM that ranks on other hosts do not get: whoever reads the link would have the key of the API.
KEPT = ["VLLM_API_KEY", "VLLM_CONFIG_ROOT"]
# Where vLLM looks for their names, in its directory of settings.
KEPT_FILE = "ray_non_carry_over_env_vars.json"


def wait_for_hosts(cluster: Cluster, node: subprocess.Popen[bytes]) -> str | None:
    """Wait until all hosts are there. Returns why they can never be, or None."""
    while not answers(cluster.head, cluster.port):
        if node.poll() is not None:
            return f"the cluster's head ended with status {node.returncode}"
        time.sleep(0.5)
    asking = subprocess.Popen(
        [sys.executable, "-c", NODES], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**cluster.environment, "RAY_ADDRESS": f"{cluster.head}:{cluster.port}"},
    )
    assert asking.stdout is not None
    before = ""
    try:
        while node.poll() is None:
            readable, _, _ = select.select([asking.stdout], [], [], SILENCE)
            line = asking.stdout.readline() if readable else b""
            if not line:
                return "the cluster's head does not answer"
            nodes = [Member(node["NodeManagerAddress"], node.get("Labels", {}).get(LABEL),
                            node["Resources"].get("GPU", 0)) for node in json.loads(line) if node["Alive"]]
            ready, text = describe(nodes, cluster, OUTPUT)
            if ready >= cluster.hosts:
                print(f"{HOSTS_COMPLETE}: {text}", flush=True)
                return None
            # Ray gives a host up seconds after it has gone: a server that starts again finds its old entry.
            if text != before:
                before = text
                print(f"{HOSTS_MISSING}: {ready} of {cluster.hosts} there ({text})", flush=True)
        return f"the cluster's head ended with status {node.returncode}"
    finally:
        asking.kill()
        asking.wait()


def keep_secrets(directory: Path) -> dict[str, str]:
    """Write the names in KEPT below `directory`. Returns the variable that lets vLLM find them."""
    settings = directory / "settings"
    settings.mkdir(exist_ok=True)
    (settings / KEPT_FILE).write_text(json.dumps(KEPT))
    return {"VLLM_CONFIG_ROOT": str(settings)}


def main(command: list[str]) -> int:
    """Start the head, and become `command` when all hosts are there. Returns the exit status if it cannot."""
    cluster = read_cluster(os.environ)
    assert cluster is not None
    by = with_ray if table_of(metadata.version("vllm")).RAY else with_gate
    return by(cluster, command)


def with_gate(cluster: Cluster, command: list[str]) -> int:
    """Become `command` when all hosts have joined; each starts its own ranks."""
    told, tell = os.pipe()
    subprocess.Popen([sys.executable, "-m", "vllm_serving.gate", str(tell)], stdin=subprocess.DEVNULL, pass_fds=[tell])
    os.close(tell)
    # A gate that fails ends this process too.
    os.read(told, 1)
    os.close(told)
    os.execve(command[0], [*command, *node_arguments(cluster, 0)], {**os.environ, **STORE_ENVIRONMENT})


def with_ray(cluster: Cluster, command: list[str]) -> int:
    """Become `command` when all hosts are nodes of a cluster of Ray. Returns the exit status if it cannot."""
    # Logs of earlier runs.
    shutil.rmtree(cluster.folder, ignore_errors=True)
    node = subprocess.Popen(node_command(cluster), stdin=subprocess.DEVNULL, env=cluster.environment)
    if reason := wait_for_hosts(cluster, node):
        print(f"error: {reason}", flush=True)
        return 1
    environment = {
        **cluster.environment, **keep_secrets(Path(os.environ["RUNTIME_DIRECTORY"])),
        "RAY_ADDRESS": f"{cluster.head}:{cluster.port}",
    }
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
