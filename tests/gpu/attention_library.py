"""The attention kernels of the library by ctypes, and their reference in float64.

The library is named by KEPLER_LIBRARY; any Python with torch will do, no other part of the port is needed.
"""

import ctypes
import os
import random

import torch

IO_DTYPES = {torch.float32: 0, torch.float16: 1}
# Elements of the largest matrix of float64 scores made at once (1 GiB).
MAX_SCORES = 1 << 27
_P, _I, _L, _F, _Z = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong, ctypes.c_float, ctypes.c_size_t


def load() -> ctypes.CDLL:
    path = os.environ.get("KEPLER_LIBRARY", "")
    if not os.path.isfile(path):
        raise SystemExit(f"KEPLER_LIBRARY is {path!r}, a built kernel library is expected: build it, then name it.")
    lib = ctypes.CDLL(path)
    lib.kepler_attention_decode_workspace.argtypes = [_I] * 5 + [ctypes.POINTER(_Z)]
    lib.kepler_attention_decode.argtypes = (
        [_P, _P, _L, _L, _I, _P, _P, _I, _P, _I, _P] + [_I] * 6 + [_F, _F, _I, _P, _P, _Z, _P]
    )
    lib.kepler_attention_prefill.argtypes = (
        [_P, _P, _L, _L, _I, _P, _P, _I, _P, _I, _P, _P] + [_I] * 7 + [_F, _F, _I, _P, _P]
    )
    return lib


def pointer(tensor):
    return None if tensor is None else tensor.data_ptr()


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
        self.block_size, self.soft_cap, self.window, self.causal = block_size, soft_cap, window, causal
        self.scale = sharpness * head_size**-0.5
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
        self.slopes = torch.rand(self.num_heads, device=device) * 0.5 if alibi else None
        self.out = torch.full_like(self.query, float("nan"))

    def _common(self):
        stride = self.num_heads * self.head_size
        return [
            pointer(self.out),
            pointer(self.query),
            stride,
            stride,
            IO_DTYPES[self.query.dtype],
            pointer(self.cache[0]),
            pointer(self.cache[1]),
            IO_DTYPES[self.cache.dtype],
            pointer(self.block_tables),
            self.max_blocks,
        ]

    def prepare_decode(self, lib):
        """Workspace, poisoned."""
        size = _Z()
        code = lib.kepler_attention_decode_workspace(
            len(self.lens), self.num_heads, self.num_kv_heads, self.head_size, max(self.lens), ctypes.byref(size)
        )
        assert code == 0, code
        self.workspace = torch.full((size.value // 4 + 4,), float("nan"), device="cuda")
        self.workspace_bytes = size.value

    def decode(self, lib):
        code = lib.kepler_attention_decode(
            *self._common(),
            pointer(self.seq_lens),
            len(self.lens),
            self.num_heads,
            self.num_kv_heads,
            self.head_size,
            self.block_size,
            max(self.lens),
            self.scale,
            self.soft_cap,
            self.window,
            pointer(self.slopes),
            pointer(self.workspace),
            self.workspace_bytes,
            torch.cuda.current_stream().cuda_stream,
        )
        assert code == 0, code

    def prefill(self, lib):
        code = lib.kepler_attention_prefill(
            *self._common(),
            pointer(self.query_start_loc),
            pointer(self.seq_lens),
            len(self.lens),
            max(self.query_lens),
            self.num_heads,
            self.num_kv_heads,
            self.head_size,
            self.block_size,
            int(self.causal),
            self.scale,
            self.soft_cap,
            self.window,
            pointer(self.slopes),
            torch.cuda.current_stream().cuda_stream,
        )
        assert code == 0, code

    def gathered(self, seq):
        """Keys and values of one sequence: [2, num_kv_heads, seq_len, head_size]."""
        length = self.lens[seq]
        blocks = self.block_tables[seq, : -(-length // self.block_size)].long()
        rows = self.cache[:, blocks].transpose(1, 2).reshape(2, self.num_kv_heads, -1, self.head_size)
        return rows[:, :, :length]

    def error(self):
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
                score = torch.einsum("qhgd,hkd->hgqk", query, key) * self.scale
                if self.soft_cap:
                    score = self.soft_cap * torch.tanh(score / self.soft_cap)
                position = length - (last - begin) + torch.arange(end - begin, device="cuda")
                distance = key_position[None] - position[:, None]
                if self.slopes is not None:
                    score = score + self.slopes.double().view(self.num_kv_heads, group, 1, 1) * distance
                hidden = torch.zeros_like(distance, dtype=torch.bool)
                if self.causal:
                    hidden |= distance > 0
                if self.window:
                    hidden |= distance <= -self.window
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
