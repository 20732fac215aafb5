#!/usr/bin/env python3
"""Attention kernels beside the copy, the matrix product and torch's attention of the same run.

usage: bench_attention.py --out DIR
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import machine
import torch
import torch.nn.functional as F
from attention_problem import Problem

KV_HEADS, GROUP, HEAD_SIZE = 8, 4, 128  # Llama 3.1 8B
# float32 peak outside the tensor cores, TFLOP/s by datasheet; others: the matrix product alone is the measure.
PEAKS = {"NVIDIA H200": 67.0}
BAR_COPY, BAR_GATHER, BAR_MATH, BAR_PEAK, BAR_MIB = 0.75, 10.0, 1.5, 0.30, 64.0
BAR_HALF, BAR_ONE_KEY_HEAD = 0.85, 0.60


def math_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
    """What sm_37 gets from torch: the other kernels of scaled_dot_product_attention need newer GPUs."""
    with torch.backends.cuda.sdp_kernel(enable_flash=False, enable_mem_efficient=False, enable_math=True):
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)


def gather_then_sdpa(problem: Problem) -> torch.Tensor:
    """Decode without the kernel: gather every sequence's keys and values, and repeat them for the group."""
    batch, length, kv_heads = len(problem.lens), problem.lens[0], problem.num_kv_heads
    rows = problem.cache[:, problem.block_tables[:, : length // problem.block_size].long()].transpose(2, 3)
    rows = rows.reshape(2, batch, kv_heads, length, problem.head_size).float()
    key, value = rows.repeat_interleave(problem.num_heads // kv_heads, dim=2).unbind(0)
    return math_attention(problem.query.view(batch, problem.num_heads, 1, problem.head_size), key, value, False)


def decode_row(copy: float, batch: int, length: int, kv_heads=KV_HEADS, group=GROUP, head_size=HEAD_SIZE,
               dtype=torch.float32, compared=False, bar=None) -> dict[str, Any]:
    problem = Problem([1] * batch, [length] * batch, kv_heads, group, head_size, 16, dtype)
    took = machine.seconds(problem.decode)
    rate = 2 * batch * length * kv_heads * head_size * problem.cache.element_size() / took
    row = {
        "sequences": batch, "tokens": length, "heads": f"{kv_heads * group}/{kv_heads}", "head size": head_size,
        "cache": str(dtype)[6:], "ms": took * 1e3, "GB/s": rate / 1e9, "of the copy": rate / copy,
    }
    if compared:
        row["x gather and SDPA"] = machine.seconds(partial(gather_then_sdpa, problem), 5) / took
        row["error"] = problem.error()
        row["bar"] = row["of the copy"] >= bar and row["x gather and SDPA"] >= BAR_GATHER
    elif bar:
        row["bar"] = row["of the copy"] >= bar
    del problem
    torch.cuda.empty_cache()
    return row


def decode_rows(copy: float) -> Iterator[dict[str, Any]]:
    yield decode_row(copy, 32, 8192, compared=True, bar=BAR_COPY)
    yield decode_row(copy, 32, 8192, dtype=torch.float16, compared=True, bar=BAR_HALF)
    for kv_heads, group, head_size in ((8, 1, 128), (8, 8, 128), (4, 7, 128), (8, 4, 64), (8, 4, 80)):
        for dtype in (torch.float32, torch.float16):
            yield decode_row(copy, 32, 8192, kv_heads, group, head_size, dtype)
    for kv_heads, group in ((2, 16), (1, 32)):
        for dtype in (torch.float32, torch.float16):
            bar = BAR_ONE_KEY_HEAD if group == 32 and dtype == torch.float32 else None
            yield decode_row(copy, 32, 8192, kv_heads, group, dtype=dtype, bar=bar)
    yield decode_row(copy, 32, 4096, 8, 4, 256)
    yield decode_row(copy, 32, 4096, 4, 2, 512)


def sweep(copy: float) -> Iterator[dict[str, Any]]:
    """What the plot shows: from lone short sequences to full batches."""
    for batch in (1, 4, 16, 64):
        for length in (512, 2048, 8192, 32768):
            if batch * length <= 1 << 20:
                yield decode_row(copy, batch, length)


def prefill_rows(matmul: float, peak: float | None) -> Iterator[dict[str, Any]]:
    cases = [(n, KV_HEADS, GROUP, 128, d) for d in (torch.float32, torch.float16) for n in (2048, 16384)]
    cases += [(4096, 8, 4, size, torch.float32) for size in (32, 64, 96, 160, 192, 256)]
    cases.append((2048, 4, 2, 512, torch.float32))
    for length, kv_heads, group, head_size, dtype in cases:
        problem = Problem([length], [length], kv_heads, group, head_size, 16, dtype)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        problem.prefill()
        torch.cuda.synchronize()
        extra = torch.cuda.max_memory_allocated() - before
        took = machine.seconds(problem.prefill, 10)
        # The causal half alone is counted.
        rate = 4 * head_size * kv_heads * group * length * (length + 1) / 2 / took
        row = {
            "tokens": length, "heads": f"{kv_heads * group}/{kv_heads}", "head size": head_size,
            "cache": str(dtype)[6:], "ms": took * 1e3, "TFLOP/s": rate / 1e12, "of the matrix product": rate / matmul,
            "extra MiB": extra / 2**20,
        }
        if peak:
            row["of the peak"] = rate / 1e12 / peak
        if head_size == HEAD_SIZE:
            row["error"] = problem.error()
            key, value = problem.gathered(0).float().repeat_interleave(group, dim=1)[:, None].unbind(0)
            query = problem.query.transpose(0, 1)[None].contiguous()
            try:
                row["x math SDPA"] = machine.seconds(partial(math_attention, query, key, value, True), 5) / took
            except torch.cuda.OutOfMemoryError:
                row["x math SDPA"] = "does not fit"
            faster = isinstance(row["x math SDPA"], str) or row["x math SDPA"] >= BAR_MATH
            row["bar"] = faster and row["extra MiB"] <= BAR_MIB and row.get("of the peak", BAR_PEAK) >= BAR_PEAK
        yield row
        torch.cuda.empty_cache()


def plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Share of the copy's bandwidth over the context, a line for each batch."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for batch in sorted({row["sequences"] for row in rows}):
        own = [row for row in rows if row["sequences"] == batch]
        axes.plot([row["tokens"] for row in own], [row["of the copy"] for row in own], marker="o",
                  label=f"{batch} sequence{'s' if batch > 1 else ''}")
    axes.axhline(BAR_COPY, linestyle=":", color="grey")
    axes.set(xscale="log", xlabel="tokens of each sequence", ylabel="bandwidth, of the copy's", ylim=(0, 1.05),
             title="Paged decode, 32/8 heads of 128, float32")
    axes.legend()
    figure.text(0.01, 0.01, title, fontsize=5)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    described = machine.describe()
    copy, matmul = machine.copy_bandwidth(), machine.matmul_rate()
    torch.cuda.empty_cache()
    decode, prefill = list(decode_rows(copy)), list(prefill_rows(matmul, PEAKS.get(described["gpu"])))
    swept = list(sweep(copy))
    run = {**described, "copy_bytes_per_second": copy, "matmul_flops": matmul}
    (out / "attention.json").write_text(
        json.dumps({"run": run, "decode": decode, "prefill": prefill, "sweep": swept}, indent=1) + "\n"
    )
    text = f"""# Attention kernels

{machine.heading(described)}
Copy in the same run: {copy / 1e9:.0f} GB/s; float32 matrix product: {matmul / 1e12:.1f} TFLOP/s. Medians.

## Decode

Bound: keys and values read once, at the copy's bandwidth. Bar: {BAR_COPY:.0%} of it ({BAR_HALF:.0%} where they are
float16, {BAR_ONE_KEY_HEAD:.0%} with one key head for 32 query heads), and {BAR_GATHER:.0f} times the gathering of
keys and values before torch's attention.

{machine.table(decode)}
![bandwidth over batch and context](attention.svg)

## Prefill

Causal, one prompt, cache filled; 4 · head size · heads · tokens² / 2 operations. Bound: the matrix product's rate.
Bar: {BAR_MATH} times torch's math attention where that fits, {BAR_PEAK:.0%} of the peak where the datasheet names
one, and at most {BAR_MIB:.0f} MiB beside inputs and output.

{machine.table(prefill)}"""
    (out / "attention.md").write_text(text)
    plot(swept, machine.heading(described), out / "attention.svg")
    print(text)


if __name__ == "__main__":
    main()
