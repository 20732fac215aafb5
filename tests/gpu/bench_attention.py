"""Attention kernels beside copy bandwidth, fp32 matrix rate and torch's attention, all measured in this run.

Usage: KEPLER_LIBRARY=... python3 bench_attention.py [DIRECTORY for attention.md and attention.json]
"""

import datetime
import json
import os
import statistics
import sys
from functools import partial

import torch
import torch.nn.functional as F
from attention_library import Problem, load

KV_HEADS, GROUP, HEAD_SIZE = 8, 4, 128  # Llama 3.1 8B
H200_FP32_TFLOPS = 67.0  # datasheet


def seconds(run, repeats=20):
    """Median by events, after warming up."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return statistics.median(times)


def copy_bandwidth():
    """Bytes a second, read and written, of a 4 GiB copy."""
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / seconds(lambda: target.copy_(source))


def matmul_rate():
    a, b = torch.randn(2, 8192, 8192, device="cuda").unbind(0)
    return 2 * 8192**3 / seconds(lambda: a @ b, 10)


def math_attention(query, key, value, causal):
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)


def gather_then_sdpa(problem):
    """What stands in for the kernel without it: gather every sequence's keys and values, repeat them for the group."""
    batch, length = len(problem.lens), problem.lens[0]
    rows = problem.cache[:, problem.block_tables[:, : length // problem.block_size].long()].transpose(2, 3)
    rows = rows.reshape(2, batch, KV_HEADS, length, HEAD_SIZE).float()
    key, value = rows.repeat_interleave(GROUP, dim=2).unbind(0)
    return math_attention(problem.query.view(batch, KV_HEADS * GROUP, 1, HEAD_SIZE), key, value, False)


def decode_rows(lib, copy):
    cases = [
        (32, 8192, KV_HEADS, GROUP, 128, torch.float32),
        (32, 8192, KV_HEADS, GROUP, 128, torch.float16),
        (1, 16384, KV_HEADS, GROUP, 128, torch.float32),
        (8, 2048, KV_HEADS, GROUP, 128, torch.float32),
        (32, 8192, 8, 1, 128, torch.float32),
        (32, 8192, 8, 8, 128, torch.float32),
        (32, 8192, 4, 7, 128, torch.float32),
        (32, 8192, 8, 4, 64, torch.float32),
        (32, 8192, 8, 4, 80, torch.float32),
        (32, 4096, 8, 4, 256, torch.float32),
        (32, 4096, 4, 2, 512, torch.float32),
        (32, 8192, 1, 32, 128, torch.float32),
    ]
    for batch, length, kv_heads, group, head_size, dtype in cases:
        problem = Problem([1] * batch, [length] * batch, kv_heads, group, head_size, 16, dtype)
        problem.prepare_decode(lib)
        took = seconds(partial(problem.decode, lib))
        rate = 2 * batch * length * kv_heads * head_size * problem.cache.element_size() / took
        row = {
            "kernel": "decode",
            "sequences": batch,
            "tokens": length,
            "heads": f"{kv_heads * group}/{kv_heads}",
            "head_size": head_size,
            "cache": str(dtype)[6:],
            "ms": took * 1e3,
            "GB/s": rate / 1e9,
            "of_copy": rate / copy,
            "workspace_MiB": problem.workspace_bytes / 2**20,
        }
        if (batch, kv_heads, group, head_size) == (32, KV_HEADS, GROUP, HEAD_SIZE):
            row["x_gather_sdpa"] = seconds(partial(gather_then_sdpa, problem), 5) / took
            row["error"] = problem.error()
        yield row
        torch.cuda.empty_cache()


def prefill_rows(lib, matmul):
    cases = [(n, KV_HEADS, GROUP, 128, d) for d in (torch.float32, torch.float16) for n in (2048, 16384)]
    cases += [(4096, 8, 4, size, torch.float32) for size in (32, 64, 96, 160, 192, 256)]
    cases.append((2048, 4, 2, 512, torch.float32))
    for length, kv_heads, group, head_size, dtype in cases:
        problem = Problem([length], [length], kv_heads, group, head_size, 16, dtype)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        problem.prefill(lib)
        torch.cuda.synchronize()
        extra = torch.cuda.max_memory_allocated() - before
        took = seconds(partial(problem.prefill, lib), 10)
        # The causal half alone is counted.
        rate = 4 * head_size * kv_heads * group * length * (length + 1) / 2 / took
        row = {
            "kernel": "prefill",
            "sequences": 1,
            "tokens": length,
            "heads": f"{kv_heads * group}/{kv_heads}",
            "head_size": head_size,
            "cache": str(dtype)[6:],
            "ms": took * 1e3,
            "TFLOP/s": rate / 1e12,
            "of_matmul": rate / matmul,
            "of_67": rate / 1e12 / H200_FP32_TFLOPS,
            "extra_MiB": extra / 2**20,
        }
        if head_size == 128:
            row["error"] = problem.error()
            key, value = problem.gathered(0).float().repeat_interleave(group, dim=1)[:, None].unbind(0)
            query = problem.query.transpose(0, 1)[None].contiguous()
            try:
                row["x_math_sdpa"] = seconds(partial(math_attention, query, key, value, True), 5) / took
            except torch.cuda.OutOfMemoryError:
                row["x_math_sdpa"] = "does not fit"
            torch.cuda.empty_cache()
        yield row


def shown(value):
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main():
    directory = sys.argv[1] if len(sys.argv) > 1 else "."
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    lib = load()
    copy, matmul = copy_bandwidth(), matmul_rate()
    torch.cuda.empty_cache()
    rows = list(decode_rows(lib, copy)) + list(prefill_rows(lib, matmul))
    head = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "library": os.path.basename(os.environ["KEPLER_LIBRARY"]),
        "copy_GB/s": copy / 1e9,
        "fp32_matmul_TFLOP/s": matmul / 1e12,
    }
    with open(os.path.join(directory, "attention.json"), "w") as file:
        json.dump({"run": head, "rows": rows}, file, indent=1)
    lines = [", ".join(f"{k} {shown(v)}" for k, v in head.items()), ""]
    for kernel in ("decode", "prefill"):
        chosen = [row for row in rows if row["kernel"] == kernel]
        columns = list(dict.fromkeys(name for row in chosen for name in row))
        lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(shown(row.get(name, "")) for name in columns) + " |" for row in chosen] + [""]
    with open(os.path.join(directory, "attention.md"), "w") as file:
        file.write("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
