"""inventory/examples/two-hosts.yml on the fleet: one instance over both hosts, behind the balancer.

The last tests of the scenario: each goes on from the one before. What takes minutes runs with STANDIN_LONG=1.
"""

from __future__ import annotations

import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import openai
import pytest
import yaml
from conftest import INVENTORY, PROJECT
from generations import LINE, NAN, active, changed_port
from license import PROMPTS
from several_hosts import PORTS, Stream, asked, assert_refused, ids_of, left_behind, processes
from standin import hosts as standins
from standin.settings import BUILDER, LONG
from streams import MODEL, Address
from waiting import until

minutes = pytest.mark.skipif(not LONG, reason="takes minutes: STANDIN_LONG=1 runs it")
EXAMPLE = PROJECT / "inventory" / "examples" / "two-hosts.yml"
FIRST, SECOND = SERVERS = ("k80-first", "k80-second")
BALANCER = "k80-builder"
NAMES = {"k80-1.example.org": FIRST, "k80-2.example.org": SECOND}
SERVER, STAGE = "vllm@llama-70b", "vllm-stage@llama-70b"
UNITS = {FIRST: SERVER, SECOND: STAGE}
LINK = "eth1"  # the fleet's second network
# The hosts have these by now.
BEFORE_THE_BUILD = "repos,nvidia_driver,cuda_toolkit,compiler"
# Seconds until clients know of a failure, and until the server answers again: two minutes, and as much for what other
# parts of the tests take of the processors.
KNOWN, CUT, SERVED = 5, 30, 240


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
        assert host.run(f"systemctl cat {STAGE}").rc != 0


@pytest.fixture(scope="module")
def links(fleet) -> dict[str, str]:
    """Addresses of all hosts of the fleet on the link."""
    return standins.link(BUILDER, fleet)


@pytest.fixture(scope="module")
def play(links, tmp_path_factory) -> Callable[..., tuple[int, str]]:
    """Function that runs a playbook for the example, with the names, the model and the sizes of the stand-ins."""
    text = EXAMPLE.read_text()
    for name, standin in NAMES.items():
        text = text.replace(name, standin)
    variables = yaml.safe_load(text)["k80-hosts"]["vars"]
    (instance,) = variables["vllm_service_instances"]
    instance.update(
        model=standins.model_name(), served_model_name=MODEL, link={name: links[name] for name in SERVERS},
        gpus=[0, 1], tensor_parallel_size=2, max_model_len=1024, dtype="float32",
        # What the balancer asks of a server on another host.
        host="0.0.0.0", api_key_file="/etc/kepler-standin/api-key.env",
    )
    directory = tmp_path_factory.mktemp("inventory")
    shutil.copytree(INVENTORY, directory, dirs_exist_ok=True)
    hosts = directory / "group_vars" / "k80-hosts.yml"
    hosts.write_text(yaml.safe_dump({**yaml.safe_load(hosts.read_text()), **variables}))

    def run(playbook: str, *arguments: str) -> tuple[int, str]:
        return standins.play(BUILDER, "-i", str(directory), playbook, *arguments)

    return run


@pytest.fixture(scope="module")
def token(fleet) -> str:
    """The key of the link, on both hosts as docs/several-hosts.md says."""
    directory = "/etc/kepler/keys"
    made = fleet[FIRST].check_output("od -An -N24 -tx1 /dev/urandom | tr -d ' \n'")
    for name in SERVERS:
        fleet[name].check_output(
            f"umask 077; mkdir -p {directory}; echo RAY_AUTH_TOKEN={made} > {directory}/link.env"
        )
    return made


@pytest.fixture(scope="module")
def served(fleet, alone, play, token) -> None:
    """The example, served, with the firewall on as Enterprise Linux has it."""
    for name in SERVERS:
        fleet[name].check_output("systemctl enable --now firewalld")
    status, printed = play("site.yml", "--skip-tags", BEFORE_THE_BUILD)
    assert status == 0, printed[-3000:]


def test_two_hosts_answer_as_one(fleet, alone, served, api):
    """Through the balancer, from two ranks of each host."""
    assert ids_of(api, MODEL, PROMPTS) == alone
    for name, unit in UNITS.items():
        units = fleet[name].check_output("systemctl list-units --plain --no-legend 'vllm*@*'")
        assert units.split()[0] == f"{unit}.service"
        assert len([line for line in processes(fleet[name]) if "RayWorkerWrapper" in line]) == 2
        ours = fleet[name].check_output("ps -U vllm -o unit=").split()
        assert set(ours) == {f"{unit}.service"}
    assert "lends 2 GPUs to" in fleet[SECOND].check_output(f"systemctl show {STAGE} --property StatusText")


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


def test_second_run_over_two_hosts_changes_nothing(served, play):
    status, printed = play("site.yml", "--skip-tags", f"preflight,{BEFORE_THE_BUILD}")
    assert status == 0, printed[-3000:]
    changes = dict(re.findall(r" (\S+) : ok=\d+ changed=(\d+) ", printed))
    assert changes == {host.name: "0" for host in BUILDER.hosts}, printed[-3000:]


