"""What the tests of servers over several hosts ask: answers, ports of Ray, processes, and what is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

import httpx2
import openai
from license import PROMPTS, follows

TOKENS = 24
# Of Ray, from link_port on.
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


def assert_refused(client: Any, hosts: dict[str, Any], token: str, least: int) -> None:
    """Every port of Ray on `hosts`, by address, refuses a client without the token of the cluster; so many listen."""
    answers: list[tuple[int, set[str]]] = []
    for address, host in hosts.items():
        sockets = host.check_output("ss -Hltn").splitlines()
        listening = {int(line.split()[3].rpartition(":")[2]) for line in sockets} & set(PORTS)
        answers += asked(client, address, listening, token).items()
    assert len(answers) >= least
    for port, found in answers:
        assert found & REFUSALS, (port, found)
        assert not found & ANSWERS, (port, found)


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


def left_behind(host: Any, name: str) -> str:
    """What a server has left of shared memory, temporary files, sockets and control groups."""
    return host.run(
        # Those of systemd itself aside.
        "find /dev/shm /tmp /run/vllm -mindepth 1 ! -path '/tmp/systemd-private-*' ! -path '/tmp/.*-unix' "
        "2> /dev/null; find /tmp -path '*systemd-private-*vllm*'; "
        "ss -Hltn | awk '{print $4}' | grep -E ':(6[34][0-9][0-9]|8000)$'; "
        f"find /sys/fs/cgroup -name '*{name}*'"
    ).stdout
