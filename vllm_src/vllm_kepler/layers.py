"""Norms, rotary embeddings and gated activations that call the port's operators themselves.

Upstream's go through torch's dispatcher. For an operator in Python that takes ten times as long as the call, and a step
of decoding has five a layer. vLLM lets a plug-in replace a layer by its class's name, and `register` does.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from vllm.model_executor.custom_op import CustomOp
from vllm.model_executor.layers.activation import GeluAndMul, SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding

from .ops import activation, norm, rotary
from .ops.operator import by_device

DIRECT = {
    operator.name: by_device(operator.reference, operator.kernel)
    for family in (activation, norm, rotary) for operator in family.OPERATORS if operator.kernel
}


class KeplerRMSNorm(RMSNorm):
    def forward_cuda(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Norm of x; with a residual the norm of both's sum, and that sum."""
        if self.variance_size_override is not None:
            return self.forward_native(x, residual)
        if residual is None:
            out = torch.empty_like(x)
            DIRECT["rms_norm"](out, x, self.weight, self.variance_epsilon)
            return out
        DIRECT["fused_add_rms_norm"](x, residual, self.weight, self.variance_epsilon)
        return x, residual


class Rotation(RotaryEmbedding):
    """To be put before a class of rotary embeddings."""

    def forward_cuda(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rotate query and key in place; upstream's does that if the angles are elsewhere or of another type."""
        angles = self.cos_sin_cache
        if offsets is not None or angles.dtype is not query.dtype or angles.device != query.device:
            return super().forward_cuda(positions, query, key, offsets)
        DIRECT["rotary_embedding"](positions, query, key, self.head_size, angles, self.is_neox_style)
        return query, key


class KeplerSiluAndMul(SiluAndMul):
    def forward_cuda(self, x: torch.Tensor) -> torch.Tensor:
        return activated(x, "silu_and_mul")


class KeplerGeluAndMul(GeluAndMul):
    def forward_cuda(self, x: torch.Tensor) -> torch.Tensor:
        return activated(x, "gelu_and_mul" if self.approximate == "none" else "gelu_tanh_and_mul")


def activated(x: torch.Tensor, operator: str) -> torch.Tensor:
    """Activation of the first half of each row times its second half."""
    out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    DIRECT[operator](out, x)
    return out


def rotations() -> Iterator[type[RotaryEmbedding]]:
    """Upstream's classes of rotary embeddings that rotate by one table of angles alone."""
    for upstream in (RotaryEmbedding, *RotaryEmbedding.__subclasses__()):
        ours = issubclass(upstream, Rotation)
        if not ours and upstream.forward is CustomOp.forward and upstream.forward_cuda is RotaryEmbedding.forward_cuda:
            yield upstream


def register() -> None:
    """Let vLLM make these in place of its own; a second call changes nothing."""
    # `register_oot` would give a class another name, by which options switch it off.
    layers = CustomOp.op_registry_oot
    layers.update(RMSNorm=KeplerRMSNorm, SiluAndMul=KeplerSiluAndMul, GeluAndMul=KeplerGeluAndMul)
    for upstream in rotations():
        name = upstream.__name__
        layers.setdefault(name, type(f"Kepler{name}", (Rotation, upstream), {}))
