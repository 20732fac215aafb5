"""Tokens a second that a model decodes for several sequences at a time: predicted from a profile's `gpu.step`.

A step takes, on each GPU, the larger of memory and arithmetic for every matrix; the keys and values of the sequences;
the launches of its kernels; and on several GPUs two sums a layer. Beside the GPU a processor schedules, prepares and
samples, and launches kernel by kernel where no graph is replayed. docs/capacity.md says what was measured and assumed.
"""

from __future__ import annotations

import math
from typing import Any

from .capacity import EMBEDDING, NORM, Storage, held_bytes, is_matrix, share, token_bytes
from .model_families import HEAD, Model, Tensor

SEQUENCES = (1, 2, 4, 8, 16, 32, 64)


def predicted(
    step: dict[str, Any], model: Model, tensors: list[Tensor], gpus: int, storage: Storage, context: int, most: int
) -> list[dict[str, Any]]:
    """Tokens a second of all sequences together, eager and with CUDA graphs, for those numbers that fit.

    Args:
        step: the profile's `gpu.step`.
        context: tokens of each sequence.
        most: sequences that fit.
    """
    found = []
    for count in (number for number in SEQUENCES if number <= most):
        gpu = gpu_seconds(step, model, tensors, gpus, storage, context, count)
        host = step["processor"]
        beside = host["step"] + count * host["sequence"]
        # Kernels run while the next ones are launched.
        eager = max(gpu, model.layers * host["layer"]) + beside
        found.append({"sequences": count, "eager": count / eager, "graphs": count / (gpu + beside)})
    return found


def gpu_seconds(
    step: dict[str, Any], model: Model, tensors: list[Tensor], gpus: int, storage: Storage, context: int, count: int
) -> float:
    """Of a step on each GPU."""
    seconds = sum(product_seconds(step, tensor, model, gpus, storage, count) for tensor in tensors)
    seconds += count * context * token_bytes(model, gpus, storage) / step["bandwidth"]
    seconds += model.layers * step["launches"] * step["launch"]
    if gpus > 1:
        moved = 4 * count * model.hidden * 2 * (gpus - 1) / gpus
        seconds += 2 * model.layers * (step["sum"] + moved / step["link"])
    return seconds


def product_seconds(
    step: dict[str, Any], tensor: Tensor, model: Model, gpus: int, storage: Storage, count: int
) -> float:
    """Of the product with one matrix, or of reading another tensor, on one GPU."""
    size, elements, rows = held_bytes(tensor, model, gpus, storage), share(tensor, model, gpus), float(count)
    is_head = HEAD.search(tensor.name)
    if EMBEDDING.search(tensor.name) and not NORM.search(tensor.name) and not (is_head or model.tied):
        return 0.0
    if ".experts." in tensor.name and model.experts:
        # Those that some token chooses, each with an equal share of the rows.
        chosen = model.chosen / model.experts
        read = 1 - (1 - chosen) ** count
        size, elements, rows = size * read, elements * read, max(1.0, count * chosen / read)
    memory = size / step["bandwidth"]
    if len(tensor.shape) < 2:
        return memory
    bits = storage.bits if is_matrix(tensor) and not tensor.plain else 8 * storage.table
    return max(memory, elements * clocks(step["clocks"][str(bits)], rows) / (step["multiprocessors"] * step["clock"]))


def clocks(known: dict[str, float], rows: float) -> float:
    """Clocks of a multiprocessor for one weight and so many rows: products take time row by row between two numbers."""
    sizes = sorted(map(int, known))
    if rows > sizes[-1]:
        return math.ceil(rows / sizes[-1]) * known[str(sizes[-1])]
    above = next(size for size in sizes if rows <= size)
    below = max((size for size in sizes if size < above), default=above)
    part = (rows - below) / (above - below) if below < above else 1.0
    return known[str(below)] + max(part, 0.0) * (known[str(above)] - known[str(below)])


def rate(value: float) -> str:
    """Tokens a second, to three digits or the whole number."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def lines(made: dict[str, Any]) -> list[str]:
    """The predictions of a plan for people; none where none were made."""
    rows = [row for row in made["layouts"] if row.get("predicted")]
    if not rows:
        return []
    return [
        f"Predicted, not measured: tok/s of all sequences together, each with {made['context']} tokens, eager / with "
        f"CUDA graphs, on {made['processor']}.",
        f"{'GPUs':>4} {'storage':>7}" + "".join(f"{count:>10} seq" for count in SEQUENCES),
        *(
            f"{row['dies']:>4} {row['storage']:>7}"
            + "".join(f"{rate(one['eager'])} / {rate(one['graphs'])}".rjust(14) for one in row["predicted"])
            for row in rows
        ),
    ]
