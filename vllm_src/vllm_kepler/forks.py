"""`vllm`, whose engine and ranks are forks of one process that has imported it.

Upstream spawns them, and each imports PyTorch and vLLM anew: first the API, then the engine, then the ranks.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing.connection
import multiprocessing.popen_forkserver
import os
import socket
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

# With the parts that its types leave out.
private: Any = multiprocessing
# What the API, the engine and the ranks import.
IMPORTED = (
    "vllm.entrypoints.openai.api_server", "vllm.entrypoints.cli.serve", "vllm.engine.multiprocessing.engine",
    "vllm.executor.mp_distributed_executor",
)  # fmt: skip


class Variables:
    """The environment of who asks for a process; unpickled, it becomes that of the process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return take_over, (dict(os.environ),)


def take_over(variables: dict[str, str]) -> None:
    """Make these the environment, also for those who read it while they were imported."""
    import prometheus_client.values
    import torch

    os.environ.clear()
    os.environ.update(variables)
    prometheus_client.values.ValueClass = prometheus_client.values.get_value_class()
    if "OMP_NUM_THREADS" in variables:
        torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))


def second(_: None, process: BaseProcess) -> BaseProcess:
    return process


class Fork:
    """A process on its way to the server, behind the variables that it is to have when it is unpickled."""

    def __init__(self, process: BaseProcess) -> None:
        self._name, self.process = process.name, process

    def __reduce__(self) -> tuple[Any, ...]:
        return second, (Variables(), self.process)


class Popen(private.popen_forkserver.Popen):
    """A process of the server, with the variables of who asks: they are set after the server was forked."""

    def _launch(self, process: BaseProcess) -> None:
        super()._launch(Fork(process))


def serve_forks() -> None:
    """Fork a server off this process, and let who asks for a spawned process get a fork of it.

    The standard library starts a server for each process that asks, and each imports for itself; this one serves all.
    """
    server: Any = forkserver._forkserver
    server.ensure_running = resource_tracker.ensure_running
    private.context.ForkServerProcess._Popen = staticmethod(Popen)
    private.context._concrete_contexts["spawn"] = private.context._concrete_contexts["forkserver"]
    address = private.connection.arbitrary_address("AF_UNIX")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    # The server ends once nobody holds the other end.
    alive, server._forkserver_alive_fd = os.pipe()
    # Collections would write to every object, and with it unshare its memory.
    gc.collect()
    gc.freeze()
    if not os.fork():
        try:
            os.close(server._forkserver_alive_fd)
            forkserver.main(listener.detach(), alive, [])
        finally:
            os._exit(0)
    listener.close()
    os.close(alive)
    server._forkserver_address = address


def has_touched_cuda() -> bool:
    """Whether forks of this process cannot use CUDA, as those of a process cannot that has only counted its GPUs."""
    import torch

    if not (child := os.fork()):
        os._exit(torch.cuda._is_in_bad_fork())
    return os.waitpid(child, 0)[1] != 0


def main() -> None:
    for module in IMPORTED:
        importlib.import_module(module)
    if not has_touched_cuda():
        serve_forks()
    from vllm.entrypoints.cli import main as command_line

    command_line.main()
