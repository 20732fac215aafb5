"""The container engine: the one that runs, or the distribution's, installed and started by us."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import docker

from .settings import APT_WAITS, STATE, Step, fail

OWN = STATE / "engine"
SOCKET = OWN / "docker.sock"
PID = OWN / "docker.pid"
DATA = OWN / "data"
# What the stand-in of the scenario `default` has built, for those of other scenarios to begin with. The engine mounts
# its data apart: hard links to what containers have lead nowhere else.
OUTPUTS = DATA / "kepler-outputs"
START_SECONDS = 60


def answers(url: str | None) -> bool:
    """Whether a Docker engine answers at `url`; None for what the user's environment names."""
    try:
        client = docker.DockerClient(base_url=url) if url else docker.from_env()
        client.ping()
    except docker.errors.DockerException:
        return False
    return True


def install() -> None:
    """Install the distribution's engine. Ends with one message where that cannot be done."""
    if shutil.which("dockerd"):
        return
    expected = "expected a Docker engine that this user may use (`docker info`)"
    if os.geteuid() != 0:
        fail(f"Container engine: found none, and this user is not root; {expected}. Install and start one, or be root.")
    if not shutil.which("apt-get"):
        fail(f"Container engine: found none, and no apt-get; {expected}. Install and start one, such as moby-engine.")
    with Step("Installing the distribution's container engine"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (["update"], ["install", "--yes", "--no-install-recommends", "docker.io", "iptables"]):
            done = subprocess.run(
                ["apt-get", *APT_WAITS, "--quiet", *arguments], env=environment, capture_output=True, text=True
            )
            if done.returncode:
                command = f"apt-get {' '.join(arguments)}"
                fail(f"Container engine: `{command}` failed; {expected}.\n{done.stderr.strip()[-2000:]}")


def start() -> None:
    """Start an engine of our own, with its own socket and data, beside whatever the machine has."""
    OWN.mkdir(parents=True, exist_ok=True)
    with Step("Starting a container engine"):
        log = (OWN / "dockerd.log").open("w")
        process = subprocess.Popen(
            ["dockerd", "--host", f"unix://{SOCKET}", "--data-root", DATA, "--exec-root", OWN / "run",
             "--pidfile", PID],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )
        for _ in range(START_SECONDS * 5):
            if answers(f"unix://{SOCKET}"):
                return
            if process.poll() is not None:
                break
            time.sleep(0.2)
    tail = "\n".join((OWN / "dockerd.log").read_text().splitlines()[-5:])
    fail(f"Container engine: dockerd did not start. The end of {OWN / 'dockerd.log'}:\n{tail}")


def ensure() -> docker.DockerClient:
    """A client of a running engine: the user's own where there is one.

    Sets DOCKER_HOST, so that what this process starts uses the same engine.
    """
    if answers(None):
        return docker.from_env(timeout=600)
    if not answers(f"unix://{SOCKET}"):
        install()
        if not answers(None):
            start()
    if answers(f"unix://{SOCKET}"):
        os.environ["DOCKER_HOST"] = f"unix://{SOCKET}"
    return docker.from_env(timeout=600)


def present() -> docker.DockerClient | None:
    """A client of the engine that has our containers, if one runs."""
    if answers(f"unix://{SOCKET}"):
        os.environ["DOCKER_HOST"] = f"unix://{SOCKET}"
    return docker.from_env(timeout=600) if answers(None) else None


def stop() -> None:
    """Stop the engine that we started, if we did, and remove its data."""
    try:
        pid = int(PID.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        command = b""
    # The number may have gone to another process since.
    if str(SOCKET).encode() in command:
        os.kill(pid, signal.SIGTERM)
        for _ in range(300):
            if not Path(f"/proc/{pid}").exists():
                break
            time.sleep(0.1)
    shutil.rmtree(OWN, ignore_errors=True)
