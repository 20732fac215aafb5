#!/usr/bin/env python3
"""Operators of libvllm_kepler.so against float64, then their speed beside a copy's, on any NVIDIA GPU.

usage: bench_operators.py LIBRARY [--out DIR] [--check-only] [--sanitize]
"""

import argparse
import ctypes
import datetime
import json
import math
import os
import pathlib
import random
import statistics
import subprocess
import sys

import torch

BAR_ERROR, BAR_COPY = 1e-5, 0.85
NAMES = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "gelu_quick": 3, "gelu_new": 2, "gelu_fast": 2}
L, F = ctypes.c_longlong, ctypes.c_float
failures, worst = [], {}


def p(t):
    return ctypes.c_void_p(None if t is None else t.data_ptr())


def stream():
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


def ok(code):
    if code:
        raise RuntimeError(f"kernel refused: {lib.kepler_error_text(code).decode()}")


def nan(*shape):
    return torch.full(shape, float("nan"), device="cuda")


def strided(rows, size, pad):
    return torch.randn(rows, size + pad, device="cuda")[:, :size]


def check(name, got, want, scale=None, bar=BAR_ERROR, **shape):
    """Largest |got - want| over the scale (default |want|, at least the smallest normal float)."""
    scale = want.abs() if scale is None else scale
    error = ((got.double() - want).abs() / scale.clamp_min(1e-30)).max().item()
    worst[name] = max(worst.get(name, 0.0), error) if not math.isnan(error) else error
    if not error <= bar:
        failures.append(f"{name} {shape}: error {error:.2e}, bar {bar:.0e}")


def act64(name, x):
    f = torch.nn.functional
    if name == "silu":
        return f.silu(x)
    if name == "gelu":
        return 0.5 * x * torch.special.erfc(-x / math.sqrt(2))
    if name == "gelu_quick":
        return x * torch.sigmoid(1.702 * x)
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def norm_cases(rounds):
    shapes = [(1, 1), (1, 100001), (1, 16384), (7, 4099), (3, 130)] + [
        (random.randint(1, 300), random.choice([64, 80, 128, 512, 516, 1023, 2048, 4096, 5120, 8192, 14336]))
        for _ in range(rounds)
    ]
    for rows, h in shapes:
        x, w = strided(rows, h, random.choice([0, 1, 4, 64])), torch.randn(h, device="cuda")
        out, d = nan(rows, h), x.double()
        ok(lib.kepler_rms_norm(p(out), p(x), p(w), F(1e-6), rows, h, L(h), L(x.stride(0)), stream()))
        eps = ctypes.c_float(1e-6).value
        check("rms_norm", out, d / (d.pow(2).mean(1, True) + eps).sqrt() * w.double(), rows=rows, hidden=h)
        r = torch.randn(rows, h, device="cuda")
        sum64 = (x + r).double()
        y = x.clone() if x.is_contiguous() else x
        ok(lib.kepler_fused_add_rms_norm(p(y), p(r), p(w), F(1e-6), rows, h, L(y.stride(0)), L(h), stream()))
        check("fused_add_rms_norm residual", r, sum64, rows=rows, hidden=h)
        check(
            "fused_add_rms_norm", y, sum64 / (sum64.pow(2).mean(1, True) + eps).sqrt() * w.double(), rows=rows, hidden=h
        )


def activation_cases(rounds):
    shapes = [(1, 1), (1, 100003), (5, 13)] + [
        (random.randint(1, 200), random.choice([4, 127, 1024, 4098, 11008, 14336])) for _ in range(rounds)
    ]
    for rows, size in shapes:
        for name, number in NAMES.items():
            pad = random.choice([0, 3, 8])
            x, out = strided(rows, size, pad) * 3, nan(rows, size)
            ok(lib.kepler_activation(number, p(out), p(x), rows, size, L(size), L(x.stride(0)), stream()))
            check(name, out, act64(name, x.double()), rows=rows, size=size)
            x, out = strided(rows, 2 * size, pad) * 3, nan(rows, size)
            ok(lib.kepler_activation_and_mul(number, p(out), p(x), rows, size, L(size), L(x.stride(0)), stream()))
            check(
                name + "_and_mul", out, act64(name, x[:, :size].double()) * x[:, size:].double(), rows=rows, size=size
            )


