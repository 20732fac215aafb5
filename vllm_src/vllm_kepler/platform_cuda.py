"""Platform of the GPUs that the port is for, and with VLLM_KEPLER_VERIFY=1 of another NVIDIA GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.logger import init_logger

from . import absent_modules, device, envs, ops, settings
from .ops import library
from .speculation import config as speculation

# Upstream's CUDA platform imports vllm._C while it is imported: the operators must be there before.
ops.install()

from vllm.platforms.cuda import CudaPlatform  # noqa: E402

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger("vllm.kepler.platform")


class KeplerCudaPlatform(settings.KeplerSettings, CudaPlatform):
    """Upstream's CUDA platform with the port's engine settings, attention backend and operators."""

    simple_compile_backend = "eager"
    additional_env_vars = envs.OF_ALL_HOSTS

    def __init__(self) -> None:
        settings.force_v0()
        absent_modules.stand_in()

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        capability = cls.get_device_capability()
        gpu = device.GPUS.get(tuple(capability))
        graphs = settings.graphs_of(vllm_config)
        logger.info(
            "%s: %s.",
            gpu.detected if gpu else "VLLM_KEPLER_VERIFY=1, as on a Kepler GPU",
            "VLLM_KEPLER_CUDA_GRAPHS=1, CUDA graphs for decoding" if graphs
            else "forcing eager mode and disabling CUDA graphs",
        )
        kernels = library.library()
        kernels.check_runs_on(capability)
        logger.info(
            "%s, compute capability %s; kernel library %s (%s) from %s; backend TORCH_SDPA.",
            cls.get_device_name(), capability.as_version_str(), kernels.version, ", ".join(kernels.architectures),
            kernels.path,
        )
        settings.apply_defaults(vllm_config, graphs)
        speculation.apply_defaults(vllm_config, "vllm_kepler.gpu_worker.KeplerWorker")

    @classmethod
    def gpu(cls) -> device.Gpu:
        return device.GPUS.get(tuple(cls.get_device_capability()), device.USUAL)

    @classmethod
    def use_custom_allreduce(cls) -> bool:
        return False
