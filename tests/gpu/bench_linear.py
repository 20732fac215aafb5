#!/usr/bin/env python3
"""Products with weights of fewer bits beside cuBLAS with float32 weights of the same run.

usage: bench_linear.py --out DIR
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import k80_model
import machine
import torch
from plots import plot
from vllm_kepler.ops import linear

# The products of a layer as vLLM makes them: query, key and value in one, gate and up in one. [n, k]
LAYERS = {
    "Llama 7B": [(12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008)],
    "Llama 3 8B": [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)],
    "Llama 13B": [(15360, 5120), (5120, 5120), (27648, 5120), (5120, 13824)],
}
GROUP = 128
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
# Bytes of a weight with its scales, and of a float32 one over those: what memory allows.
FORMATS = {"float16": 2.0, "int8": 1 + 2 / GROUP, "int4": 0.5 + 2 / GROUP}
BARS = {
    ("float16", 1): 1.9, ("float16", 8): 1.5, ("int8", 1): 3.4, ("int4", 1): 5.5, ("int4", 4): 3.5, ("int4", 8): 3.0,
    ("int4", 16): 1.8, ("int4", 32): 0.95, ("int4", 128): 0.95,
}
# Rows where cuts of the products begin and end, of one layer, to see whether a row more ever makes all of them slower.
STEPPED = "Llama 3 8B"
STEPS = (
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29, 32, 33, 36, 37, 38, 40, 41, 44, 45, 48, 49,
    50, 52, 53, 56, 57, 60, 64,
)
# Weights are taken in turn from this many bytes: several times any L2.
TURN = 1 << 28


def seconds(calls: list[Callable[[], object]], repeats: int = 10) -> float:
    """Median time of one call, out of a CUDA graph of all of them: no launch from the host is in it."""
    calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return machine.seconds(graph.replay, repeats) / len(calls)


def copies(size: float) -> int:
    """Weights of this many bytes that fill TURN."""
    return max(2, -(-TURN // int(size)))


def weight_of(name: str, n: int, k: int) -> torch.Tensor | linear.Packed:
    if name in ("float32", "float16"):
        return torch.randn(n, k, device="cuda").to(getattr(torch, name))
    bits = int(name[3:])
    codes = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8, device="cuda")
    return linear.pack(codes, torch.rand(n, k // GROUP, device="cuda") + 0.1, None, bits)


def product(name: str, x: torch.Tensor, weight: Any) -> Callable[[], object]:
    if name == "float32":
        return (lambda: torch.mv(weight, x[0])) if len(x) == 1 else (lambda: torch.mm(x, weight.T))
    return lambda: (linear.half if name == "float16" else linear.packed)(x, weight)


def measured(shapes: list[tuple[int, int]]) -> dict[tuple[str, int, int, int], float]:
    """Seconds by format, rows, n and k."""
    times = {}
    for n, k in shapes:
        for name, size in (("float32", 4.0), *FORMATS.items()):
            weights = [weight_of(name, n, k) for _ in range(copies(n * k * size))]
            stepped = (n, k) in LAYERS[STEPPED] and name != "float32"
            for count in sorted({*ROWS, *STEPS}) if stepped else ROWS:
                x = torch.randn(count, k, device="cuda")
                times[name, count, n, k] = seconds([product(name, x, weight) for weight in weights])
            del weights
            torch.cuda.empty_cache()
    return times


def layer_rows(times: dict[tuple[str, int, int, int], float], copy: float) -> list[dict[str, Any]]:
    """A layer's products one after the other, beside the same in float32."""
    found = []
    for model, shapes in LAYERS.items():
        for name, size in FORMATS.items():
            for count in ROWS:
                took, single = (sum(times[which, count, n, k] for n, k in shapes) for which in (name, "float32"))
                moved = sum(n * k for n, k in shapes) * size
                row: dict[str, Any] = {
                    "layer of": model, "weights": name, "rows": count, "µs": took * 1e6, "float32 µs": single * 1e6,
                    "ratio": single / took, "bound": 4 / size, "of the copy": moved / took / copy,
                }
                if (name, count) in BARS:
                    row["bar"] = BARS[name, count]
                    row["held"] = row["ratio"] >= BARS[name, count]
                found.append(row)
    return found


