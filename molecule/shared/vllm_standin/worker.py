"""A rank on the CPU that hands its tensors on as one on a GPU does, over gloo in place of NCCL."""

from __future__ import annotations

import torch
from ray.experimental.channel import ChannelContext
from vllm.utils.torch_utils import current_stream
from vllm.v1.worker.cpu_worker import CPUWorker


class Device:
    """The CPU under the name that Ray asks of a device which sends tensors."""

    type = "cuda"

    def __eq__(self, other: object) -> bool:
        return other == torch.device("cpu")

    def __hash__(self) -> int:
        return hash(torch.device("cpu"))


class RayCpuWorker(CPUWorker):
    """Tells vLLM's Ray executor of a device, and Ray of one with streams."""

    def init_device(self) -> None:
        super().init_device()
        self.device = torch.device("cpu")
        torch.cuda.current_stream = lambda device=None: current_stream()
        ChannelContext.get_current().set_torch_device(Device())
