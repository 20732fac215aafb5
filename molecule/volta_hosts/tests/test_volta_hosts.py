"""A builder of the profile volta, and inventory/examples/volta/two-hosts.yml.

Each test goes on from the one before.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable

import openai
import pytest
import yaml
from conftest import INVENTORY, PROJECT
from license import PROMPTS
from several_hosts import PORTS, Stream, asked, assert_refused, ids_of, left_behind, processes
from standin import hosts as standins
from standin.settings import VOLTA_HOSTS

EXAMPLE = PROJECT / "inventory" / "examples" / "volta" / "two-hosts.yml"
BUILDER, FIRST, SECOND = (host.name for host in VOLTA_HOSTS.hosts)
SERVERS = (FIRST, SECOND)
NAMES = {"v100-1.example.org": FIRST, "v100-2.example.org": SECOND}
MODEL = "license"
STORE = "/opt/kepler/store"
SERVER, STAGE = "vllm@qwen-32b", "vllm-stage@qwen-32b"
UNITS = {FIRST: SERVER, SECOND: STAGE}
# The environment of each engine's servers over several hosts, and the port of its server of one host.
ENGINES = {"stock": ("serving_ray", 8000), "port": ("serving_ray_port", 8001)}
# The hosts have these by now.
BEFORE_THE_BUILD = "repos,nvidia_driver,cuda_toolkit,compiler"
# Seconds until clients know of a lost stage, and until the server answers again.
KNOWN, SERVED = 30, 300


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


@pytest.fixture(scope="module")
def links(fleet) -> dict[str, str]:
    """Addresses of all hosts of the fleet on the link."""
    return standins.link(VOLTA_HOSTS, fleet)


@pytest.fixture(scope="module")
def token(fleet) -> str:
    """The key of the link, on both hosts as docs/several-hosts.md says."""
    made = fleet[FIRST].check_output("od -An -N24 -tx1 /dev/urandom | tr -d ' \n'")
    for name in SERVERS:
        fleet[name].check_output(
            f"umask 077; mkdir -p /etc/kepler/keys; echo RAY_AUTH_TOKEN={made} > /etc/kepler/keys/link.env"
        )
        fleet[name].check_output("systemctl enable --now firewalld")
    return made


# Preflight refuses the other one.
@pytest.fixture(scope="module", params=["port"])
def engine(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def play(engine, links, alone, tmp_path_factory) -> Callable[..., tuple[int, str]]:
    """Function that runs a playbook for the example, with the names, the model and the sizes of the stand-ins."""
    text = EXAMPLE.read_text()
    for name, standin in NAMES.items():
        text = text.replace(name, standin)
    variables = yaml.safe_load(text)["v100-hosts"]["vars"]
    inventory = tmp_path_factory.mktemp("inventory")
    shutil.copytree(INVENTORY, inventory, dirs_exist_ok=True)
    hosts = inventory / "group_vars" / "v100-hosts.yml"
    before = yaml.safe_load(hosts.read_text())
    (instance,) = variables["vllm_service_instances"]
    (of_one_host,) = (one for one in before["vllm_service_instances"] if one.get("engine", "stock") == engine)
    instance.update(
        {**of_one_host, "name": instance["name"]}, engine=engine, dtype="float32", port=8000,
        link={name: links[name] for name in SERVERS}, gpus=[0, 1], tensor_parallel_size=2,
    )
    hosts.write_text(yaml.safe_dump({**before, **variables}))

    def run(playbook: str, *arguments: str) -> tuple[int, str]:
        return standins.play(VOLTA_HOSTS, "-i", str(inventory), playbook, *arguments)

    return run


@pytest.fixture(scope="module")
def served(fleet, play, token) -> None:
    """The example, served, with the firewall on as Enterprise Linux has it."""
    status, printed = play("site.yml", "--skip-tags", BEFORE_THE_BUILD)
    assert status == 0, printed[-3000:]


@pytest.fixture
def api(ask) -> openai.OpenAI:
    return ask(8000)


def test_two_hosts_answer_as_one(fleet, engine, alone, served, api):
    """From two ranks of each host."""
    assert ids_of(api, MODEL, PROMPTS) == alone[engine]
    environment = ENGINES[engine][0]
    for name, unit in UNITS.items():
        units = fleet[name].check_output("systemctl list-units --plain --no-legend 'vllm*@*'")
        assert units.split()[0] == f"{unit}.service"
        assert len([line for line in processes(fleet[name]) if "RayWorkerWrapper" in line]) == 2
        assert set(fleet[name].check_output("ps -U vllm -o unit=").split()) == {f"{unit}.service"}
        assert re.search(rf"-{environment}-[0-9.]+/bin/python", "\n".join(processes(fleet[name])))


def test_key_of_the_api_does_not_cross_the_link(fleet, served):
    """vLLM logs the names of the variables that it hands on."""
    log = fleet[FIRST].check_output(f"journalctl --boot --unit {SERVER} --output cat")
    (*_, copied) = re.findall("opying the following environment variables to workers: .*", log)
    assert "VLLM_USAGE_SOURCE" in copied or "VLLM_NO_USAGE_STATS" in copied
    assert "VLLM_API_KEY" not in copied


def test_second_run_over_two_hosts_changes_nothing(served, play):
    status, printed = play("site.yml", "--skip-tags", f"preflight,{BEFORE_THE_BUILD}")
    assert status == 0, printed[-3000:]
    changes = dict(re.findall(r" (\S+) : ok=\d+ changed=(\d+) ", printed))
    assert changes == {host.name: "0" for host in VOLTA_HOSTS.hosts}, printed[-3000:]


@pytest.mark.parametrize("stranger", ["", "0" * 48], ids=["no token", "another token"])
def test_strangers_are_refused_on_every_port_of_ray(fleet, served, links, token, stranger):
    """From a host of the instance, whose address the firewall lets through."""
    assert_refused(fleet[SECOND], {links[name]: fleet[name] for name in SERVERS}, stranger, 12)
    assert "grpc 0" in asked(fleet[SECOND], links[FIRST], PORTS[:1], token)[PORTS[0]]


def test_firewall_lets_in_the_hosts_of_the_instance_alone(fleet, served, links):
    for name, other in (SERVERS, SERVERS[::-1]):
        assert fleet[name].check_output("firewall-cmd --zone trusted --list-sources") == links[other]
    connect = "timeout 5 bash -c '< /dev/tcp/{}/{}'"
    for name in SERVERS:
        for port in PORTS[:3]:
            assert fleet[BUILDER].run(connect.format(links[name], port)).rc != 0
    assert fleet[SECOND].run(connect.format(links[FIRST], PORTS[0])).rc == 0


# What is lost: on which host, and by which command.
LOST = {
    "rank": (SECOND, "pkill --signal KILL --newest --full '[R]ayWorkerWrapper'"),
    "stage": (SECOND, f"systemctl kill --signal KILL --kill-who all {STAGE}"),
    "server": (FIRST, f"systemctl kill --signal KILL --kill-who all {SERVER}"),
}


@pytest.mark.parametrize("what", LOST)
def test_lost_part_comes_back(fleet, engine, served, api, alone, what):
    """A client that streams knows, the unit ends, and serves again by itself."""
    host, fail = LOST[what]
    stream = Stream(api, MODEL)
    before = fleet[FIRST].check_output(f"systemctl show {SERVER} --property InvocationID")
    fleet[host].check_output(fail)
    began = time.monotonic()
    stream.thread.join(KNOWN)
    assert stream.error is not None, f"the client knows nothing after {KNOWN} s"
    known, answers = max(0, stream.ended - began), None
    while answers is None:
        assert time.monotonic() - began < SERVED, "it is not served again"
        time.sleep(1)
        if before != fleet[FIRST].check_output(f"systemctl show {SERVER} --property InvocationID"):
            try:
                answers = ids_of(api, MODEL, PROMPTS[:1])
            except openai.OpenAIError:
                continue
    print(f"{engine}, {what}: clients after {known:.1f} s, served again after {time.monotonic() - began:.0f} s")
    assert answers == alone[engine][:1]


def test_stopped_units_leave_nothing_behind(fleet, served):
    for name in SERVERS:
        fleet[name].check_output(f"systemctl stop {UNITS[name]}")
        assert fleet[name].run(f"systemctl is-failed {UNITS[name]}").rc != 0
    for name in SERVERS:
        assert processes(fleet[name]) == []
        assert left_behind(fleet[name], "qwen-32b") == ""