def shape_rows(times: dict[tuple[str, int, int, int], float]) -> list[dict[str, Any]]:
    """Ratios of the shapes one by one."""
    return [
        {"n": n, "k": k, "weights": name, "float32 µs at 1 row": times["float32", 1, n, k] * 1e6,
         **{f"x at {count}": times["float32", count, n, k] / times[name, count, n, k] for count in ROWS}}
        for n, k in dict.fromkeys(shape for shapes in LAYERS.values() for shape in shapes) for name in FORMATS
    ]


def step_rows(times: dict[tuple[str, int, int, int], float]) -> list[dict[str, Any]]:
    """Microseconds of one layer's products, and what a row more changes of the rows a second: below 0 they fall."""
    took = {
        (name, count): sum(times[name, count, n, k] for n, k in LAYERS[STEPPED]) for name in FORMATS for count in STEPS
    }
    found = []
    for before, count in zip((0, *STEPS), STEPS, strict=False):
        row: dict[str, Any] = {"rows": count, **{f"{name}, µs": took[name, count] * 1e6 for name in FORMATS}}
        for name in FORMATS if before else ():
            row[f"{name}, %"] = round(100 * (count / took[name, count] * took[name, before] / before - 1), 1)
        found.append(row)
    return found


def prefill_rows() -> list[dict[str, Any]]:
    """More rows than sequences decode."""
    n, k = 22016, 4096
    found = []
    weights = {name: weight_of(name, n, k) for name in ("float32", *FORMATS)}
    for count in (256, 512, 1024, 2048):
        x = torch.randn(count, k, device="cuda")
        took = {name: seconds([product(name, x, weight)], 5) for name, weight in weights.items()}
        found.append({"rows": count, "float32 µs": took["float32"] * 1e6,
                      **{f"x {name}": took["float32"] / took[name] for name in FORMATS}})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    described, copy = machine.describe(), machine.copy_bandwidth()
    torch.cuda.empty_cache()
    times = measured(list(dict.fromkeys(shape for shapes in LAYERS.values() for shape in shapes)))
    layers, shapes, steps, prefill = layer_rows(times, copy), shape_rows(times), step_rows(times), prefill_rows()
    (out / "linear.json").write_text(json.dumps(
        {"run": {**described, "copy_bytes_per_second": copy}, "layers": layers, "shapes": shapes,
         "steps": steps, "prefill": prefill},
        indent=1,
    ) + "\n")
    text = f"""# Weights of fewer bits

{machine.heading(described)}
Copy in the same run: {copy / 1e9:.0f} GB/s. Medians of 10 replays of a CUDA graph in which each call takes another
weight, {TURN >> 20} MiB in turn: nothing is found in a cache, and no launch from the host is in the times.

## A layer's products

All of a layer's products, rows of x by rows; `float32` is cuBLAS in the same run (`mv` for one row, else `mm`, TF32
off). Groups of {GROUP} columns, no zeros. Bound: the bytes of float32 over those of the codes and scales.

{machine.table(layers)}
![speed beside float32 over rows](linear.svg)

## Shape by shape

{machine.table(shapes)}
## Row by row

The products of a layer of {STEPPED}, and by how much their rows a second change from the rows of the line above.

{machine.table(steps)}
## Prefill

22,016 rows of 4,096 weights: ratio to cuBLAS with float32. Up to {linear.MAX_TILED_ROWS} rows weights become floats in
shared memory, beyond them float32 tiles in device memory.

{machine.table(prefill)}
{k80_model.text()}"""
    (out / "linear.md").write_text(text)
    own = [row for row in layers if row["layer of"] == "Llama 3 8B"]
    plot(out / "linear.svg", {
        name: [(row["rows"], row["ratio"]) for row in own if row["weights"] == name] for name in FORMATS
    }, {}, machine.heading(described), xlabel="rows", ylabel="times cuBLAS with float32 weights",
        title="Products of a layer of Llama 3 8B")
    print(text)


if __name__ == "__main__":
    main()
