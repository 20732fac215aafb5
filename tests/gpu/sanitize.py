#!/usr/bin/env python3
"""Every kernel once under compute-sanitizer: memcheck, racecheck and initcheck.

usage: sanitize.py [--tool TOOL] [PART]...    runs itself under each tool; exit status 1 where one of them finds
                                              something, or misses a planted fault. Tools: memcheck, racecheck,
                                              initcheck. Parts: attention, rows, experts, few, tiles. All where none
                                              is named; a tool and a part at a time end within two minutes

Small sizes: the tools slow a kernel down a hundred times. torch's caching allocator is off, so that memcheck sees each
tensor's own bounds. Memcheck and racecheck look at the port's kernels alone; initcheck must see what torch's kernels
write, and what it says of reads in those is left out.
"""

import argparse
import os
import re
import subprocess
import sys
from typing import Any

OURS = ["--kernel-regex", "kns=kepler"]
TOOLS = {"memcheck": OURS, "racecheck": OURS, "initcheck": ["--print-limit", "100000"]}
CHILD = "KEPLER_SANITIZED"


def attention() -> None:
    """Attention and the cache, with shapes that leave tiles, splits and warps half full; so have those below."""
    import torch
    from attention_problem import Problem
    from vllm_kepler.ops import cache

    for dtype in (torch.float32, torch.float16):
        for head_size, group, block_size in (
            (32, 1, 8), (80, 3, 16), (128, 8, 32), (256, 4, 16), (512, 2, 16), (64, 12, 16), (120, 32, 8),
            (128, 39, 16),
        ):
            variants = {"soft_cap": 5.0, "window": 40} if group in (3, 12) else {"alibi": group in (8, 39)}
            Problem([1] * 3, [1, 33, 700], 2, group, head_size, block_size, dtype, **variants).decode()
            Problem([33, 5, 1], [33, 70, 9], 2, group, head_size, block_size, dtype, **variants).prefill()
        key = torch.randn(37, 2, 80, device="cuda")
        kv_cache = torch.randn(2, 6, 2, 16, 80, device="cuda").to(dtype)
        cache.write_kv(kv_cache, key, key, torch.arange(-3, 34, device="cuda"))
        cache.copy_blocks(torch.tensor([[0, 4], [1, 5]], device="cuda"), [kv_cache])
        cache.swap_blocks(kv_cache, torch.empty(kv_cache.shape, dtype=dtype, pin_memory=True), torch.tensor([[2, 1]]))