@pytest.mark.parametrize("stranger", ["", "0" * 48], ids=["no token", "another token"])
def test_strangers_are_refused_on_every_port_of_ray(fleet, served, links, token, stranger):
    """From a host of the instance, whose address the firewall lets through."""
    # Head, two raylets of two ports, two side processes, four ranks, the engine.
    assert_refused(fleet[SECOND], {links[name]: fleet[name] for name in SERVERS}, stranger, 12)
    assert "grpc 0" in asked(fleet[SECOND], links[FIRST], PORTS[:1], token)[PORTS[0]]


def test_firewall_lets_in_the_hosts_of_the_instance_alone(fleet, served, links):
    for name, other in (SERVERS, SERVERS[::-1]):
        assert fleet[name].check_output("firewall-cmd --zone trusted --list-sources") == links[other]
        assert fleet[name].check_output("firewall-cmd --permanent --zone trusted --list-sources") == links[other]
    # Its address on the link is none of the instance's.
    connect = "timeout 5 bash -c '< /dev/tcp/{}/{}'"
    for name in SERVERS:
        for port in PORTS[:3]:
            assert fleet[BALANCER].run(connect.format(links[name], port)).rc != 0
    assert fleet[SECOND].run(connect.format(links[FIRST], PORTS[0])).rc == 0
    assert fleet[BALANCER].run(connect.format(links[FIRST], 8000)).rc == 0


def kill(unit: str) -> str:
    return f"systemctl kill --signal KILL --kill-who all {unit}"


def cut(state: str) -> str:
    return f"ip link set {LINK} {state}"


# What is lost: on which host, by which command, what brings it back, after how many seconds clients must know.
STAGE_LOST = (SECOND, kill(STAGE), "true", KNOWN)
FAILURES = {
    "rank": (SECOND, "pkill --signal KILL --newest --full '[R]ayWorkerWrapper'", "true", KNOWN),
    "link": (SECOND, cut("down"), cut("up"), CUT),
    "head": (FIRST, kill(SERVER), "true", KNOWN),
}


def assert_comes_back(fleet, api, alone, what, host, fail, mend, most) -> None:
    """Fail while a client streams: it knows soon, the unit ends, and is served again by itself."""
    stream = Stream(api, MODEL)
    before = fleet[FIRST].check_output(f"systemctl show {SERVER} --property InvocationID")
    fleet[host].check_output(fail)
    began = time.monotonic()
    stream.thread.join(most)
    known = max(0, stream.ended - began)
    assert stream.error is not None, f"{what}: the client knows nothing after {most} s"
    until(
        lambda: fleet[FIRST].check_output(f"systemctl show {SERVER} --property InvocationID,ActiveState"),
        f"{what}: the unit did not end", lambda found: before not in found or "ActiveState=active" not in found, 60,
    )
    ended = time.monotonic() - began
    fleet[host].check_output(mend)
    mended = time.monotonic()
    served_again(fleet, api)
    print(f"{what}: clients after {known:.1f} s, unit ended after {ended:.0f} s, served again "
          f"{time.monotonic() - mended:.0f} s later")
    assert ids_of(api, MODEL, PROMPTS[:1]) == alone[:1]


def served_again(fleet, api) -> None:
    def answers() -> bool:
        try:
            return bool(ids_of(api, MODEL, PROMPTS[:1]))
        except openai.OpenAIError:
            return False

    until(answers, "it is not served again", seconds=SERVED)


def test_killed_stage_comes_back(fleet, served, api, alone):
    assert_comes_back(fleet, api, alone, "stage", *STAGE_LOST)


@minutes
@pytest.mark.parametrize("what", FAILURES)
def test_lost_part_comes_back(fleet, served, api, alone, what):
    assert_comes_back(fleet, api, alone, what, *FAILURES[what])


@minutes
@pytest.mark.parametrize("order", [SERVERS, SERVERS[::-1]], ids=["server first", "stage first"])
def test_restarts_in_either_order_serve(fleet, served, api, alone, order):
    for name in order:
        fleet[name].check_output(f"systemctl stop {UNITS[name]}")
    for name in order:
        fleet[name].check_output(f"systemctl start --no-block {UNITS[name]}")
        time.sleep(5)
    served_again(fleet, api)
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


def test_stopped_units_leave_nothing_behind(fleet, served):
    for name in SERVERS:
        fleet[name].check_output(f"systemctl stop {UNITS[name]}")
        assert fleet[name].run(f"systemctl is-failed {UNITS[name]}").rc != 0
    for name in SERVERS:
        assert processes(fleet[name]) == []
        assert left_behind(fleet[name], "llama-70b") == ""


@minutes
def test_removed_instance_closes_the_firewall(fleet, served, play):
    status, printed = play("site.yml", "--tags", "vllm_service", "-e", '{"vllm_service_instances": []}')
    assert status == 0, printed[-3000:]
    for name in SERVERS:
        assert fleet[name].check_output("firewall-cmd --permanent --zone trusted --list-sources") == ""
        assert "8000" not in fleet[name].check_output("firewall-cmd --permanent --list-ports")
        assert fleet[name].check_output("ls /etc/kepler/instances") == "started"
