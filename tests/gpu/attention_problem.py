"""Batches for the attention kernels, and their answer in float64."""

from __future__ import annotations

import random

import torch
from vllm_kepler.ops import attention

# Elements of the largest matrix of float64 scores made at once (1 GiB).
MAX_SCORES = 1 << 27


class Problem:
    """One batch: random queries, and a cache in which every slot that no sequence holds is NaN.

    Args:
        query_lens, seq_lens: tokens asked and tokens in all of each sequence.
        group: query heads of one kv head.
    """

    def __init__(
        self,
        query_lens,
        seq_lens,
        num_kv_heads,
        group,
        head_size,
        block_size,
        cache_dtype=torch.float32,
        io_dtype=torch.float32,
        soft_cap=0.0,
        window=0,
        alibi=False,
        causal=True,
        sharpness=1.0,
    ):
        device = "cuda"
        self.query_lens, self.lens = query_lens, seq_lens
        self.num_kv_heads, self.num_heads, self.head_size = num_kv_heads, num_kv_heads * group, head_size
        self.block_size = block_size
        held = [-(-n // block_size) for n in seq_lens]
        num_blocks = sum(held) + 3
        blocks = torch.randperm(num_blocks - 1, device=device)[: sum(held)] + 1
        cache = torch.randn(2, num_blocks, num_kv_heads, block_size, head_size, device=device).to(cache_dtype)
        unused = torch.ones(num_blocks, dtype=torch.bool, device=device)
        unused[blocks] = False
        cache[:, unused] = float("nan")
        # Entries past a sequence's blocks name block 0, which is poisoned.
        self.max_blocks = max(held) + 1
        self.block_tables = torch.zeros(len(seq_lens), self.max_blocks, dtype=torch.int32, device=device)
        start = 0
        for row, (count, length) in enumerate(zip(held, seq_lens, strict=False)):
            self.block_tables[row, :count] = blocks[start : start + count]
            start += count
            if length % block_size:
                cache[:, blocks[start - 1], :, length % block_size :] = float("nan")
        self.cache = cache
        self.query = torch.randn(sum(query_lens), self.num_heads, head_size, device=device).to(io_dtype)
        self.seq_lens = torch.tensor(seq_lens, dtype=torch.int32, device=device)
        starts = [sum(query_lens[:i]) for i in range(len(query_lens) + 1)]
        self.starts = starts
        self.query_start_loc = torch.tensor(starts, dtype=torch.int32, device=device)
        self.spec = attention.AttentionSpec(
            scale=sharpness * head_size**-0.5,
            window=window or None,
            soft_cap=soft_cap or None,
            alibi_slopes=torch.rand(self.num_heads, device=device) * 0.5 if alibi else None,
            causal=causal,
        )
        self.out = torch.full_like(self.query, float("nan"))

    def decode(self) -> None:
        attention.decode_kernel(
            self.out, self.query, self.cache, self.block_tables, self.seq_lens, max(self.lens), self.spec
        )

    def prefill(self) -> None:
        attention.prefill_kernel(
            self.out, self.query, self.cache, self.block_tables, self.query_start_loc, self.seq_lens,
            max(self.query_lens), self.spec,
        )

    def gathered(self, seq: int) -> torch.Tensor:
        """Keys and values of one sequence: [2, num_kv_heads, seq_len, head_size]."""
        length = self.lens[seq]
        blocks = self.block_tables[seq, : -(-length // self.block_size)].long()
        rows = self.cache[:, blocks].transpose(1, 2).reshape(2, self.num_kv_heads, -1, self.head_size)
        return rows[:, :, :length]

    def error(self) -> float:
        """Largest ‖out - ref‖ / ‖ref‖ over the sequences, ref in float64; inf where out holds a NaN."""
        worst = 0.0
        group = self.num_heads // self.num_kv_heads
        for seq, length in enumerate(self.lens):
            key, value = self.gathered(seq).double()
            key_position = torch.arange(length, device="cuda")
            first, last = self.starts[seq], self.starts[seq + 1]
            reference = torch.empty(last - first, self.num_heads, self.head_size, dtype=torch.float64, device="cuda")
            chunk = max(1, MAX_SCORES // (self.num_heads * length))
            for begin in range(first, last, chunk):
                end = min(last, begin + chunk)
                query = self.query[begin:end].double().view(end - begin, self.num_kv_heads, group, self.head_size)
                score = torch.einsum("qhgd,hkd->hgqk", query, key) * self.spec.scale
                if self.spec.soft_cap:
                    score = self.spec.soft_cap * torch.tanh(score / self.spec.soft_cap)
                position = length - (last - begin) + torch.arange(end - begin, device="cuda")
                distance = key_position[None] - position[:, None]
                if self.spec.alibi_slopes is not None:
                    slopes = self.spec.alibi_slopes.double().view(self.num_kv_heads, group, 1, 1)
                    score = score + slopes * distance
                hidden = torch.zeros_like(distance, dtype=torch.bool)
                if self.spec.causal:
                    hidden |= distance > 0
                if self.spec.window:
                    hidden |= distance <= -self.spec.window
                weight = torch.softmax(score.masked_fill_(hidden, -torch.inf), dim=-1)
                reference[begin - first : end - first] = torch.einsum("hgqk,hkd->qhgd", weight, value).reshape(
                    end - begin, self.num_heads, self.head_size
                )
            difference = (self.out[first:last].double() - reference).norm() / reference.norm()
            worst = max(worst, difference.item() if torch.isfinite(difference) else float("inf"))
        return worst


def variants(rng: random.Random) -> dict:
    """A random combination of ALiBi, window and soft-cap."""
    return {
        "alibi": rng.random() < 0.3,
        "window": rng.choice([0, 0, 1, 7, 64, 333, 4096]),
        "soft_cap": rng.choice([0.0, 0.0, 5.0, 50.0]),
        "sharpness": rng.choice([1.0, 1.0, 4.0]),
    }
