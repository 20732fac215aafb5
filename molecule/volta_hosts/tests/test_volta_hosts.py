"""A builder of the profile volta, and inventory/examples/volta/two-hosts.yml.

Each test goes on from the one before.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import openai
import pytest
import yaml
from conftest import INVENTORY, PROJECT
from license import PROMPTS
from several_hosts import FAILURES, PORTS, Instance, assert_nothing_to_do, ids_of
from standin import hosts as standins
from standin.settings import VOLTA_HOSTS

EXAMPLE = PROJECT / "inventory" / "examples" / "volta" / "two-hosts.yml"
BUILDER, FIRST, SECOND = (host.name for host in VOLTA_HOSTS.hosts)
SERVERS = (FIRST, SECOND)
MODEL = "license"
STORE = "/opt/kepler/store"
# The environment of each engine's servers over several hosts, and the port of its server of one host.
ENGINES = {"stock": ("serving", 8000), "port": ("serving_ray_port", 8001)}
# How the released engine differs from one over Ray.
OWN_RANKS = {"rank": "[V]LLM::Worker", "joined": PORTS[1]}


@pytest.fixture(scope="module")
def ask(fleet) -> Callable[[int], openai.OpenAI]:
    """Function that returns a client of the first host's server on a port."""
    address = fleet[FIRST].check_output("hostname -I").split()[0]
    key = (VOLTA_HOSTS.directory / "api-key").read_text()
    return lambda port: openai.OpenAI(base_url=f"http://{address}:{port}/v1", api_key=key, max_retries=0)


def test_hosts_took_every_output_from_the_builder(fleet):
    """The builder alone compiled; PyTorch the hosts had from the start."""
    names = fleet[FIRST].check_output(f"ls {STORE}").split()
    assert len(names) >= 11
    manifests = f"cd {STORE} && cat {' '.join(f'{name}/.kepler-manifest.json' for name in names)} | sha256sum"
    assert len({fleet[name].check_output(manifests) for name in (BUILDER, *SERVERS)}) == 1
    assert fleet[BUILDER].check_output("ls /usr/local/cuda-12.8/bin/nvcc")
    for name in SERVERS:
        assert fleet[name].check_output("ls -A /opt/kepler/sources") == ""
        assert fleet[name].run("ls /usr/local/cuda-12.8").rc != 0
        fleet[name].check_output("kepler-store verify")
    assert not fleet[BUILDER].file("/opt/kepler/current").exists


@pytest.fixture(scope="module")
def alone(fleet, ask) -> dict[str, list[list[str]]]:
    """What the servers of one host answer, by engine."""
    return {engine: ids_of(ask(port), MODEL, PROMPTS) for engine, (_, port) in ENGINES.items()}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def instance(fleet, engine) -> Instance:
    own = OWN_RANKS if engine == "stock" else {}
    return Instance("qwen-32b", fleet, SERVERS, BUILDER, standins.link(VOLTA_HOSTS, fleet), **own)


@pytest.fixture(scope="module")
def play(engine, instance, tmp_path_factory) -> Callable[..., tuple[int, str]]:
    """Function that runs a playbook for the example, with the options of that engine's server of one host."""
    before = yaml.safe_load((INVENTORY / "group_vars" / "v100-hosts.yml").read_text())
    (of_one_host,) = (one for one in before["vllm_service_instances"] if one.get("engine", "stock") == engine)
    inventory = tmp_path_factory.mktemp("inventory")
    instance.lay_inventory(inventory, INVENTORY, EXAMPLE, **{
        **of_one_host, "name": instance.name, "engine": engine, "port": 8000, "gpus": [0, 1], "tensor_parallel_size": 2,
    })

    def run(playbook: str, *arguments: str) -> tuple[int, str]:
        return standins.play(VOLTA_HOSTS, "-i", str(inventory), playbook, *arguments)

    return run


@pytest.fixture(scope="module")
def token(instance) -> str:
    return instance.give_key()


@pytest.fixture(scope="module")
def served(instance, alone, play, token) -> None:
    instance.serve(play)


@pytest.fixture
def api(ask) -> openai.OpenAI:
    return ask(8000)


def test_two_hosts_answer_as_one(instance, engine, alone, served, api):
    """From two ranks of each host."""
    assert ids_of(api, MODEL, PROMPTS) == alone[engine]
    instance.assert_ranks(ENGINES[engine][0])


def test_key_of_the_api_does_not_cross_the_link(fleet, instance, engine, served):
    """With Ray vLLM logs the names of the variables that it hands on."""
    if engine == "stock":
        (*ranks,) = fleet[SECOND].check_output(f"pgrep --full '{instance.rank}'").split()
        assert len(ranks) == 2
        for rank in ranks:
            names = fleet[SECOND].check_output(f"tr '\\0' '\\n' < /proc/{rank}/environ | cut -d= -f1").split()
            assert "VLLM_HOST_IP" in names
            assert "VLLM_API_KEY" not in names
        return
    log = fleet[FIRST].check_output(f"journalctl --boot --unit {instance.units[FIRST]} --output cat")
    (*_, copied) = re.findall("opying the following environment variables to workers: .*", log)
    assert "VLLM_USAGE_SOURCE" in copied or "VLLM_NO_USAGE_STATS" in copied
    assert "VLLM_API_KEY" not in copied


def test_second_run_over_two_hosts_changes_nothing(fleet, served, play):
    assert_nothing_to_do(fleet, play)


def test_strangers_reach_no_port(instance, engine, served, token):
    """Ray's ports ask for the token; those of vLLM itself listen on the link."""
    if engine == "stock":
        instance.assert_listens_on_the_link(public={8000, PORTS[1]})
        return
    for stranger in ("", "0" * 48):
        instance.assert_refused(token, stranger)


def test_firewall_lets_in_the_hosts_of_the_instance_alone(instance, served):
    instance.assert_firewall()


@pytest.mark.parametrize("what", FAILURES)
def test_lost_part_comes_back(instance, engine, served, api, alone, what):
    instance.assert_comes_back(api, MODEL, alone[engine], what)


def test_stopped_units_leave_nothing_behind(instance, served):
    instance.assert_stops()
