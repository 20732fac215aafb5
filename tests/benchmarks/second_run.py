"""How long a run that has nothing to do takes: site.yml on one stand-in, and on many of the same machine.

    python tests/benchmarks/second_run.py --hosts 10

Provisions one stand-in, measures what a run over its store costs it while it serves nothing, starts the others as
copies of it, and runs site.yml on one and on all. Every stand-in serves with one rank, so that ten fit into memory.
Host and controller share this machine's cores: real hosts bring their own. Figures count where no other machine took
processor time in between, which each line tells.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from docker.models.containers import Container

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "molecule" / "shared"))

from standin import engine, hosts  # noqa: E402
from standin.settings import Fleet, Host  # noqa: E402

IMAGE = "vllm-kepler/second-run"
INSTANCES = [{"name": "demo", "model": "{{ lookup('env', 'STANDIN_MODEL') }}", "gpus": [0], "tensor_parallel_size": 1}]


def play(fleet: Fleet, inventory: Path, limit: str, playbook: str = "site.yml") -> tuple[float, str]:
    """Seconds of one run and what it printed."""
    started = time.monotonic()
    done = subprocess.run(
        ["ansible-playbook", "-i", str(inventory), playbook, "-l", limit, "-e",
         json.dumps({"vllm_service_instances": INSTANCES, "qualification": "skip"})],
        cwd=PROJECT, capture_output=True, text=True,
        env={**hosts.ansible_environment(fleet), "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks",
             "ANSIBLE_NOCOLOR": "1"},
    )
    if done.returncode:
        sys.exit(done.stdout[-3000:] + done.stderr[-1000:])
    return time.monotonic() - started, done.stdout


def cpu_seconds(containers: list[Container]) -> float:
    """Processor time that the containers have used, their servers included."""
    answers = (container.client.api.stats(container.id, stream=False, one_shot=True) for container in containers)
    return sum(answer["cpu_stats"]["cpu_usage"]["total_usage"] for answer in answers) / 1e9


def stolen_seconds() -> float:
    """Processor time since the start that this virtual machine wanted and others had."""
    return int(Path("/proc/stat").read_text().split()[8]) / os.sysconf("SC_CLK_TCK")


def wait_until_idle(containers: list[Container]) -> None:
    """Wait until the servers have started: until a container uses less than a twentieth of a core on average."""
    while True:
        before = cpu_seconds(containers)
        time.sleep(5)
        if cpu_seconds(containers) - before < 0.25 * len(containers):
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=10)
    arguments = parser.parse_args()
    fleet = Fleet("bench", tuple(Host(f"k80-{number}") for number in range(arguments.hosts)))
    first = Fleet("bench", fleet.hosts[:1])
    inventory = hosts.STATE / "bench" / "inventory"
    client = engine.ensure()
    hosts.down(fleet)
    try:
        hosts.up(first)
        inventory.mkdir(parents=True)
        (inventory / "group_vars").symlink_to(PROJECT / "inventory" / "standin" / "group_vars")
        (inventory / "hosts.yml").write_text(
            json.dumps({"k80-hosts": {"hosts": {host.name: {} for host in fleet.hosts}}})
        )
        seconds, _ = play(fleet, inventory, "k80-0")
        print(f"first run: {seconds:.0f} s", flush=True)
        container = client.containers.get(fleet.container("k80-0"))
        hosts.execute(container, "systemctl stop vllm.target")
        before, stolen = cpu_seconds([container]), stolen_seconds()
        seconds, _ = play(fleet, inventory, "k80-0", "playbooks/build.yml")
        print(f"store alone: {seconds:.1f} s, {cpu_seconds([container]) - before:.1f} s of the host's processor, "
              f"{stolen_seconds() - stolen:.0f} s stolen", flush=True)
        hosts.execute(container, "systemctl start vllm.target")
        container.commit(IMAGE, "latest")
        for host in fleet.hosts[1:]:
            copy = client.containers.run(f"{IMAGE}:latest", **hosts.options(fleet, host))
            hosts.wait_for_systemd(copy)
        containers = [client.containers.get(fleet.container(host.name)) for host in fleet.hosts]
        for limit, count in (("k80-0", 1), ("all", arguments.hosts)):
            wait_until_idle(containers)
            play(fleet, inventory, limit)
            wait_until_idle(containers)
            idle, stolen = cpu_seconds(containers[:1]), stolen_seconds()
            started = time.monotonic()
            seconds, printed = play(fleet, inventory, limit)
            used = cpu_seconds(containers[:1]) - idle
            changed = sum(map(int, re.findall(r"changed=(\d+)", printed)))
            print(f"{count} host(s): {seconds:.1f} s, changed={changed}, {used:.1f} s of the first host's processor in "
                  f"{time.monotonic() - started:.0f} s, {stolen_seconds() - stolen:.0f} s stolen")
            print(printed[printed.index("PLAY RECAP"):])
    finally:
        hosts.down(fleet)
        for image in client.images.list(IMAGE):
            client.images.remove(image.id, force=True)
    os.sync()


if __name__ == "__main__":
    main()
