"""Upstream's CPU platform with ranks that Ray places."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.platforms.cpu import CpuPlatform

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class RayCpuPlatform(CpuPlatform):
    """Takes what `ray start --num-gpus` lends for its ranks."""

    ray_device_key = "GPU"

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        parallel = vllm_config.parallel_config
        wanted = parallel.distributed_executor_backend
        super().check_and_update_config(vllm_config)
        # Upstream falls back to processes of one host.
        parallel.distributed_executor_backend = wanted
        parallel.worker_cls = "vllm_standin.worker.RayCpuWorker"