def rows() -> None:
    """Norms, activations and rotation."""
    import torch
    from vllm_kepler.ops import activation, norm, rotary

    for hidden in (100, 128, 130, 2048, 8192, 10000):
        x, residual = torch.randn(3, hidden, device="cuda"), torch.randn(3, hidden, device="cuda")
        norm.rms_norm_kernel(torch.empty_like(x), x, torch.ones(hidden, device="cuda"), 1e-6)
        norm.fused_add_rms_norm_kernel(x, residual, torch.ones(hidden, device="cuda"), 1e-6)
        for name in activation.FUNCTIONS:
            activation.plain_kernel(name)(torch.empty_like(x), x)
            activation.gated_kernel(name)(torch.empty(3, hidden // 2, device="cuda"), x)
    for is_neox, size in ((True, 80), (False, 80), (True, 6), (False, 6)):
        turns = torch.randn(50, size, device="cuda")
        query, key = torch.randn(7, 5 * 80, device="cuda"), torch.randn(7, 80, device="cuda")
        rotary.rotary_embedding_kernel(torch.arange(7, device="cuda"), query, key, 80, turns, is_neox)


def experts() -> None:
    """Mixtures, in every storage."""
    import torch
    from vllm_kepler.ops import linear, moe

    for num_experts, tokens in ((5, 33), (60, 3), (300, 9), (2, 200)):
        weights, experts = moe.topk_softmax(torch.randn(tokens, num_experts, device="cuda"), 2, True)
        gate_up, down = (torch.randn(num_experts, *shape, device="cuda") for shape in ((40, 36), (36, 20)))
        moe.experts_forward(torch.randn(tokens, 36, device="cuda"), gate_up, down, weights, experts, "silu")
    for num_experts, tokens in ((40, 3), (12, 5), (3, 5), (3, 9), (3, 20), (2, 200)):
        weights, experts = moe.topk_softmax(torch.randn(tokens, num_experts, device="cuda"), 2, True)
        for bits in (16, 8, 4):
            matrices = [torch.randn(num_experts, n, k, device="cuda").half() for n, k in ((320, 96), (96, 160))]
            if bits < 16:
                matrices = [
                    linear.pack(
                        torch.randint(0, 1 << bits, (num_experts * n, k), dtype=torch.uint8, device="cuda"),
                        torch.rand(num_experts * n, k // 32, device="cuda"), None, bits,
                    )
                    for _, n, k in (matrix.shape for matrix in matrices)
                ]
            x = torch.randn(tokens, 96, device="cuda")
            moe.experts_forward(x, *matrices, weights, experts, "silu")


def packed(n: int, k: int, group: int, bits: int, zeros: int | None) -> Any:
    """Random codes in random order."""
    import torch
    from vllm_kepler.ops import linear

    codes = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8, device="cuda")
    scales = torch.rand(n, k // group, device="cuda")
    points = None if zeros is None else torch.full_like(scales, zeros)
    return linear.pack(codes, scales, points, bits, torch.randperm(k, device="cuda"))


def few() -> None:
    """Products of a few rows with weights of fewer bits: x in shared memory, and x in registers."""
    import torch
    from vllm_kepler.ops import linear

    # The last two: four rows of x in registers, and more columns than one pass has.
    for n, k, group in ((37, 96, 32), (130, 4096, 128), (37, 14336, 128)):
        half = torch.randn(n, k, device="cuda").half()
        weights = [packed(n, k, group, bits, zeros) for bits, zeros in ((4, None), (4, 7), (8, None), (8, 7))]
        for count in (1, 2, 4, 5, 6, 7):
            x = torch.randn(count, k, device="cuda")
            linear.half(x, half)
            for weight in weights:
                linear.packed(x, weight)


def tiles() -> None:
    """Products of more rows: each kernel with all of its rows and without some, over parts of tiles and whole ones."""
    import torch
    from vllm_kepler.ops import linear

    # One block for each tile, and several.
    for k in (160, 544):
        half = torch.randn(131, k, device="cuda").half()
        weights = [packed(131, k, 32, 4, 7), packed(131, k, 32, 8, None)]
        for tile in linear.TILES:
            # Of the smaller tiles rows may be missing, by branches.
            for count in (tile, tile - 1) if linear.TILES[tile].least < tile else (tile + 1,):
                linear.cut_of = lambda *sizes, cut=(count, tile): (0.0, (cut,))  # type: ignore[assignment]
                x = torch.randn(count, k, device="cuda")
                linear.half(x, half)
                for weight in weights:
                    linear.packed(x, weight)


PARTS = {"attention": attention, "rows": rows, "experts": experts, "few": few, "tiles": tiles}


def kernels(names: list[str]) -> None:
    """Launch every kernel of these parts."""
    import torch

    torch.manual_seed(0)
    for name in names:
        PARTS[name]()
    torch.cuda.synchronize()


def planted(_: list[str]) -> None:
    """Write past the end of a cache and read what nobody wrote: the tools must say so."""
    import torch
    from vllm_kepler.ops import activation, cache

    key = torch.randn(1, 1, 64, device="cuda")
    kv_cache = torch.empty(2, 1, 1, 16, 64, device="cuda")
    cache.write_kv(kv_cache, key, key, torch.tensor([40], device="cuda"))
    activation.plain_kernel("silu")(torch.empty(4, 64, device="cuda"), torch.empty(4, 64, device="cuda"))
    torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", choices=TOOLS)
    parser.add_argument("parts", metavar="PART", nargs="*", choices=[[], *PARTS])
    asked = parser.parse_args()
    found = []
    for tool in [asked.tool] if asked.tool else TOOLS:
        for launched in ("kernels", "planted"):
            done = subprocess.run(
                ["compute-sanitizer", "--tool", tool, *TOOLS[tool], sys.executable, __file__,
                 *(asked.parts or PARTS)],
                env={**os.environ, CHILD: launched, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            summary = " ".join(line.strip("= ") for line in done.stdout.splitlines() if "SUMMARY" in line)
            ours = re.findall(r"^=+ .*\bat .*kepler.*$", done.stdout, re.M)
            print(f"{tool}, {launched}: {len(ours)} findings in the kernels ({summary or 'no summary'})", flush=True)
            # A race cannot be planted from outside a kernel.
            wanted = launched == "planted" and tool != "racecheck"
            if bool(ours) != wanted or not summary or (done.returncode and launched == "kernels"):
                print("\n".join(sorted(set(ours))[:20]) or done.stdout[-3000:])
                found.append(tool)
    return bool(found)


if __name__ == "__main__":
    if CHILD in os.environ:
        {"kernels": kernels, "planted": planted}[os.environ[CHILD]](sys.argv[1:])
    else:
        sys.exit(main())
