"""Modules that are imported on every CUDA platform and that cannot be on sm_37."""

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
        vocab_size: how many logits the mask speaks of; as many as it has bits where left out.
        indices: the rows of logits and bitmask that are masked; all where left out.
    """
    logits, bitmask = logits.view(-1, logits.shape[-1]), bitmask.view(-1, bitmask.shape[-1])
    size = min(logits.shape[-1], 32 * bitmask.shape[-1]) if vocab_size is None else vocab_size
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    for row in range(len(logits)) if indices is None else indices:
        allowed = (bitmask[row, :, None] >> bits & 1).flatten()[:size].bool()
        logits[row, :size].masked_fill_(~allowed, -torch.inf)


class BatchedTritonExperts:
    """Named by upstream's MoE layer for its own methods; the port's method never makes one."""


# Module -> what its importers take from it. flash-attn needs sm_80, Triton sm_70.
MODULES: dict[str, dict[str, Any]] = {
    "vllm.vllm_flash_attn": {},
    "vllm.vllm_flash_attn.layers": {},
    "vllm.vllm_flash_attn.layers.rotary": {"apply_rotary_emb": apply_rotary_emb},
    "vllm.model_executor.layers.fused_moe.fused_batched_moe": {"BatchedTritonExperts": BatchedTritonExperts},
    "xgrammar.kernels.apply_token_bitmask_inplace_triton": {"apply_token_bitmask_inplace_triton": apply_token_bitmask},
}


def stand_in() -> None:
    """Put modules of these names where imports find them."""
    for name, contents in MODULES.items():
        module = types.ModuleType(name, "Stands in for a module that cannot be on sm_37.")
        module.__path__ = []
        vars(module).update(contents)
        sys.modules[name] = module
