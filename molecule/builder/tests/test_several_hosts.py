"""inventory/examples/two-hosts.yml on the fleet: one instance over both hosts, behind the balancer.

The last tests of the scenario: each goes on from the one before. What takes minutes runs with STANDIN_LONG=1.
"""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import openai
import pytest
from conftest import INVENTORY, PROJECT
from generations import LINE, NAN, active, changed_port
from license import PROMPTS
from several_hosts import BEFORE_THE_BUILD, FAILURES, Instance, assert_nothing_to_do, ids_of, processes, serves_again
from standin import hosts as standins
from standin.settings import BUILDER, LONG
from streams import MODEL, Address

minutes = pytest.mark.skipif(not LONG, reason="takes minutes: STANDIN_LONG=1 runs it")
EXAMPLE = PROJECT / "inventory" / "examples" / "two-hosts.yml"
FIRST, SECOND = SERVERS = ("k80-first", "k80-second")
BALANCER = "k80-builder"

@pytest.fixture(scope="module")
def address(fleet) -> Address:
    """The balancer, with the key of a client."""
    balancer = fleet[BALANCER]
    key = balancer.check_output("cut -d' ' -f2 /etc/kepler-standin/clients")
    certificate = balancer.check_output("cat /etc/kepler-standin/certificate.pem")
    return Address(f"https://127.0.0.1:{BUILDER.port}/v1", key, certificate)


@pytest.fixture(scope="module")
def api(address) -> openai.OpenAI:
    return address.client()


@pytest.fixture(scope="module")
def alone(fleet, api) -> list[list[str]]:
    """What a server of one host answers."""
    return ids_of(api, MODEL, PROMPTS)


def test_servers_of_one_host_have_no_ray(fleet, alone):
    for name in SERVERS:
        host = fleet[name]
        assert processes(host)
        assert not [line for line in processes(host) if "ray" in line]
        files = "ls /opt/kepler/current; systemctl cat vllm@main; cat /etc/kepler/instances/main.*"
        assert not re.search("ray|pipeline", host.check_output(files), re.IGNORECASE)
        assert host.run("systemctl cat vllm-stage@llama-70b").rc != 0


@pytest.fixture(scope="module")
def instance(fleet) -> Instance:
    return Instance("llama-70b", fleet, SERVERS, BALANCER, standins.link(BUILDER, fleet))


@pytest.fixture(scope="module")
def play(instance, tmp_path_factory) -> Callable[..., tuple[int, str]]:
    """Function that runs a playbook for the example, with the names, the model and the sizes of the stand-ins."""
    directory = tmp_path_factory.mktemp("inventory")
    instance.lay_inventory(
        directory, INVENTORY, EXAMPLE, model=standins.model_name(), served_model_name=MODEL,
        gpus=[0, 1], tensor_parallel_size=2, max_model_len=1024, dtype="float32",
        # What the balancer asks of a server on another host.
        host="0.0.0.0", api_key_file="/etc/kepler-standin/api-key.env",
    )

    def run(playbook: str, *arguments: str) -> tuple[int, str]:
        return standins.play(BUILDER, "-i", str(directory), playbook, *arguments)

    return run


@pytest.fixture(scope="module")
def token(instance) -> str:
    return instance.give_key()


@pytest.fixture(scope="module")
def served(instance, alone, play, token) -> None:
    instance.serve(play)


def test_two_hosts_answer_as_one(instance, alone, served, api):
    """Through the balancer, from two ranks of each host."""
    assert ids_of(api, MODEL, PROMPTS) == alone
    instance.assert_ranks("serving_ray")


def test_balancer_has_one_server(served, address):
    def status(path: str, key: str | None = None) -> int:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        request = urllib.request.Request(address.url.removesuffix("/v1") + path, headers=headers)
        try:
            return urllib.request.urlopen(request, timeout=60, context=address.trust()).status
        except urllib.error.HTTPError as error:
            return error.code

    assert [status(f"/health/{name}/llama-70b") for name in SERVERS] == [200, 404]
    assert [status("/v1/models", key) for key in (None, "another", address.key)] == [401, 401, 200]


