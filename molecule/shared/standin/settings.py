"""Names and places of the stand-ins."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

PROJECT = Path(__file__).resolve().parents[3]
CACHE = Path(os.environ.get("KEPLER_CACHE") or Path.home() / ".cache" / "vllm-kepler")
ARTIFACTS = CACHE / "artifacts"
STATE = CACHE / "standin"
# Outputs that are kept from run to run: what takes minutes to unpack.
OUTPUTS = CACHE / "outputs"
# As options of apt-get: another program may be installing something.
APT_WAITS = ("-o", "DPkg::Lock::Timeout=300")
IMAGE = "vllm-kepler/el{major}-standin"
# Whether the tests that take minutes each run as well.
LONG = bool(os.environ.get("STANDIN_LONG"))
# Major release of Enterprise Linux of each profile's hosts.
RELEASES = {"k80": 8, "volta": 9}
DEFAULT_MODEL = PROJECT / "tests" / "models" / "licence-llama"


@dataclass(frozen=True)
class Host:
    """One stand-in.

    Attributes:
        name: inventory name.
        profile: whose host it is.
        dies: whether it has two boards, and a model to serve.
        artifacts: whether it has the files to install from.
        repositories: whether it reaches the stub repositories.
        compiler: whether it has a compiler for the kernels.
        network: whether it has any network but its loopback.
        given: names of outputs that it begins with, where another stand-in has built them before.
        kept: names of outputs that it begins with, where it has built them in an earlier run.
    """

    name: str
    profile: str = "k80"
    dies: bool = True
    artifacts: bool = True
    repositories: bool = True
    compiler: bool = False
    network: bool = True
    given: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fleet:
    """A set of stand-ins that live and end together.

    Attributes:
        name: so that a test run leaves a demo alone.
        hosts: the stand-ins.
        port: port on this machine's loopback that reaches port 8000 of the first one; None where nothing serves there.
    """

    name: str
    hosts: tuple[Host, ...]
    port: int | None = None

    def container(self, host: str) -> str:
        return f"kepler-{self.name}-{host}"

    @property
    def profile(self) -> str:
        return self.hosts[0].profile

    @property
    def compiles(self) -> bool:
        return any(host.compiler for host in self.hosts)

    @property
    def directory(self) -> Path:
        """State of the fleet on this machine."""
        return STATE / self.name

    @property
    def doors(self) -> Path:
        """Directories of the hosts' doors."""
        return self.directory / "doors"

    @property
    def key_file(self) -> Path:
        """The API key of the fleet's server, in the form that systemd reads."""
        return self.directory / "api-key.env"


def fail(message: str) -> NoReturn:
    """End with one message for the user."""
    sys.exit(f"\n{message}")


def port(variable: str, default: int) -> int:
    """Port that an environment variable names."""
    value = os.environ.get(variable) or str(default)
    if not value.isdigit() or not 1024 <= int(value) <= 65535:
        fail(f"{variable}: found {value}; expected a port of 1024 to 65535. Correct it, or leave it out.")
    return int(value)


DEMO = Fleet("demo", (Host("k80-standin"),), port("DEMO_PORT", 8000))
TEST = Fleet(
    "test", (Host("k80-standin", compiler=True), Host("other-standin", dies=False)), port("TEST_PORT", 8100)
)
# What takes minutes to build.
LARGE = ("python310", "pytorch", "vllm", "vllm_dependencies", "vllm_kernels")
BUILDER = Fleet(
    "builder",
    (
        Host("k80-builder", dies=False, compiler=True, given=LARGE),
        Host("k80-first", artifacts=False),
        # The other one takes these over the network.
        Host("k80-second", compiler=True, given=("pytorch", "vllm_dependencies")),
    ),
    port("BUILDER_PORT", 8200),
)
OFFLINE = Fleet(
    "offline",
    (Host("connected", dies=False), Host("k80-standin", artifacts=False, repositories=False, network=False)),
)
UPDATE = Fleet("update", (Host("k80-standin", artifacts=False),))
UPGRADE = Fleet("upgrade", (Host("k80-standin", given=LARGE),))
VOLTA_LARGE = ("pytorch", "vllm_dependencies", "vllm", "vllm_dependencies_port", "vllm_port")
VOLTA = Fleet(
    "volta",
    (Host("v100-standin", profile="volta", kept=VOLTA_LARGE),),
    port("VOLTA_PORT", 8300),
)
# One builds, the other two take it: PyTorch alone they begin with, which would take minutes to pack.
VOLTA_HOSTS = Fleet(
    "volta_hosts",
    (
        Host("v100-builder", profile="volta", dies=False, compiler=True, kept=VOLTA_LARGE),
        Host("v100-first", profile="volta", artifacts=False, kept=("pytorch",)),
        Host("v100-second", profile="volta", artifacts=False, kept=("pytorch",)),
    ),
    port("VOLTA_HOSTS_PORT", 8400),
)
DEMOS = {"k80": DEMO, "volta": Fleet("demo-volta", (Host("v100-standin", profile="volta"),), port("DEMO_PORT", 8000))}
FLEETS = {fleet.name: fleet for fleet in (*DEMOS.values(), TEST, BUILDER, OFFLINE, UPDATE, UPGRADE, VOLTA, VOLTA_HOSTS)}


class Step:
    """Says on standard error what begins, and how long it took when it ends."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> Step:
        self.started = time.monotonic()
        print(f"== {self.what}", file=sys.stderr, flush=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            print(f"   {time.monotonic() - self.started:.0f} s", file=sys.stderr, flush=True)
