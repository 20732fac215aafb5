"""Upstream's CPU platform with stages that reach one another through the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.platforms.cpu import CpuPlatform

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class HostsCpuPlatform(CpuPlatform):
    """Names the worker and the communicator of several hosts."""

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        super().check_and_update_config(vllm_config)
        vllm_config.parallel_config.worker_cls = "vllm_standin.worker.HostsCpuWorker"

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        return "vllm_standin.worker.HostsCommunicator"
