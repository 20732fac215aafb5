"""A Kepler GPU, and with VLLM_KEPLER_VERIFY=1 another NVIDIA GPU on the very same path."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, ClassVar

import torch
from vllm.logger import init_logger

from . import ops, settings

# Upstream's CUDA platform imports vllm._C while it is imported: the operators must be there before.
ops.install()

from vllm.platforms.cuda import CudaPlatform  # noqa: E402

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger("vllm.kepler.platform")


def apply_rotary_emb(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False, **kwargs: object
) -> torch.Tensor:
    """Rotate x [..., tokens, heads, head_size] by cos, sin [tokens, head_size / 2]; pairs as `interleaved` says."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    first, second = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    turned = first * cos - second * sin, second * cos + first * sin
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)


def stand_in_for_flash_attention() -> None:
    """Give upstream's rotary embedding the one function that it imports from a package that needs sm_80."""
    rotary = types.ModuleType("vllm.vllm_flash_attn.layers.rotary")
    rotary.apply_rotary_emb = apply_rotary_emb  # type: ignore[attr-defined]
    for name in ("vllm.vllm_flash_attn", "vllm.vllm_flash_attn.layers"):
        package = types.ModuleType(name)
        package.__path__ = []
        sys.modules[name] = package
    sys.modules[rotary.__name__] = rotary


class KeplerCudaPlatform(settings.KeplerSettings, CudaPlatform):
    """Upstream's CUDA platform with the port's engine settings, attention backend and operators."""

    simple_compile_backend = "eager"
    supported_quantization: ClassVar[list[str]] = []

    def __init__(self) -> None:
        settings.force_v0()
        stand_in_for_flash_attention()

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        capability = cls.get_device_capability()
        if capability < (7, 0):
            logger.info("Kepler GPU detected (sm < 70): forcing eager mode and disabling CUDA graphs.")
        else:
            logger.info("VLLM_KEPLER_VERIFY=1: forcing eager mode and disabling CUDA graphs, as on a Kepler GPU.")
        logger.info(
            "%s, compute capability %s, operators in plain torch.", cls.get_device_name(), capability.as_version_str()
        )
        settings.settle(vllm_config)
        parallel = vllm_config.parallel_config
        if parallel.worker_cls == "auto":
            parallel.worker_cls = "vllm.worker.worker.Worker"

    @classmethod
    def use_custom_allreduce(cls) -> bool:
        return False
