"""Two Ray nodes of one machine, told apart by their addresses on loopback, and an engine over them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiny_models import TinyModel

HEAD, STAGE = "127.0.0.2", "127.0.0.3"
MARK = "two_hosts: "
# Seconds until a node is there, and until an engine has answered.
JOINS, ANSWERS = 60, 240


def python() -> str:
    """The interpreter of the serving environment with Ray; where none is named, this one has it."""
    return str(Path(os.environ["SERVING_RAY"], "bin", "python")) if "SERVING_RAY" in os.environ else sys.executable


def free_port() -> int:
    """First of enough ports for two hosts, below those that the kernel gives away by itself."""
    for port in range(20000 + os.getpid() % 40 * 260, 32000, 260):
        with socket.socket() as probe:
            if probe.connect_ex((HEAD, port)):
                return port
    raise AssertionError("no free port")


def environment_of(address: str, port: int, ranks: int, token: str) -> dict[str, str]:
    """What the unit of one host sets, with loopback for a link."""
    return {
        **os.environ, "VLLM_SERVING_HEAD": f"{HEAD}:{port}", "VLLM_SERVING_HOSTS": "2",
        "VLLM_SERVING_RANKS": str(ranks), "VLLM_HOST_IP": address, "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo", "RAY_AUTH_TOKEN": token, "OMP_WAIT_POLICY": "PASSIVE",
    }  # fmt: skip


class Hosts:
    """The nodes of a cluster.

    Attributes:
        port: of the head, the first of its ports.
        token: what every process of the cluster knows.
        nodes: their processes, the head's first.
        log: file of what they print.
        hidden: directory that the first host alone has, which takes root; None for none.
    """

    def __init__(
        self, port: int, ranks: int, log: Path, gpus: tuple[str, ...] = ("", ""), hidden: Path | None = None
    ) -> None:
        self.port, self.ranks, self.log, self.gpus, self.token = port, ranks, log, gpus, secrets.token_hex(16)
        self.hidden = hidden
        self.nodes: list[subprocess.Popen[bytes]] = []

    def environment(self, number: int) -> dict[str, str]:
        """Variables of the processes of a host."""
        own = environment_of((HEAD, STAGE)[number], self.port, self.ranks, self.token)
        # NCCL takes sockets between hosts, and tells them apart by this name.
        return {**own, "CUDA_VISIBLE_DEVICES": self.gpus[number], "NCCL_HOSTID": f"host-{number}"}

    def start(self) -> None:
        """Start both nodes, as the units' programs do, and wait until both can be used."""
        for number in range(2):
            # Two hosts on one machine share its ports.
            code = ("import os; from dataclasses import replace; from vllm_serving import cluster; "
                    "at = cluster.read_cluster(os.environ); "
                    f"at = replace(at, first=at.port + {number} * cluster.SPAN); "
                    "command = cluster.node_command(at); os.execve(command[0], command, at.environment)")
            # The directory is empty for the second host's processes.
            hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(self.hidden)]
            with self.log.open("ab") as output:
                self.nodes.append(subprocess.Popen(
                    [*(hide if number and self.hidden else []), python(), "-c", code], env=self.environment(number),
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                ))  # fmt: skip
            if number == 0:
                self.wait("the head", "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])))")
        self.wait("two nodes", "import ray, sys; ray.init(logging_level='ERROR', log_to_driver=False); "
                  "sys.exit(sum(node['Alive'] for node in ray.nodes()) < 2)")

    def wait(self, what: str, code: str) -> None:
        end = time.monotonic() + JOINS
        while time.monotonic() < end:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if not subprocess.run(
                    [python(), "-c", code, HEAD, str(self.port)], env=self.driver(), timeout=30, capture_output=True
                ).returncode:
                    return
            time.sleep(0.5)
        raise AssertionError(f"no {what} after {JOINS} s: {self.log.read_text()[-3000:]}")

    def driver(self) -> dict[str, str]:
        """Variables of the engine's process."""
        return {**self.environment(0), "RAY_ADDRESS": f"{HEAD}:{self.port}", "RAY_AUTH_MODE": "token",
                "RAY_USAGE_STATS_ENABLED": "0"}

    def serve(self, model: TinyModel, **options: Any) -> list[list[int]]:
        """Greedy ids of a model's prompts, together and one by one, from an engine over both hosts."""
        request = {
            "model": str(model.directory), "prompts": model.prompts, "tokens": len(model.answers[0]),
            "options": {"max_model_len": model.context, "tensor_parallel_size": self.ranks,
                        "pipeline_parallel_size": 2, "distributed_executor_backend": "ray", **options},
        }
        return ids_of(request, self.driver())

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.terminate()
        for node in self.nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)


def ids_of(request: dict[str, Any], environment: dict[str, str], *through: str) -> list[list[int]]:
    """Ids of an engine in a process of its own; `through`: what Python runs in front of it."""
    with tempfile.TemporaryFile("w+") as output:
        engine = subprocess.Popen(
            [python(), *through, __file__, json.dumps(request)], env=environment, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            engine.wait(ANSWERS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(engine.pid, signal.SIGKILL)
        output.seek(0)
        printed = output.read()
    lines = [line[len(MARK):] for line in printed.splitlines() if line.startswith(MARK)]
    assert lines, printed[-6000:]
    return json.loads(lines[-1])


@contextlib.contextmanager
def two_hosts(
    port: int, ranks: int, log: Path, gpus: tuple[str, ...] = ("", ""), hidden: Path | None = None
) -> Iterator[Hosts]:
    """Two hosts of `ranks` ranks each; `gpus`: CUDA_VISIBLE_DEVICES of each; `hidden`: as Hosts has it."""
    hosts = Hosts(port, ranks, log, gpus, hidden)
    try:
        hosts.start()
        yield hosts
    finally:
        hosts.stop()


async def answer(request: dict[str, Any]) -> None:
    from vllm import AsyncEngineArgs, SamplingParams, TokensPrompt
    from vllm.engine.async_llm_engine import AsyncLLMEngine

    # `vllm serve` runs this engine too if there is a pipeline: the other one refuses it.
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(
        model=request["model"], skip_tokenizer_init=True,
        **{"max_num_seqs": 16, "swap_space": 1, **request["options"]},
    ))  # fmt: skip
    sampling = SamplingParams(temperature=0, max_tokens=request["tokens"], ignore_eos=True, detokenize=False)

    async def one(number: int, prompt: list[int]) -> list[int]:
        ids: list[int] = []
        async for output in engine.generate(TokensPrompt(prompt_token_ids=prompt), sampling, str(number)):
            ids = list(output.outputs[0].token_ids)
        return ids

    together = await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(request["prompts"])))
    alone = [await one(100 + number, prompt) for number, prompt in enumerate(request["prompts"])]
    print(MARK + json.dumps([*together, *alone]), flush=True)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    # What vllm_serving.head adds where there is no Ray.
    added = iter(sys.argv[2:])
    asked["options"].update({
        name.removeprefix("--").replace("-", "_"): int(value) if value.isdigit() else value
        for name, value in zip(added, added, strict=True)
    })  # fmt: skip
    asyncio.run(answer(asked))
    # Ray's own end takes seconds.
    sys.stdout.flush()
    os._exit(0)
