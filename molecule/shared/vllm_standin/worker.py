"""A rank on the CPU that hands hidden states to another host as one on a GPU does, over gloo in place of NCCL."""

from __future__ import annotations

from typing import Any

import torch
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
from vllm.distributed.parallel_state import get_pp_group
from vllm.v1.worker.cpu_worker import CPUWorker


class HostsCommunicator(CpuCommunicator):
    """Shares memory within a host alone: upstream's does so between stages too, by the name of their group."""

    def __init__(
        self, cpu_group: Any, device: torch.device | None = None, device_group: Any = None, unique_name: str = ""
    ) -> None:
        super().__init__(cpu_group, device, device_group, "" if unique_name.startswith("pp") else unique_name)


class HostsCpuWorker(CPUWorker):
    """Counts its host's ranks as GPUs, by which vLLM tells them from those of other hosts."""

    def init_device(self) -> None:
        ranks = self.parallel_config.local_world_size
        torch.cuda.device_count = lambda: ranks
        super().init_device()
        get_pp_group().use_cpu_custom_send_recv = False
