"""What the port decides for every model, on a Kepler GPU and on what stands in for one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from vllm.logger import init_logger

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.platforms.interface import _Backend

# Below `vllm`, whose handlers and level the server sets up.
logger = init_logger("vllm.kepler.settings")

BACKEND = "vllm_kepler.attention.backend.KeplerBackend"
BLOCK_SIZES = (8, 16, 32)
DEFAULT_BLOCK_SIZE = 16


def force_v0() -> None:
    """The V1 engine compiles; ours runs eagerly in V0."""
    os.environ["VLLM_USE_V1"] = "0"


def refuse_where(is_asked: bool, what: str) -> None:
    """Raise ValueError where a model asks for `what`, which the port does not have."""
    if is_asked:
        raise ValueError(f"The model asks for {what}: the Kepler port does not have it. Serve another model.")


class KeplerSettings:
    """What every platform of the port answers; stands before upstream's platform among the bases."""

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        return [torch.float32]

    @classmethod
    def supports_v1(cls, model_config: object) -> bool:
        return False

    @classmethod
    def get_attn_backend_cls(
        cls,
        selected_backend: _Backend | None,
        head_size: int,
        dtype: torch.dtype,
        kv_cache_dtype: str | None,
        block_size: int,
        use_v1: bool,
        use_mla: bool,
    ) -> str:
        """Dotted name of the attention backend.

        Raises ValueError where the model's attention is of a kind that the port does not have.
        """
        refuse_where(use_mla, "multi-head latent attention")
        refuse_where(use_v1, "the V1 engine")
        logger.info("Using Torch SDPA attention backend for Kepler GPU (sm < 60).")
        return BACKEND


def settle(config: VllmConfig) -> None:
    """Decide what the port decides: eager, float32, no custom all-reduce, no compilation.

    Raises ValueError, before any weight is read, for a setting that a Kepler GPU cannot serve.
    """
    # vllm.config itself asks for the platform while it is imported.
    from vllm.config import CompilationLevel, DecodingConfig

    model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
    if model is not None:
        if model.dtype != torch.float32:
            raise ValueError(
                f"dtype: found {str(model.dtype).removeprefix('torch.')}; expected float32: a Kepler GPU has no half "
                "arithmetic. Leave dtype out, or set it to float32."
            )
        if model.quantization is not None:
            raise ValueError(
                f"quantization: found {model.quantization}; expected none: the Kepler port serves float32 weights, and "
                "float16 or bfloat16 checkpoints converted to it. Choose an unquantized checkpoint of the model."
            )
        model.enforce_eager = True
        model.disable_cascade_attn = True
    if config.speculative_config is not None:
        raise ValueError("speculative_config: found one; the Kepler port has no speculative decoding. Leave it out.")
    if parallel.enable_expert_parallel:
        raise ValueError(
            "enable_expert_parallel: found true; the Kepler port splits every expert over the ranks. Leave it out."
        )
    # Upstream's default hands what xgrammar cannot (numeric ranges, lengths) to outlines, which ignores some of it.
    if config.decoding_config.backend == DecodingConfig.backend:
        config.decoding_config.backend = "guidance"
    if cache is not None:
        if cache.block_size is None:
            cache.block_size = DEFAULT_BLOCK_SIZE
        if cache.block_size not in BLOCK_SIZES:
            raise ValueError(
                f"block_size: found {cache.block_size}; expected one of {', '.join(map(str, BLOCK_SIZES))}."
            )
        if cache.cache_dtype != "auto":
            raise ValueError(f"kv_cache_dtype: found {cache.cache_dtype}; expected auto: the cache is float32.")
    parallel.disable_custom_all_reduce = True
    config.compilation_config.level = CompilationLevel.NO_COMPILATION
    config.compilation_config.cudagraph_capture_sizes = []
