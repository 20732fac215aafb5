"""Scaled dot product attention: the arguments that torch 2.0.1 lacks, and its switches."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.backends.cuda
import torch.nn.functional

from .record import Backfill, constant


def attention_with_scale(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(original)
    def scaled_dot_product_attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """As torch 2.5 has it: query [..., Hq, L, E], key and value [..., H, S, E]; Hq a multiple of H with
        `enable_gqa`. The original scales by 1/sqrt(E), so another scale is multiplied into the query."""
        if enable_gqa and query.shape[-3] != key.shape[-3]:
            group = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(group, -3), value.repeat_interleave(group, -3)
        if scale is not None:
            query = query * (scale * query.shape[-1] ** 0.5)
        return original(query, key, value, attn_mask, dropout_p, is_causal)

    scaled_dot_product_attention.takes_scale = True  # type: ignore[attr-defined]
    return scaled_dot_product_attention


def takes_no_scale(attention: Callable[..., Any]) -> bool:
    if hasattr(attention, "takes_scale"):
        return False
    documentation = inspect.getdoc(attention) or ""
    return "scale=" not in documentation


class SDPBackend:
    """Names of the implementations, with the values of torch 2.3."""

    ERROR, MATH, FLASH_ATTENTION, EFFICIENT_ATTENTION, CUDNN_ATTENTION = -1, 0, 1, 2, 3


@contextlib.contextmanager
def sdpa_kernel(backends: Any, set_priority: bool = False) -> Iterator[None]:
    """Allow the named implementations alone within the context."""
    allowed = backends if isinstance(backends, (list, tuple, set)) else [backends]
    with torch.backends.cuda.sdp_kernel(
        enable_flash=SDPBackend.FLASH_ATTENTION in allowed,
        enable_math=SDPBackend.MATH in allowed,
        enable_mem_efficient=SDPBackend.EFFICIENT_ATTENTION in allowed,
    ):
        yield


RECORDS = [
    Backfill("torch.nn.functional.scaled_dot_product_attention", "callers pass scale= and enable_gqa=", "2.1",
             attention_with_scale, "replace", takes_no_scale),
    Backfill("torch.nn.attention", "vLLM and transformers import it", "2.3", how="module"),
    Backfill("torch.nn.attention.SDPBackend", "vLLM and transformers import it", "2.3", lambda: SDPBackend),
    Backfill("torch.nn.attention.sdpa_kernel", "vLLM and transformers import it", "2.3", lambda: sdpa_kernel),
    Backfill("torch.backends.cuda.enable_cudnn_sdp", "vLLM switches it off", "2.2", constant(None)),
    Backfill("torch.backends.cuda.cudnn_sdp_enabled", "the counterpart of enable_cudnn_sdp", "2.2", constant(False)),
]