def test_second_run_over_two_hosts_changes_nothing(fleet, served, play):
    assert_nothing_to_do(fleet, play)


@pytest.mark.parametrize("stranger", ["", "0" * 48], ids=["no token", "another token"])
def test_strangers_are_refused_on_every_port_of_ray(instance, served, token, stranger):
    instance.assert_refused(token, stranger)


def test_firewall_lets_in_the_hosts_of_the_instance_alone(fleet, instance, served):
    instance.assert_firewall()
    assert fleet[BALANCER].run(f"timeout 5 bash -c '< /dev/tcp/{instance.links[FIRST]}/8000'").rc == 0


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[] if what == "stage" else minutes) for what in FAILURES],
)
def test_lost_part_comes_back(instance, served, api, alone, what):
    instance.assert_comes_back(api, MODEL, alone, what)


@minutes
@pytest.mark.parametrize("order", [SERVERS, SERVERS[::-1]], ids=["server first", "stage first"])
def test_restarts_in_either_order_serve(fleet, instance, served, api, alone, order):
    for name in order:
        fleet[name].check_output(f"systemctl stop {instance.units[name]}")
    for name in order:
        fleet[name].check_output(f"systemctl start --no-block {instance.units[name]}")
        time.sleep(5)
    serves_again(api, MODEL)
    assert ids_of(api, MODEL, PROMPTS[:1]) == alone[:1]


@minutes
def test_upgrade_and_rollback_take_both_hosts(fleet, served, play, api, alone, tmp_path):
    before = {name: active(fleet[name]) for name in SERVERS}
    port = changed_port(tmp_path / "good", f"{LINE}    # Over two hosts.\n")
    status, printed = play("playbooks/upgrade.yml", "-e", f"__vllm_port={port}", "--skip-tags", BEFORE_THE_BUILD)
    assert status == 0, printed[-3000:]
    assert all(active(fleet[name]) > before[name] for name in SERVERS)
    assert ids_of(api, MODEL, PROMPTS[:1]) == alone[:1]

    status, printed = play("playbooks/rollback.yml", "-l", SECOND)
    assert status != 0
    assert f"shares an instance with {FIRST}" in printed, printed[-3000:]
    status, printed = play("playbooks/rollback.yml")
    assert status == 0, printed[-3000:]
    assert {name: active(fleet[name]) for name in SERVERS} == before
    assert ids_of(api, MODEL, PROMPTS[:1]) == alone[:1]


@minutes
def test_bad_generation_goes_back_on_both_hosts(fleet, served, play, api, alone, tmp_path):
    before = {name: active(fleet[name]) for name in SERVERS}
    port = changed_port(tmp_path, NAN)
    status, printed = play("playbooks/upgrade.yml", "-e", f"__vllm_port={port}", "--skip-tags", BEFORE_THE_BUILD)
    assert status != 0
    assert printed.count("this host is back on generation") == len(SERVERS), printed[-3000:]
    assert {name: active(fleet[name]) for name in SERVERS} == before
    assert ids_of(api, MODEL, PROMPTS[:1]) == alone[:1]


def test_stopped_units_leave_nothing_behind(instance, served):
    instance.assert_stops()


@minutes
def test_removed_instance_closes_the_firewall(fleet, served, play):
    status, printed = play("site.yml", "--tags", "vllm_service", "-e", '{"vllm_service_instances": []}')
    assert status == 0, printed[-3000:]
    for name in SERVERS:
        assert fleet[name].check_output("firewall-cmd --permanent --zone trusted --list-sources") == ""
        assert "8000" not in fleet[name].check_output("firewall-cmd --permanent --list-ports")
        assert fleet[name].check_output("ls /etc/kepler/instances") == "started"
