"""What the scenarios with a server over two hosts have in common: its inventory, its key, and what they ask of it."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import yaml
from license import PROMPTS, follows
from waiting import until

TOKENS = 24
# Hosts that serve have these.
BEFORE_THE_BUILD = "repos,nvidia_driver,cuda_toolkit,compiler"
# A fleet's second network.
LINK = "eth1"
# Seconds until a server that lost a part answers again: two minutes, and as much for what other parts of the tests take
# of the processors.
SERVED = 240
# From link_port on.
PORTS = range(6379, 6379 + 120)
# A method of each of its services.
METHODS = (
    "NodeInfoGcsService/CheckAlive", "NodeManagerService/GetNodeStats", "ObjectManagerService/Pull",
    "CoreWorkerService/PushTask",
)
# Answers for want of the token, and those that are given.
REFUSALS, ANSWERS = {"grpc 16", "http 401", "http 403"}, {"grpc 0", "http 200"}
# Asks PORTS of a host with a METHOD each, and prints port and status; "http" for a port that is none of gRPC. A port
# that does not know the method may close the stream before curl has read its answer, so each is asked twice.
ASK = r"""
for port in {ports}; do
    echo $port http $(curl --silent --max-time 10 --output /dev/null --write-out '%{{http_code}}' {header} \
        http://{host}:$port/)
    for method in {methods} {methods}; do
        echo $port grpc $(printf '\0\0\0\0\0' | curl --silent --max-time 10 --http2-prior-knowledge --request POST \
            --dump-header - --output /dev/null --header 'Content-Type: application/grpc' --header 'TE: trailers' \
            {header} --data-binary @- http://{host}:$port/ray.rpc.$method | tr -d '\r' | sed -n 's/^grpc-status: //p')
    done
done
"""


def asked(client: Any, host: str, ports: Iterable[int], token: str) -> dict[int, set[str]]:
    """What each of a host's ports answers a client with a token, or with none: kinds with their status."""
    header = f"--header 'Authorization: Bearer {token}'" if token else ""
    script = ASK.format(ports=" ".join(map(str, ports)), host=host, header=header, methods=" ".join(METHODS))
    answers: dict[int, set[str]] = {}
    for line in client.check_output(script).splitlines():
        port, _, answer = line.partition(" ")
        answers.setdefault(int(port), set()).add(answer)
    return answers


def ids_of(api: openai.OpenAI, model: str, prompts: list[str]) -> list[list[str]]:
    """Greedy ids of the answers to prompts, which go on as the license does."""
    answers = []
    for prompt in prompts:
        answer = api.completions.create(
            model=model, prompt=prompt, max_tokens=TOKENS, temperature=0, logprobs=0,
            extra_body={"return_tokens_as_token_ids": True},
        )
        (choice,) = answer.choices
        assert follows(prompt, choice.text), choice.text
        assert choice.logprobs
        answers.append(choice.logprobs.tokens or [])
    return answers


class Stream:
    """A client that reads one long stream until it breaks.

    Attributes:
        begun: is set with the first token.
        ended: time at which it ended, in any way.
        error: what ended it; None for an answer that came to its end.
    """

    def __init__(self, api: openai.OpenAI, model: str) -> None:
        self.api, self.model, self.begun = api, model, threading.Event()
        self.ended = 0.0
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        assert self.begun.wait(60)

    def run(self) -> None:
        try:
            for _ in self.api.completions.create(
                model=self.model, prompt=PROMPTS[0], max_tokens=1000, stream=True, extra_body={"ignore_eos": True}
            ):
                self.begun.set()
        except (openai.OpenAIError, httpx2.HTTPError) as error:
            self.error = error
        self.ended = time.monotonic()


def processes(host: Any) -> list[str]:
    """Processes of the servers' user."""
    return host.run("ps -U vllm -o args=").stdout.splitlines()


@dataclass(frozen=True)
class Failure:
    """How a part of a server is lost.

    Attributes:
        host: whose: 0 for that of the server, 1 for that of its stage.
        command: what fails it, with the names of the units and of a rank's process.
        mend: what must be done before it can serve again.
        known: seconds after which clients must know.
    """

    host: int
    command: str
    mend: str = "true"
    known: int = 5


CONNECT = "timeout 5 bash -c '< /dev/tcp/{}/{}'"
KILL = "systemctl kill --signal KILL --kill-who all "
FAILURES = {
    "stage": Failure(1, f"{KILL}{{stage}}"),
    "rank": Failure(1, "pkill --signal KILL --newest --full '{rank}'"),
    "link": Failure(1, f"ip link set {LINK} down", f"ip link set {LINK} up", known=30),
    "server": Failure(0, f"{KILL}{{server}}"),
}


@dataclass(frozen=True)
class Instance:
    """An example with a server over two hosts, on a fleet.

    Attributes:
        name: of the instance.
        fleet: the fleet's hosts by their names.
        names: of the server's host, and of the stage's.
        stranger: name of a host of the fleet that is none of them.
        links: addresses on the link, by host.
        rank: how the name of a rank's process begins, as a pattern that does not match itself.
        joined: port at which the head's ranks, or Ray's nodes, have found one another.
    """

    name: str
    fleet: dict[str, Any]
    names: tuple[str, str]
    stranger: str
    links: dict[str, str]
    rank: str = "[R]ayWorkerWrapper"
    joined: int = PORTS[0]

    @property
    def units(self) -> dict[str, str]:
        """The unit of each host."""
        return dict(zip(self.names, (f"vllm@{self.name}", f"vllm-stage@{self.name}"), strict=True))

    def give_key(self) -> str:
        """Make the key of the link, and write it to both hosts as docs/several-hosts.md says."""
        made: str = self.fleet[self.names[0]].check_output("od -An -N24 -tx1 /dev/urandom | tr -d ' \n'")
        for name in self.names:
            self.fleet[name].check_output(
                f"umask 077; mkdir -p /etc/kepler/keys; echo RAY_AUTH_TOKEN={made} > /etc/kepler/keys/link.env"
            )
        return made

    def lay_inventory(self, directory: Path, scenario: Path, example: Path, **differs: Any) -> None:
        """Write a scenario's inventory with the variables of an example, whose instance `differs` in what is named."""
        text = example.read_text()
        (documented,) = yaml.safe_load(text).values()
        for host, name in zip(documented["hosts"], self.names, strict=True):
            text = text.replace(host, name)
        ((group, content),) = yaml.safe_load(text).items()
        (instance,) = content["vars"]["vllm_service_instances"]
        instance.update(link={name: self.links[name] for name in self.names}, **differs)
        shutil.copytree(scenario, directory, dirs_exist_ok=True)
        variables = directory / "group_vars" / f"{group}.yml"
        variables.write_text(yaml.safe_dump({**yaml.safe_load(variables.read_text()), **content["vars"]}))

    def serve(self, play: Callable[..., tuple[int, str]]) -> None:
        """Serve the example that `play` has, with the firewall on as Enterprise Linux has it."""
        for name in self.names:
            self.fleet[name].check_output("systemctl enable --now firewalld")
        status, printed = play("site.yml", "--skip-tags", BEFORE_THE_BUILD)
        assert status == 0, printed[-3000:]

    def assert_ranks(self, environment: str) -> None:
        """Each host runs its unit alone, with two ranks of an environment in the store."""
        for name, unit in self.units.items():
            host = self.fleet[name]
            units = host.check_output("systemctl list-units --plain --no-legend 'vllm*@*'")
            assert units.split()[0] == f"{unit}.service"
            found = processes(host)
            assert len([line for line in found if re.search(self.rank, line)]) == 2
            assert set(host.check_output("ps -U vllm -o unit=").split()) == {f"{unit}.service"}
            assert re.search(rf"-{environment}-[0-9.]+/bin/python", "\n".join(found))
        stage = self.fleet[self.names[1]]
        assert "lends 2 GPUs to" in stage.check_output(f"systemctl show {self.units[self.names[1]]} -p StatusText")

    def assert_refused(self, token: str, stranger: str) -> None:
        """Every port of Ray refuses a host of the instance, which the firewall lets through, without the token."""
        client = self.fleet[self.names[1]]
        answers: list[tuple[int, set[str]]] = []
        for name in self.names:
            sockets = self.fleet[name].check_output("ss -Hltn").splitlines()
            listening = {int(line.split()[3].rpartition(":")[2]) for line in sockets} & set(PORTS)
            answers += asked(client, self.links[name], listening, stranger).items()
        # Head, two raylets of two ports, two side processes, four ranks, the engine.
        assert len(answers) >= 12
        for port, found in answers:
            assert found & REFUSALS, (port, found)
            assert not found & ANSWERS, (port, found)
        assert "grpc 0" in asked(client, self.links[self.names[0]], PORTS[:1], token)[PORTS[0]]

    def assert_firewall(self) -> None:
        """The zone `trusted` has the other host's address, now and after a boot, and nobody else gets through."""
        for name, other in zip(self.names, self.names[::-1], strict=True):
            for kept in ("", "--permanent "):
                listed = self.fleet[name].check_output(f"firewall-cmd {kept}--zone trusted --list-sources")
                assert listed == self.links[other]
            for port in PORTS[:3]:
                assert self.fleet[self.stranger].run(CONNECT.format(self.links[name], port)).rc != 0
        assert self.fleet[self.names[1]].run(CONNECT.format(self.links[self.names[0]], self.joined)).rc == 0

    def assert_listens_on_the_link(self, public: set[int]) -> None:
        """Nothing but `public` listens elsewhere, and the firewall lets no stranger through to any port."""
        for name in self.names:
            sockets = self.fleet[name].check_output(
                "ss -Hltnp | grep -F -e python -e VLLM | awk '{print $4}'"
            ).split()
            listening = [socket.rpartition(":") for socket in sockets]
            assert listening, name
            for address, _, port in listening:
                assert address == self.links[name] or int(port) in public, (name, address, port)
            for port in {int(port) for _, _, port in listening} - public | {self.joined}:
                assert self.fleet[self.stranger].run(CONNECT.format(self.links[name], port)).rc != 0, (name, port)

    def assert_comes_back(self, api: openai.OpenAI, model: str, alone: list[list[str]], what: str) -> None:
        """Fail while a client streams: it knows soon, the unit ends, and serves again by itself as one host does."""
        failure, units = FAILURES[what], self.units
        server, host = self.fleet[self.names[0]], self.fleet[self.names[failure.host]]
        state = f"systemctl show {units[self.names[0]]} --property "
        before = server.check_output(f"{state}InvocationID")
        stream = Stream(api, model)
        host.check_output(failure.command.format(
            server=units[self.names[0]], stage=units[self.names[1]], rank=self.rank
        ))
        began = time.monotonic()
        stream.thread.join(failure.known)
        known = max(0, stream.ended - began)
        assert stream.error is not None, f"{what}: the client knows nothing after {failure.known} s"
        until(
            lambda: server.check_output(f"{state}InvocationID,ActiveState"), f"{what}: the unit did not end",
            lambda found: before not in found or "ActiveState=active" not in found, 60,
        )
        ended = time.monotonic() - began
        host.check_output(failure.mend)
        mended = time.monotonic()
        # Not by requests: on the CPU the released engine ends at a guide beside others, and its warm-up has a guide.
        until(
            lambda: server.check_output(f"{state}ActiveState"), f"{what}: the unit did not come back",
            lambda found: "ActiveState=active" in found, SERVED,
        )
        serves_again(api, model)
        print(f"{what}: clients after {known:.1f} s, unit ended after {ended:.0f} s, served again "
              f"{time.monotonic() - mended:.0f} s later")
        assert ids_of(api, model, PROMPTS[:1]) == alone[:1]

    def assert_stops(self) -> None:
        """Stopped units have not failed, and leave nothing behind."""
        for name, unit in self.units.items():
            self.fleet[name].check_output(f"systemctl stop {unit}")
            assert self.fleet[name].run(f"systemctl is-failed {unit}").rc != 0
        for name in self.names:
            assert processes(self.fleet[name]) == []
            assert left_behind(self.fleet[name], self.name) == ""


def serves_again(api: openai.OpenAI, model: str) -> None:
    def answers() -> bool:
        try:
            return bool(ids_of(api, model, PROMPTS[:1]))
        except openai.OpenAIError:
            return False

    until(answers, "it is not served again", seconds=SERVED)


def assert_nothing_to_do(fleet: dict[str, Any], play: Callable[..., tuple[int, str]]) -> None:
    """Another run of the site changes nothing on any host."""
    status, printed = play("site.yml", "--skip-tags", f"preflight,{BEFORE_THE_BUILD}")
    assert status == 0, printed[-3000:]
    changes = dict(re.findall(r" (\S+) : ok=\d+ changed=(\d+) ", printed))
    assert changes == dict.fromkeys(fleet, "0"), printed[-3000:]


def left_behind(host: Any, name: str) -> str:
    """What a server has left of shared memory, temporary files, sockets and control groups."""
    return host.run(
        # Those of systemd itself aside.
        "find /dev/shm /tmp /run/vllm -mindepth 1 ! -path '/tmp/systemd-private-*' ! -path '/tmp/.*-unix' "
        "2> /dev/null; find /tmp -path '*systemd-private-*vllm*'; "
        "ss -Hltn | awk '{print $4}' | grep -E ':(6[34][0-9][0-9]|8000)$'; "
        f"find /sys/fs/cgroup -name '*{name}*'"
    ).stdout
