"""A supervisor in a process of its own, under a systemd that only listens, with a server that does what it is told.

The tests of the real server (tests/port) use the first half.
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from ports import free_port

ROOT = Path(__file__).resolve().parents[3]

START = """
import asyncio, os, sys
from pathlib import Path
from vllm_serving import starts, supervisor
from vllm_serving.versions import v0_9_2
supervisor.POLL = 0.1
starts.PAUSE = float(sys.argv[4])
instance = supervisor.read_instance("main", Path(sys.argv[1]), "7", os.environ)
print("torch" in sys.modules, "vllm" in sys.modules)
sys.exit(asyncio.run(supervisor.Supervisor(instance, [sys.executable, sys.argv[2], sys.argv[3]], v0_9_2).run()))
"""
ORDERS = {"log": [], "repeat": "", "seconds": 0, "status": None, "hang": False, "busy": False, "deaf": False,
          "refuse": 0, "running": 0}  # fmt: skip
KEY = "a-key-that-nobody-else-has"


def wait_for(condition, seconds=20):
    """What `condition` returns, once that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


class Unit:
    """A supervisor under a systemd that only listens.

    Attributes:
        sent: what the supervisor told systemd, as (seconds, fields).
    """

    def __init__(self, directory, **options):
        self.directory = directory
        self.port = free_port()
        # Short, as /run/vllm/NAME is: sockets lie in it.
        self.runtime = Path(tempfile.mkdtemp(prefix="run-", dir="/tmp"))
        options = {"host": "127.0.0.1", "port": self.port, **options}
        (directory / "main.yaml").write_text(json.dumps(options, default=str))
        self.sent = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(directory / "notify"))
        threading.Thread(target=self.listen, daemon=True).start()
        self.process = None

    def listen(self):
        with contextlib.suppress(OSError):
            while message := self.socket.recv(4096).decode():
                self.sent.append((time.monotonic(), dict(line.split("=", 1) for line in message.splitlines())))

    def run(self, *arguments, **variables):
        """Start Python with these arguments and the unit's environment."""
        environment = {
            **os.environ, "PYTHONUNBUFFERED": "1", "NOTIFY_SOCKET": str(self.directory / "notify"),
            "RUNTIME_DIRECTORY": str(self.runtime), "VLLM_API_KEY": KEY, "VLLM_KEPLER_DEVICE": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            **{name: str(value) for name, value in variables.items()},
        }
        with (self.directory / "log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, arguments)], env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def processes(self):
        """Ids of all that run with this unit's environment."""
        mark = f"RUNTIME_DIRECTORY={self.runtime}\0".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (path / "environ").read_bytes():
                    found.append(int(path.name))
        return found

    def kill(self):
        """End whatever was started with this unit's environment."""
        for process in self.processes():
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)

    def ask(self, path, body=None, **headers):
        """Status and text of an answer to somebody with the key."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **headers}
            content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("GET" if body is None else "POST", path, content, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def fields(self, name):
        return [fields[name] for _, fields in list(self.sent) if name in fields]

    def ready(self, seconds=20):
        wait_for(lambda: self.fields("READY") or self.process.poll() is not None, seconds)
        assert self.process.poll() is None, self.output()

    def output(self):
        return (self.directory / "log").read_text()

    def last(self):
        """The supervisor's last line: why it ended."""
        return [line for line in self.output().splitlines() if line.startswith("vllm@main ")][-1]

    def close(self):
        self.socket.close()
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.runtime)


class Supervised(Unit):
    """With a server that does what it is told, and has one rank."""

    def __init__(self, directory):
        super().__init__(directory, model="/srv/models/x")
        self.orders = {**ORDERS, "port": self.port}
        self.order()

    def order(self, **changes):
        self.orders.update(changes)
        fresh = self.directory / "orders.new"
        fresh.write_text(json.dumps(self.orders))
        fresh.replace(self.directory / "orders.json")

    def start(self, pause=0, **variables):
        fake = Path(__file__).with_name("fake_vllm.py")
        self.run("-c", START, self.directory / "main.yaml", fake, self.directory, pause,
                 PYTHONPATH=ROOT / "vllm_src", **variables)

    def ended(self, seconds=20):
        """Exit status, once the supervisor and every process of the server are gone."""
        status = self.process.wait(seconds)
        if (self.directory / "rank").exists():
            rank = Path("/proc") / (self.directory / "rank").read_text()
            wait_for(lambda: not rank.exists() or "\nState:\tZ" in (rank / "status").read_text(), 5)
        return status

    def close(self):
        super().close()
        if (self.directory / "rank").exists():
            rank = int((self.directory / "rank").read_text())
            with contextlib.suppress(ProcessLookupError):
                os.killpg(os.getpgid(rank), signal.SIGKILL)
