"""Upstream's CPU communicator on torch 2.0.1, whose gloo gathers into lists of tensors alone."""

from __future__ import annotations

import torch
import torch.distributed
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator


class KeplerCpuCommunicator(CpuCommunicator):
    """Stages that are split over ranks send slices, and gather them on the other side."""

    def all_gather(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """Concatenate the tensors of all ranks along `dim`; they have one shape."""
        parts = [torch.empty_like(input_) for _ in range(self.world_size)]
        torch.distributed.all_gather(parts, input_.contiguous(), group=self.device_group)
        return torch.cat(parts, dim=dim)
