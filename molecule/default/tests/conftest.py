"""The stand-ins of the fleet `test`, as testinfra hosts and as an address to talk to."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import testinfra

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT / "molecule" / "shared"))

from standin import engine  # noqa: E402
from standin import hosts as standins  # noqa: E402
from standin.settings import LONG, TEST  # noqa: E402

minutes = pytest.mark.skipif(not LONG, reason="takes minutes: STANDIN_LONG=1 runs it")
MODEL = standins.model_name()
URL = f"http://127.0.0.1:{TEST.port}"


@pytest.fixture(scope="session", autouse=True)
def client():
    """The container engine; testinfra finds it by DOCKER_HOST."""
    client = engine.ensure()
    standins.keep_outputs(TEST)
    return client


@pytest.fixture(scope="session")
def k80(client):
    return testinfra.get_host(f"docker://{TEST.container('k80-standin')}")


@pytest.fixture(scope="session")
def other(client):
    return testinfra.get_host(f"docker://{TEST.container('other-standin')}")


@pytest.fixture(scope="session")
def compiler(client):
    """The private nvcc that is mounted in the K80 host; None where it has none."""
    return standins.nvcc(TEST)


@pytest.fixture(scope="session")
def key() -> str:
    return (TEST.directory / "api-key").read_text()


@pytest.fixture(scope="session")
def lock() -> dict:
    """The project's lock."""
    import yaml

    directory = PROJECT / "profiles" / "k80" / "lock"
    return {name: yaml.safe_load((directory / f"{name}.yml").read_text()) for name in ("rpms", "sources")}


@pytest.fixture
def play(request, tmp_path):
    """Function that runs a playbook against one host with further variables: (exit status, what it printed).

    options: of ansible-playbook.
    """

    def run(
        host: str, *variables: str, playbook: str | Path = "site.yml", options: tuple[str, ...] = ()
    ) -> tuple[int, str]:
        inventory = tmp_path / "inventory"
        shutil.copytree(PROJECT / "inventory" / "standin", inventory, dirs_exist_ok=True)
        # The host in question is the K80 host of this run.
        (inventory / "hosts.yml").write_text(f"k80-hosts:\n  hosts:\n    {host}:\n")
        arguments = [part for variable in variables for part in ("-e", variable)]
        return standins.play(TEST, "-i", str(inventory), str(playbook), "-l", "k80-hosts", *arguments, *options)

    return run
