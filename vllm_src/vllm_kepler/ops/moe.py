"""Mixture of experts without Triton: routing, and the experts' feed-forward layers.

    routed(x) = Σ over the chosen experts e of weight_e · (act(x · gate_e) * (x · up_e)) · down_e
"""

from __future__ import annotations

import torch

from .activation import FUNCTIONS
from .library import ACTIVATIONS, library, matrix, stream_of
from .registry import by_device

# Memory of the rows between the two products, in bytes: more tokens are taken a part at a time.
MAX_BYTES = 1 << 27
# Rows of a tile of the grouped product; the small one where an expert has few rows.
SMALL_TILE, LARGE_TILE = 16, 64
# Rows are read four elements at a time.
ALIGNMENT = 4


def topk_softmax_reference(logits: torch.Tensor, top_k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The top_k largest of the softmax of each token's logits.

    Args:
        logits: float32 [num_tokens, num_experts].
        renormalize: whether the chosen weights are divided by their sum.

    Returns:
        weights: float32 [num_tokens, top_k], the largest first; experts: int32 of the same shape.
    """
    weights, experts = torch.softmax(logits.float(), dim=-1).topk(top_k, dim=-1)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, experts.int()


def topk_softmax_kernel(logits: torch.Tensor, top_k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """As topk_softmax_reference, on a GPU, for at most 512 experts; the lower expert first among equals."""
    logits = matrix(logits.float().contiguous())
    tokens, num_experts = logits.shape
    weights = logits.new_empty(tokens, top_k)
    experts = logits.new_empty(tokens, top_k, dtype=torch.int32)
    library().topk_softmax(
        weights.data_ptr(), experts.data_ptr(), logits.data_ptr(), tokens, num_experts, top_k, renormalize,
        stream_of(logits),
    )
    return weights, experts


topk_softmax = by_device(topk_softmax_reference, topk_softmax_kernel)


def grouped_topk(
    logits: torch.Tensor,
    top_k: int,
    renormalize: bool,
    num_expert_group: int,
    topk_group: int,
    scoring_func: str,
    correction_bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The top_k experts out of the topk_group best groups (DeepSeek-AI, 2024); returns as topk_softmax_reference.

    A group's score is its best expert's; with a correction bias, the sum of its two best. The bias has a say in the
    choice and none in the weights.
    """
    scores = torch.softmax(logits.float(), dim=-1) if scoring_func == "softmax" else torch.sigmoid(logits.float())
    choice = scores if correction_bias is None else scores + correction_bias
    by_group = choice.unflatten(-1, (num_expert_group, -1))
    group_scores = by_group.amax(-1) if correction_bias is None else by_group.topk(2, dim=-1).values.sum(-1)
    hidden = torch.ones_like(group_scores, dtype=torch.bool)
    hidden.scatter_(1, group_scores.topk(topk_group, dim=-1).indices, False)
    experts = by_group.masked_fill(hidden[..., None], -torch.inf).flatten(1).topk(top_k, dim=-1).indices
    weights = scores.gather(1, experts)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, experts.int()


def experts_reference(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    activation: str,
) -> torch.Tensor:
    """The chosen experts' outputs, weighted and summed.

    Args:
        x: [num_tokens, hidden_size].
        gate_up: [num_experts, 2 · intermediate_size, hidden_size]: the gate's rows, then the others.
        down: [num_experts, hidden_size, intermediate_size].
        weights, experts: [num_tokens, top_k], as topk_softmax gives them.
        activation: "silu" or "gelu".

    Returns:
        [num_tokens, hidden_size].
    """
    out = torch.zeros_like(x)
    for expert in experts.unique().tolist():
        token, choice = (experts == expert).nonzero(as_tuple=True)
        gate, up = (x[token] @ gate_up[expert].T).chunk(2, dim=-1)
        product = (FUNCTIONS[activation](gate) * up) @ down[expert].T
        out.index_add_(0, token, product * weights[token, choice, None])
    return out


def experts_kernel(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    activation: str,
) -> torch.Tensor:
    """As experts_reference, float32 on a GPU; both sizes multiples of 4."""
    top_k = experts.shape[1]
    # Gate and up, their product and the output of each row: 3 · intermediate_size + hidden_size.
    row_bytes = x.element_size() * top_k * (gate_up.shape[1] + down.shape[2] + down.shape[1])
    at_once = max(1, MAX_BYTES // row_bytes)
    parts = [
        _experts_of_some(*(rows[start : start + at_once] for rows in (x, weights, experts)), gate_up, down, activation)
        for start in range(0, len(x), at_once)
    ]
    # The usual one part needs no copy; no part at all is an empty answer.
    return parts[0] if len(parts) == 1 else torch.cat([x[:0], *parts])


def _experts_of_some(
    x: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    activation: str,
) -> torch.Tensor:
    lib, stream = library(), stream_of(x)
    x, weights, experts = matrix(x.contiguous()), weights.contiguous(), experts.contiguous()
    num_experts, double_size, hidden_size = gate_up.shape
    size, top_k = double_size // 2, experts.shape[1]
    num_rows = experts.numel()
    tile = LARGE_TILE if num_rows >= LARGE_TILE * num_experts else SMALL_TILE
    capacity = lib.moe_capacity(num_rows, num_experts, tile)
    sorted_rows, tile_experts, num_sorted = (
        experts.new_empty(count) for count in (capacity, capacity // tile, 1)
    )
    order = (sorted_rows.data_ptr(), tile_experts.data_ptr(), num_sorted.data_ptr())
    lib.moe_sort(*order, experts.data_ptr(), num_rows, num_experts, tile, stream)

    both, inner, outer = (x.new_empty(num_rows, count) for count in (double_size, size, hidden_size))
    lib.moe_product(
        both.data_ptr(), x.data_ptr(), gate_up.data_ptr(), None, *order, num_rows, num_experts, double_size,
        hidden_size, top_k, tile, stream,
    )
    lib.activation_and_mul(
        ACTIVATIONS[activation], inner.data_ptr(), both.data_ptr(), num_rows, size, size, double_size, stream
    )
    lib.moe_product(
        outer.data_ptr(), inner.data_ptr(), down.data_ptr(), weights.data_ptr(), *order, num_rows, num_experts,
        hidden_size, size, 1, tile, stream,
    )
    return outer.view(-1, top_k, hidden_size).sum(1)


experts_forward = by_device(experts_reference, experts_kernel)
