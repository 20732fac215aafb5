"""Stand-ins for modules that vLLM imports on every CUDA platform, and that sm_37 cannot have."""

from __future__ import annotations

import sys
import types
from typing import Any

import torch


def apply_rotary_emb(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False, **kwargs: object
) -> torch.Tensor:
    """Rotate x [..., tokens, heads, head_size] by cos, sin [tokens, head_size / 2]; pairs as `interleaved` says."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    first, second = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    turned = first * cos - second * sin, second * cos + first * sin
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)


def apply_token_bitmask(
    logits: torch.Tensor, bitmask: torch.Tensor, vocab_size: int | None = None, indices: list[int] | None = None
) -> None:
    """Set the logits of forbidden tokens to -inf, in place, as xgrammar's kernel does.

    Args:
        logits: float32 [batch, vocabulary], or [vocabulary] for a batch of one.
        bitmask: int32 [batch, words]: bit i of word w allows token 32 · w + i.
        vocab_size: how many logits the mask covers; by default as many as it has bits.
        indices: the rows of logits and bitmask that are masked; by default all.
    """
    logits, bitmask = logits.view(-1, logits.shape[-1]), bitmask.view(-1, bitmask.shape[-1])
    size = min(logits.shape[-1], 32 * bitmask.shape[-1]) if vocab_size is None else vocab_size
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    for row in range(len(logits)) if indices is None else indices:
        allowed = (bitmask[row, :, None] >> bits & 1).flatten()[:size].bool()
        logits[row, :size].masked_fill_(~allowed, -torch.inf)


class BatchedTritonExperts:
    """Imported by upstream's MoE layer for its own methods; the port never makes one."""


# Module -> the names that are imported from it. flash-attn needs sm_80, Triton sm_70.
MODULES: dict[str, dict[str, Any]] = {
    "vllm.vllm_flash_attn": {},
    "vllm.vllm_flash_attn.layers": {},
    "vllm.vllm_flash_attn.layers.rotary": {"apply_rotary_emb": apply_rotary_emb},
    "vllm.model_executor.layers.fused_moe.fused_batched_moe": {"BatchedTritonExperts": BatchedTritonExperts},
    "xgrammar.kernels.apply_token_bitmask_inplace_triton": {"apply_token_bitmask_inplace_triton": apply_token_bitmask},
}


def stand_in() -> None:
    """Register the stand-ins in sys.modules."""
    for name, contents in MODULES.items():
        module = types.ModuleType(name, "Stands in for a module that cannot be on sm_37.")
        module.__path__ = []
        vars(module).update(contents)
        sys.modules[name] = module
