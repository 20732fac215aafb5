"""Rotary position embedding (Su et al., 2021)."""

from __future__ import annotations

import torch

from .library import library, matrix, pointer, stream_of
from .operator import Operator


def rotary_embedding(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor | None,
    head_size: int,
    cos_sin_cache: torch.Tensor,
    is_neox: bool,
) -> None:
    """Rotate query and key in place.

    Args:
        positions: integer, [num_tokens] or [batch, length].
        query, key: [num_tokens, heads · head_size], or with [heads, head_size] apart, or [batch, length, …]; the
            heads may be parts of longer ones.
        cos_sin_cache: [max_position, rotary_size]: cosines, then sines, of rotary_size / 2 angles each. Only the
            first rotary_size elements of a head are rotated.
        is_neox: pairs are (i, i + rotary_size / 2); else (2 i, 2 i + 1), as GPT-J has them.
    """
    flat = positions.flatten()
    rotary_size = cos_sin_cache.shape[1]
    cos, sin = cos_sin_cache.index_select(0, flat).unsqueeze(1).chunk(2, dim=-1)
    for states in (query, key):
        if states is None:
            continue
        rotated = states.view(flat.numel(), -1, head_size)[..., :rotary_size]
        if is_neox:
            first, second = rotated.chunk(2, dim=-1)
        else:
            first, second = rotated[..., ::2], rotated[..., 1::2]
        turned = first * cos - second * sin, second * cos + first * sin
        first.copy_(turned[0])
        second.copy_(turned[1])


def rotary_embedding_kernel(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor | None,
    head_size: int,
    cos_sin_cache: torch.Tensor,
    is_neox: bool,
) -> None:
    """As rotary_embedding, float32 on a GPU; positions int64."""
    tokens = positions.numel()
    q = matrix(query.reshape(tokens, -1))
    k = None if key is None else matrix(key.reshape(tokens, -1))
    library().rotary_embedding(
        positions.data_ptr(), q.data_ptr(), pointer(k), matrix(cos_sin_cache).data_ptr(), tokens,
        q.shape[1] // head_size, 0 if k is None else k.shape[1] // head_size, head_size, cos_sin_cache.shape[1],
        is_neox, q.stride(0), 0 if k is None else k.stride(0), stream_of(q),
    )
    # Parts of heads, as latent attention rotates them, are no rows: what was rotated is a copy.
    for states, rows in ((query, q), (key, k)):
        if states is not None and rows is not None and rows.data_ptr() != states.data_ptr():
            states.copy_(rows.view_as(states))


OPERATORS = [
    Operator(
        "_C",
        "rotary_embedding(Tensor positions, Tensor! query, Tensor!? key, int head_size, Tensor cos_sin_cache, "
        "bool is_neox) -> ()",
        rotary_embedding,
        rotary_embedding_kernel,
    ),
]