def rotary_cases(rounds):
    for _ in range(rounds * 2):
        tokens, heads, kv = random.randint(1, 200), random.randint(1, 40), random.randint(1, 8)
        size = random.choice([32, 64, 80, 96, 128, 256])
        rot, neox, with_key = random.choice([size, size // 2, 20, 6]), random.random() < 0.5, random.random() < 0.7
        q, k = strided(tokens, heads * size, random.choice([0, 2, 64])), strided(tokens, kv * size, 0)
        angle = torch.rand(512, rot // 2, device="cuda") * 6
        table = torch.cat([angle.cos(), angle.sin()], 1).contiguous()
        pos = torch.randint(0, 512, (tokens,), device="cuda")
        c, s = table.double()[pos].chunk(2, 1)
        wants = []
        for t, n in ((q, heads), (k, kv)):
            d = t.double().reshape(tokens, n, size).clone()
            scale = torch.ones_like(d)
            i = torch.arange(rot // 2, device="cuda")
            a, b = (i, i + rot // 2) if neox else (2 * i, 2 * i + 1)
            u, v = d[..., a], d[..., b]
            d[..., a], d[..., b] = u * c[:, None] - v * s[:, None], v * c[:, None] + u * s[:, None]
            scale[..., a] = scale[..., b] = (
                u * u + v * v
            ).sqrt()  # a rotation's error is relative to the pair's length
            wants.append((d, scale))
        before = k.clone()
        ok(
            lib.kepler_rotary_embedding(
                p(pos),
                p(q),
                p(k) if with_key else p(None),
                p(table),
                tokens,
                heads,
                kv,
                size,
                rot,
                int(neox),
                L(q.stride(0)),
                L(k.stride(0)),
                stream(),
            )
        )
        check(
            "rotary",
            q.reshape(tokens, heads, size),
            *wants[0],
            tokens=tokens,
            heads=heads,
            size=size,
            rot=rot,
            neox=neox,
        )
        if with_key:
            check("rotary key", k.reshape(tokens, kv, size), *wants[1], tokens=tokens, size=size, rot=rot, neox=neox)
        elif not torch.equal(before, k):
            failures.append("rotary without key touched it")


def cache_cases(rounds):
    for number in range(rounds):
        dtype, code = ((torch.float32, 0), (torch.float16, 1))[number % 2]
        tokens, kv, size, bs = (
            random.randint(1, 300),
            random.randint(1, 9),
            random.choice([32, 80, 128, 256, 512]),
            random.choice([8, 16, 32]),
        )
        blocks = tokens // bs + 3
        k, v = strided(tokens, kv * size, random.choice([0, 4])), strided(tokens, kv * size, 0)
        kc, vc = (torch.full((blocks, kv, bs, size), 7.0, device="cuda", dtype=dtype) for _ in range(2))
        wk, wv = kc.clone(), vc.clone()
        slots = torch.randperm(blocks * bs, device="cuda")[:tokens]
        slots[::5] = -1
        ok(
            lib.kepler_reshape_and_cache(
                p(k), p(v), p(kc), p(vc), code, p(slots), tokens, kv, size, bs, L(k.stride(0)), L(v.stride(0)), stream()
            )
        )
        for t, c in ((k, wk), (v, wv)):
            keep = slots >= 0
            c[slots[keep] // bs, :, slots[keep] % bs] = t.reshape(tokens, kv, size)[keep].to(dtype)
        if not (torch.equal(kc, wk) and torch.equal(vc, wv)):
            failures.append("reshape_and_cache differs: %s" % [tokens, kv, size, bs, dtype])
        pairs = torch.randperm(blocks, device="cuda")[: blocks // 2 * 2].reshape(-1, 2).contiguous()
        pointers = torch.tensor([kc.data_ptr(), vc.data_ptr()], device="cuda")
        nbytes = ctypes.c_size_t(kc[0].numel() * kc.element_size())
        ok(lib.kepler_copy_blocks(p(pointers), 2, p(pairs), len(pairs), nbytes, stream()))
        wk[pairs[:, 1]], wv[pairs[:, 1]] = wk[pairs[:, 0]], wv[pairs[:, 0]]
        host, hp = torch.zeros(kc.shape, dtype=dtype, pin_memory=True), pairs.cpu()
        ok(lib.kepler_swap_blocks(p(kc), p(host), p(hp), len(hp), nbytes, stream()))
        torch.cuda.synchronize()
        if not (torch.equal(kc, wk) and torch.equal(vc, wv) and torch.equal(host[hp[:, 1]], kc.cpu()[hp[:, 0]])):
            failures.append("copy_blocks or swap_blocks differs")


def moe_cases(rounds):
    for _ in range(rounds):
        tokens, experts = random.choice([1, 2, 33, 200]), random.choice([4, 8, 60, 128, 257])
        k, n, top, tile = (
            random.choice([4, 36, 256]),
            random.choice([3, 64, 130]),
            random.randint(1, 4),
            random.choice([16, 64]),
        )
        logits, rows = torch.randn(tokens, experts, device="cuda"), tokens * top
        weights, ids = nan(tokens, top), torch.full((tokens, top), -1, device="cuda", dtype=torch.int32)
        ok(lib.kepler_topk_softmax(p(weights), p(ids), p(logits), tokens, experts, top, 0, stream()))
        want = logits.double().softmax(1).topk(top, 1)
        check("topk_softmax", weights, want.values, tokens=tokens, experts=experts, top=top)
        if not torch.equal(ids.long(), want.indices):
            failures.append("topk_softmax chose other experts: %s" % [tokens, experts, top])
        room = lib.kepler_moe_capacity(rows, experts, tile)
        order, tiles, count = (torch.full((s,), -1, device="cuda", dtype=torch.int32) for s in (room, room // tile, 1))
        ok(lib.kepler_moe_sort(p(order), p(tiles), p(count), p(ids), rows, experts, tile, stream()))
        x, w, out = torch.randn(tokens, k, device="cuda"), torch.randn(experts, n, k, device="cuda"), nan(rows, n)
        ok(
            lib.kepler_moe_product(
                p(out), p(x), p(w), p(weights), p(order), p(tiles), p(count), rows, experts, n, k, top, tile, stream()
            )
        )
        xd, wd = x.double().repeat_interleave(top, 0)[:, None], w.double()[ids.long().flatten()]
        g = weights.double().reshape(rows, 1)
        # A sum of k products cannot be nearer than about the sum of their sizes: that is the scale.
        check("moe_product", out, (xd * wd).sum(2) * g, (xd.abs() * wd.abs()).sum(2) * g, tokens=tokens, n=n, k=k)


def median_seconds(f, count=30):
    for _ in range(5):
        f()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    for start, end in events:
        start.record()
        f()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(s.elapsed_time(e) for s, e in events) * 1e-3


def benchmark(out):
    """Sizes of 0.5 GiB and up: several times any L2, so that every byte counted moves."""
    t, h, s = 16384, 8192, stream()
    x, y, r = (torch.randn(t, h, device="cuda") for _ in range(3))
    w, size = torch.randn(h, device="cuda"), x.numel() * 4
    copy = 2 * size / median_seconds(lambda: y.copy_(x))
    rows = []

    def row(name, nbytes, f):
        rows.append({"operator": name, "bytes": nbytes, "seconds": median_seconds(f)})
        rows[-1]["copy_ratio"] = nbytes / rows[-1]["seconds"] / copy

    n = t * h // 4096
    for hidden in (8192, 4096, 2048, 128):
        m = t * h // hidden
        row(
            f"rms_norm {hidden}",
            2 * size,
            lambda: ok(lib.kepler_rms_norm(p(y), p(x), p(w), F(1e-6), m, hidden, L(hidden), L(hidden), s)),
        )
    row(
        "fused_add_rms_norm 4096",
        4 * size,
        lambda: ok(lib.kepler_fused_add_rms_norm(p(y), p(r), p(w), F(1e-6), n, 4096, L(4096), L(4096), s)),
    )
    for name, number in list(NAMES.items())[:4]:
        row(
            name + "_and_mul",
            size * 3 // 2,
            lambda: ok(lib.kepler_activation_and_mul(number, p(y), p(x), t, h // 2, L(h // 2), L(h), s)),
        )
        row(name, size * 2, lambda: ok(lib.kepler_activation(number, p(y), p(x), t, h, L(h), L(h), s)))
    pos = torch.randint(0, 4096, (t,), device="cuda")
    table = torch.rand(4096, 128, device="cuda")
    key = torch.randn(t, 1024, device="cuda")
    for neox in (1, 0):
        row(
            "rotary " + ("NeoX" if neox else "GPT-J"),
            2 * (size + key.numel() * 4),
            lambda: ok(
                lib.kepler_rotary_embedding(p(pos), p(x), p(key), p(table), t, 64, 8, 128, 128, neox, L(h), L(1024), s)
            ),
        )
    slots = torch.randperm(t, device="cuda")
    for dtype, code in ((torch.float32, 0), (torch.float16, 1)):
        kc, vc = (torch.empty(t // 16, 64, 16, 128, device="cuda", dtype=dtype) for _ in range(2))
        moved = 2 * size + 2 * kc.numel() * kc.element_size()
        row(
            f"reshape_and_cache {str(dtype)[6:]}",
            moved,
            lambda: ok(
                lib.kepler_reshape_and_cache(p(x), p(y), p(kc), p(vc), code, p(slots), t, 64, 128, 16, L(h), L(h), s)
            ),
        )
    pairs = torch.randperm(t // 16, device="cuda").reshape(-1, 2).contiguous()
    pointers = torch.tensor([kc.data_ptr(), vc.data_ptr()], device="cuda")
    row(
        "copy_blocks",
        kc.numel() * 4,
        lambda: ok(lib.kepler_copy_blocks(p(pointers), 2, p(pairs), len(pairs), ctypes.c_size_t(kc[0].numel() * 2), s)),
    )
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    ).stdout.split("\n")[0]
    head = {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "library": lib.kepler_version().decode(),
        "architectures": lib.kepler_architectures().decode(),
        "copy_bytes_per_second": copy,
    }
    lines = [
        "# Operators beside a copy",
        "",
        "{gpu}, driver {driver}, torch {torch}, {date}; library {library} ({architectures}).".format(**head),
        f"Copy in the same run: {copy / 1e9:.0f} GB/s. Medians of 30; bar: {BAR_COPY:.2f} of the copy.",
        "",
        "| operator | ms | GB/s | of copy | bar |",
        "|---|---|---|---|---|",
    ]
    for e in rows:
        lines.append(
            "| {} | {:.3f} | {:.0f} | {:.2f} | {} |".format(
                e["operator"],
                e["seconds"] * 1e3,
                e["bytes"] / e["seconds"] / 1e9,
                e["copy_ratio"],
                "met" if e["copy_ratio"] >= BAR_COPY else "missed",
            )
        )
    lines += ["", f"| operator | largest error against float64 (bar {BAR_ERROR:.0e}) |", "|---|---|"] + [
        "| {} | {:.1e} |".format(*i) for i in sorted(worst.items())
    ]
    (out / "operators.md").write_text("\n".join(lines) + "\n")
    (out / "operators.json").write_text(json.dumps(dict(head, rows=rows, errors=worst), indent=1))
    print("\n".join(lines))


def main():
    global lib
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path())
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument(
        "--sanitize", action="store_true", help="run the checks under compute-sanitizer's tools as well"
    )
    parser.add_argument("--rounds", type=int, default=12)
    args = parser.parse_args()
    lib = ctypes.CDLL(os.path.abspath(args.library))
    for name in ("kepler_error_text", "kepler_version", "kepler_architectures"):
        getattr(lib, name).restype = ctypes.c_char_p
    print("seed", torch.seed())
    random.seed(torch.initial_seed())
    for cases in (norm_cases, activation_cases, rotary_cases, cache_cases, moe_cases):
        cases(args.rounds)
    for name, error in sorted(worst.items()):
        print(f"{name:32} {error:.1e}")
    if not args.check_only:
        benchmark(args.out)
    if args.sanitize:
        for tool in ("memcheck", "racecheck", "initcheck"):
            # torch keeps freed memory; without its allocator the tools see each tensor's own bounds.
            done = subprocess.run(
                [
                    "compute-sanitizer",
                    "--tool",
                    tool,
                    "--error-exitcode",
                    "9",
                    "--kernel-regex",
                    "kns=kepler",
                    sys.executable,
                    __file__,
                    args.library,
                    "--check-only",
                    "--rounds",
                    "1",
                ],
                env=dict(os.environ, PYTORCH_NO_CUDA_MEMORY_CACHING="1"),
                capture_output=True,
                text=True,
            )
            print(tool, "exit", done.returncode, done.stdout[-300:])
            if done.returncode:
                failures.append(f"compute-sanitizer {tool}: exit {done.returncode}")
    print("\n".join(failures[:40]) or "all checks passed")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
