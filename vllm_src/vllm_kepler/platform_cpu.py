"""Platform of the CPU as a stand-in for a Kepler GPU: the same engine, backend and operators."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
import vllm.envs
from vllm.logger import init_logger
from vllm.platforms.cpu import CpuPlatform

from . import envs, ops, settings
from .speculation import config as speculation

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger("vllm.kepler.platform")

GIB = 1 << 30
# KV cache of all ranks together, unless VLLM_CPU_KVCACHE_SPACE (GiB a rank) is set. Small: every byte of it is written
# at start, and a stand-in has the memory of a laptop.
DEFAULT_CACHE = 1 * GIB


class KeplerCpuPlatform(settings.KeplerSettings, CpuPlatform):
    """Upstream's CPU platform with the port's engine settings, attention backend and operators."""

    simple_compile_backend = "eager"
    # Ray's name of what a rank takes of a node: `ray start --num-gpus` says how many ranks a node has room for.
    ray_device_key = "GPU"
    additional_env_vars = envs.OF_ALL_HOSTS

    def __init__(self) -> None:
        settings.force_v0()
        ops.install()

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        logger.info("VLLM_KEPLER_DEVICE=cpu: the CPU stands in for the Kepler GPU, V0 engine, eager, float32.")
        if settings.graphs_of(vllm_config):
            logger.warning("VLLM_KEPLER_CUDA_GRAPHS=1 changes nothing here: the CPU has no CUDA graphs.")
        settings.apply_defaults(vllm_config)
        speculation.apply_defaults(vllm_config, "vllm_kepler.cpu_worker.KeplerCpuWorker")
        parallel = vllm_config.parallel_config
        over_hosts = parallel.use_ray
        if parallel.world_size > 1 and not over_hosts:
            parallel.distributed_executor_backend = "mp"
        if vllm_config.cache_config is not None:
            vllm_config.cache_config.cpu_kvcache_space_bytes = (
                vllm.envs.VLLM_CPU_KVCACHE_SPACE * GIB or DEFAULT_CACHE // parallel.world_size
            )
        share_cores(parallel.world_size, over_hosts)

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        """Dotted name of what ranks send and gather by."""
        return "vllm_kepler.cpu_communicator.KeplerCpuCommunicator"

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        return False


def share_cores(ranks: int, over_hosts: bool = False) -> None:
    """Give each of `ranks` processes its share of the cores, and let those of one host meet on loopback.

    Workers start after this and inherit the environment.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(["all"] * ranks)
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if not over_hosts:
        os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
