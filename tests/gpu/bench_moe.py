#!/usr/bin/env python3
"""Experts of a layer in fewer bits beside the same in float32 of the same run.

usage: bench_moe.py --out DIR
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import machine
import torch
from bench_linear import GROUP, seconds
from vllm_kepler.ops import linear, moe

# A layer's experts, how many a token goes through, and their sizes.
LAYERS = {
    "Mixtral 8x7B": {"experts": 8, "top_k": 2, "hidden": 4096, "size": 14336},
    "Qwen3 30B A3B": {"experts": 128, "top_k": 8, "hidden": 2048, "size": 768},
}
# Bytes of a weight, with its scales and zeros.
STORAGES = {"float32": 4.0, "float16": 2.0, "int8": 1 + 4 / GROUP, "int4": 0.5 + 4 / GROUP}
TOKENS = (1, 2, 4, 8, 16, 64, 512)
# Calls of one measurement, each with experts of its own choice: more than any L2 holds.
CALLS = 8


def experts_of(storage: str, count: int, n: int, k: int) -> moe.Experts:
    if storage.startswith("float"):
        return torch.randn(count, n, k, device="cuda", dtype=getattr(torch, storage))
    bits = int(storage[3:])
    codes = torch.randint(0, 1 << bits, (count * n, k), dtype=torch.uint8, device="cuda")
    scales = torch.rand(count * n, k // GROUP, device="cuda") + 0.1
    return linear.pack(codes, scales, torch.full_like(scales, 3), bits)


def measured(layer: dict[str, int], tokens: int, matrices: tuple[moe.Experts, moe.Experts]) -> tuple[float, float]:
    """Seconds of one call, and how many experts it reads."""
    calls, read = [], 0
    for _ in range(CALLS):
        x = torch.randn(tokens, layer["hidden"], device="cuda")
        logits = torch.randn(tokens, layer["experts"], device="cuda")
        weights, experts = moe.topk_softmax(logits, layer["top_k"], True)
        read += len(experts.unique())
        calls.append(lambda x=x, weights=weights, experts=experts: moe.experts_forward(
            x, *matrices, weights, experts, "silu"
        ))
    return seconds(calls), read / CALLS


def rows_of(copy: float) -> list[dict[str, object]]:
    found = []
    for name, layer in LAYERS.items():
        single: dict[int, float] = {}
        for storage, size in STORAGES.items():
            matrices = (
                experts_of(storage, layer["experts"], 2 * layer["size"], layer["hidden"]),
                experts_of(storage, layer["experts"], layer["hidden"], layer["size"]),
            )
            for tokens in TOKENS:
                took, read = measured(layer, tokens, matrices)
                single.setdefault(tokens, took)
                moved = read * 3 * layer["size"] * layer["hidden"] * size
                found.append({
                    "layer of": name, "weights": storage, "tokens": tokens, "µs": took * 1e6, "experts read": read,
                    "of the copy": moved / took / copy, "ratio": single[tokens] / took,
                })
            del matrices
            torch.cuda.empty_cache()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    described, copy = machine.describe(), machine.copy_bandwidth()
    torch.cuda.empty_cache()
    rows = rows_of(copy)
    (out / "moe.json").write_text(json.dumps(
        {"run": {**described, "copy_bytes_per_second": copy}, "layers": rows}, indent=1
    ) + "\n")
    text = f"""# Experts in fewer bits

{machine.heading(described)}
Copy in the same run: {copy / 1e9:.0f} GB/s. A layer's experts from the routed tokens to their sum; medians of 10
replays of a CUDA graph of {CALLS} calls, each with random experts of its own. Groups of {GROUP} columns with zeros.
Ratio: to the port's float32 experts, which have no kernel for few rows: at few tokens most of it is that kernel's, and
what fewer bytes gain stands under "of the copy": bytes of the experts that are read, each once.

{machine.table(rows)}"""
    (out / "moe.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
