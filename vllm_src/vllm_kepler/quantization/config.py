"""The port's quantization config: how each layer of a model is stored. vLLM asks it while it builds the model."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.fused_moe import FusedMoE
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import _CUSTOMIZED_METHOD_TO_QUANT_CONFIG, register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding

from ..checkpoint.quantization import Quantization, Scheme, parse_quantization
from ..moe import KeplerMoEMethod
from . import METHOD, experts
from .experts import HalfExpertsMethod, PackedExpertsMethod, parts_of
from .half import HalfEmbeddingMethod, HalfLinearMethod
from .packed import LAYOUTS, PackedLinearMethod


class KeplerConfig(QuantizationConfig):
    """Storage of a model's weights.

    Attributes:
        checkpoint: what is quantized; None if nothing is.
        half: whether weights that are not quantized are stored as float16; else float32.
    """

    def __init__(self, checkpoint: Quantization | None = None, half: bool = False) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.half = half

    @classmethod
    def get_name(cls) -> str:
        return METHOD

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        # The platform refuses bfloat16, and makes float32 of float16, after this is asked.
        return [torch.float32, torch.float16, torch.bfloat16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 37

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> KeplerConfig:
        return cls(parse_quantization(config))

    @classmethod
    def override_quantization_method(cls, hf_quant_cfg: dict[str, Any], user_quant: str | None) -> str:
        """Every quantized checkpoint is the port's, or refused, here: before upstream's own methods are asked."""
        parse_quantization(hf_quant_cfg)
        return METHOD

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if isinstance(layer, LinearBase):
            if self.checkpoint is not None and (scheme := self.scheme_of(prefix)) is not None:
                return PackedLinearMethod(prefix, scheme, LAYOUTS[self.checkpoint.method])
            return HalfLinearMethod(prefix) if self.half else UnquantizedLinearMethod()
        if isinstance(layer, VocabParallelEmbedding):
            return HalfEmbeddingMethod(prefix) if self.half else UnquantizedEmbeddingMethod()
        if isinstance(layer, FusedMoE):
            count = layer.global_num_experts
            if self.checkpoint is not None and (scheme := self.scheme_of_experts(prefix, count)) is not None:
                return PackedExpertsMethod(layer, prefix, scheme, LAYOUTS[self.checkpoint.method])
            return HalfExpertsMethod(layer, prefix) if self.half else KeplerMoEMethod(layer.moe_config)
        return None

    def scheme_of(self, prefix: str) -> Scheme | None:
        """The scheme of a layer by vLLM's name for it; None if it is not quantized.

        Raises ValueError if it is made of several of the checkpoint's layers, and these differ.
        """
        if self.checkpoint is None:
            return None
        parent, _, own = prefix.rpartition(".")
        parts = [f"{parent}.{part}" if parent else part for part in self.packed_modules_mapping.get(own, [own])]
        return self.checkpoint.scheme_of_fused(prefix, parts)

    def scheme_of_experts(self, prefix: str, num_experts: int) -> Scheme | None:
        """As scheme_of, for all experts of a layer."""
        if self.checkpoint is None:
            return None
        return self.checkpoint.scheme_of_fused(
            prefix, [f"{prefix}.{expert}.{part}" for expert in range(num_experts) for part in parts_of(prefix)]
        )


def register() -> None:
    """Add the method to vLLM's, and what its experts need; a second call changes nothing."""
    if METHOD not in _CUSTOMIZED_METHOD_TO_QUANT_CONFIG:
        register_quantization_config(METHOD)(KeplerConfig)
        experts.register()
