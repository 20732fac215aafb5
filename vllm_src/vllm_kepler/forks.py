"""Command line of vLLM, whose engine and ranks are forks of one process that has imported it.

Upstream spawns them, and each imports PyTorch and vLLM again: the API, then the engine, then the ranks.
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

# Untyped: its private parts are used.
private: Any = multiprocessing
# Modules that the API, the engine and the ranks import.
IMPORTED = (
    "vllm.entrypoints.openai.api_server", "vllm.entrypoints.cli.serve", "vllm.engine.multiprocessing.engine",
    "vllm.executor.mp_distributed_executor",
)  # fmt: skip


class Variables:
    """Environment of the process that starts another one; unpickled, it becomes that of the other."""

    def __reduce__(self) -> tuple[Any, ...]:
        return take_over, (dict(os.environ),)


def take_over(variables: dict[str, str]) -> None:
    """Set the environment, also for modules that read it when they were imported."""
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
    """A process in its pickled form: its environment comes first, so that it is set before the process is unpickled."""

    def __init__(self, process: BaseProcess) -> None:
        self._name, self.process = process.name, process

    def __reduce__(self) -> tuple[Any, ...]:
        return second, (Variables(), self.process)


class Popen(private.popen_forkserver.Popen):
    """A fork of the server with the environment of its parent, which is set after the fork."""

    def _launch(self, process: BaseProcess) -> None:
        super()._launch(Fork(process))


def serve_forks() -> None:
    """Fork a server off this process, and let every spawned process be a fork of that server.

    The standard library starts a server for each parent, and each imports for itself; this one serves all.
    """
    server: Any = forkserver._forkserver
    server.ensure_running = resource_tracker.ensure_running
    private.context.ForkServerProcess._Popen = staticmethod(Popen)
    private.context._concrete_contexts["spawn"] = private.context._concrete_contexts["forkserver"]
    address = private.connection.arbitrary_address("AF_UNIX")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    # The server ends when the last process with the other end has ended.
    alive, server._forkserver_alive_fd = os.pipe()
    # A garbage collection would write to every object, and so copy its shared memory.
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
    """Return True if forks of this process cannot use CUDA; counting the GPUs is enough for that."""
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
