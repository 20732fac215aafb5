#!/usr/bin/env python3
"""The operators beside a copy of the same run: all of them are bound by memory.

usage: bench_operators.py --out DIR
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import machine
import torch
from vllm_kepler.ops import activation, cache, norm, rotary

# Half a GiB a tensor: several times any L2, so that every byte that is counted moves.
TOKENS, WIDTH = 16384, 8192
BAR = 0.85


def cases() -> Iterator[tuple[str, int, partial]]:
    """(operator, bytes that it must move, the call)."""
    x, y, residual = (torch.randn(TOKENS, WIDTH, device="cuda") for _ in range(3))
    size = x.nbytes
    for hidden in (8192, 4096, 2048, 128):
        weight = torch.randn(hidden, device="cuda")
        rows = (y.view(-1, hidden), x.view(-1, hidden))
        yield f"rms_norm {hidden}", 2 * size, partial(norm.rms_norm_kernel, *rows, weight, 1e-6)
    weight = torch.randn(4096, device="cuda")
    added = (y.view(-1, 4096), residual.view(-1, 4096))
    yield "fused_add_rms_norm 4096", 4 * size, partial(norm.fused_add_rms_norm_kernel, *added, weight, 1e-6)
    half = y.view(-1)[: y.numel() // 2].view(TOKENS, WIDTH // 2)
    for name in activation.FUNCTIONS:
        yield f"{name}_and_mul", size * 3 // 2, partial(activation.gated_kernel(name), half, x)
        yield name, size * 2, partial(activation.plain_kernel(name), y, x)
    positions = torch.randint(0, 4096, (TOKENS,), device="cuda")
    turns, key = torch.rand(4096, 128, device="cuda"), torch.randn(TOKENS, 1024, device="cuda")
    for name, is_neox in (("NeoX", True), ("GPT-J", False)):
        yield f"rotary {name}", 2 * (size + key.nbytes), partial(
            rotary.rotary_embedding_kernel, positions, x, key, 128, turns, is_neox
        )
    slots = torch.randperm(TOKENS, device="cuda")
    heads = (x.view(TOKENS, 64, 128), y.view(TOKENS, 64, 128))
    for dtype in (torch.float32, torch.float16):
        kv_cache = torch.randn(2, TOKENS // 16, 64, 16, 128, device="cuda").to(dtype)
        yield f"reshape_and_cache {str(dtype)[6:]}", 2 * size + kv_cache.nbytes, partial(
            cache.write_kv, kv_cache, *heads, slots
        )
        pairs = torch.randperm(TOKENS // 16, device="cuda").reshape(-1, 2)
        yield f"copy_blocks {str(dtype)[6:]}", kv_cache.nbytes, partial(cache.copy_blocks, pairs, [kv_cache])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    described, copy = machine.describe(), machine.copy_bandwidth()
    rows = []
    for name, moved, run in cases():
        took = machine.seconds(run, 30)
        share = moved / took / copy
        rows.append({"operator": name, "ms": took * 1e3, "GB/s": moved / took / 1e9, "of the copy": share,
                     "bar": share >= BAR})
    (out / "operators.json").write_text(
        json.dumps({"run": {**described, "copy_bytes_per_second": copy}, "operators": rows}, indent=1) + "\n"
    )
    text = f"""# Operators beside a copy

{machine.heading(described)}
Copy in the same run: {copy / 1e9:.0f} GB/s. Medians of 30; bar: {BAR:.0%} of the copy.

{machine.table(rows)}"""
    (out / "operators.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
