"""Two hosts in network namespaces with a link between them, each with the program of its unit, started as systemd does.

A run of a unit is a process namespace of its own: like a control group, it leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from two_hosts import python

ADDRESSES = ("10.78.0.1", "10.78.0.2")
PORT, LINK = 8000, "kepler-link"
RESTART = 2.0
# A host of its own: processes, shared memory and Ray's folder. The test's files stay in sight.
INSIDE = "mount -t tmpfs tmpfs /dev/shm; mkdir -p /tmp/ray-6379; mount -t tmpfs tmpfs /tmp/ray-6379; exec \"$@\""
CLIENT = """
import http.client, json, sys, time
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
connection.request("POST", "/v1/completions", sys.argv[2], {"Content-Type": "application/json"})
answer = connection.getresponse()
print("status", answer.status, flush=True)
try:
    while line := answer.readline():
        if line.strip():
            print(time.time(), line.decode().strip(), flush=True)
except Exception as error:
    print(time.time(), "broken", type(error).__name__, flush=True)
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Unit:
    """A unit of one host, which is started again when it ends.

    Attributes:
        ends: (time, status) of each run that has ended.
        log: file of what it prints.
    """

    def __init__(self, space: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.space, self.command, self.environment, self.log = space, command, environment, log
        self.ends: list[tuple[float, int]] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.wanted = True
        self.thread = threading.Thread(target=self.keep, daemon=True)
        self.thread.start()

    def keep(self) -> None:
        while self.wanted:
            with self.log.open("ab") as output:
                self.process = subprocess.Popen(
                    ["ip", "netns", "exec", self.space, "unshare", "--pid", "--fork", "--kill-child", "--mount",
                     "--mount-proc", "sh", "-c", INSIDE, "sh", *self.command],
                    env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                )
            status = self.process.wait()
            self.ends.append((time.time(), status))
            if self.wanted:
                time.sleep(RESTART)

    def kill(self) -> None:
        """Kill every process of the unit at once, as a host that crashes."""
        assert self.process is not None
        self.process.kill()

    def main(self) -> int:
        """Number of the unit's own process, as this machine counts."""
        assert self.process is not None
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)

    def stop(self) -> None:
        """Stop the unit as systemd does."""
        self.wanted = False
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.kill(self.main(), 15)
        self.thread.join(60)
        if self.thread.is_alive():
            self.kill()
            self.thread.join()


class Hosts:
    """A server over two hosts: the head's unit and the stage's."""

    def __init__(self, directory: Path, model: Path, token: str) -> None:
        self.directory = directory
        number = os.getpid()
        self.spaces = [f"kepler-{number}-{name}" for name in "ab"]
        options = directory / "options.yaml"
        options.write_text(json.dumps({
            "model": str(model), "host": "127.0.0.1", "port": PORT, "tensor-parallel-size": 1, "max-model-len": 256,
            "max-num-seqs": 4, "served-model-name": "m", "disable-log-requests": True, "swap-space": 1,
            "pipeline-parallel-size": 2, "distributed-executor-backend": "ray",
        }))
        (directory / "run").mkdir()
        for one, space in enumerate(self.spaces):
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
            if one:
                ip("link", "add", LINK, "netns", self.spaces[0], "type", "veth", "peer", "name", LINK, "netns", space)
        for space, address in zip(self.spaces, ADDRESSES, strict=True):
            ip("-n", space, "address", "add", f"{address}/24", "dev", LINK)
            ip("-n", space, "link", "set", LINK, "up")
        self.environments = [{
            **os.environ, "VLLM_SERVING_HEAD": f"{ADDRESSES[0]}:6379", "VLLM_SERVING_HOSTS": "2",
            "VLLM_SERVING_RANKS": "1", "VLLM_HOST_IP": address, "GLOO_SOCKET_IFNAME": LINK, "RAY_AUTH_TOKEN": token,
            "RUNTIME_DIRECTORY": str(directory / "run"), "WATCHDOG_USEC": "60000000", "CUDA_VISIBLE_DEVICES": "",
            "VLLM_ENGINE_ITERATION_TIMEOUT_S": "60", "HF_HUB_OFFLINE": "1", "HOME": str(directory),
        } for address in ADDRESSES]
        self.units: list[Unit] = []

    def start_server(self) -> Unit:
        command = [python(), "-m", "vllm_serving", "big", str(self.directory / "options.yaml"), "1"]
        return self.start(0, command)

    def start_stage(self) -> Unit:
        return self.start(1, [python(), "-m", "vllm_serving.stage", "big"])

    def start(self, number: int, command: list[str]) -> Unit:
        unit = Unit(self.spaces[number], command, self.environments[number], self.directory / f"{number}.log")
        self.units.append(unit)
        return unit

    def ask(self, tokens: int = 8, stream: bool = False) -> subprocess.Popen[str]:
        """Start a client on the server's host."""
        body = json.dumps({"model": "m", "prompt": "The license", "max_tokens": tokens, "temperature": 0,
                           "ignore_eos": True, "stream": stream})
        return subprocess.Popen(
            ["ip", "netns", "exec", self.spaces[0], python(), "-S", "-c", CLIENT, str(PORT), body],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )

    def wait_until_served(self, seconds: float) -> tuple[float, str]:
        """Return the seconds until an answer came, and its text."""
        begin = time.time()
        while time.time() - begin < seconds:
            output, _ = self.ask().communicate()
            if output.startswith("status 200"):
                return time.time() - begin, json.loads(output.splitlines()[1].partition(" ")[2])["choices"][0]["text"]
            time.sleep(1)
        raise AssertionError(f"not served after {seconds} s: {self.printed()}")

    def cut(self, is_cut: bool) -> None:
        """Lose all packets between the hosts, without a sign; or none again."""
        ip("-n", self.spaces[1], "link", "set", LINK, "down" if is_cut else "up")

    def printed(self) -> str:
        return "\n".join((self.directory / f"{one}.log").read_text()[-3000:] for one in range(2)
                         if (self.directory / f"{one}.log").exists())

    def processes(self) -> list[str]:
        """Numbers of the processes on both hosts."""
        return [number for space in self.spaces for number in subprocess.run(
            ["ip", "netns", "pids", space], capture_output=True, text=True).stdout.split()]

    def end(self) -> None:
        for unit in self.units:
            unit.wanted = False
            with contextlib.suppress(Exception):
                unit.kill()
        for space in self.spaces:
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)
        shutil.rmtree("/tmp/ray-6379", ignore_errors=True)


@contextlib.contextmanager
def two_units(directory: Path, model: Path, token: str) -> Iterator[Any]:
    hosts = Hosts(directory, model, token)
    try:
        yield hosts
    finally:
        hosts.end()


def error_after(client: subprocess.Popen[str], since: float) -> float:
    """Return the seconds from `since` until a stream that runs is told of an error, or breaks off."""
    assert client.stdout is not None
    for line in client.stdout:
        if "broken" in line or '"error"' in line or '"object":"error"' in line:
            return float(line.split()[0]) - since
    return time.time() - since
