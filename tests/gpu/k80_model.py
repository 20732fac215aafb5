#!/usr/bin/env python3
"""What the linear kernels should reach on a K80: a model of one step of decoding, predicted and never measured.

usage: k80_model.py                     prints the tables; needs no GPU

A product of N weights takes, on one die, the larger of

    N · bytes of a weight / BANDWIDTH
    N · max over the units (instructions of a weight on that unit / its rate) / (SMS · clock)

The instructions are those of the inner loop in the sm_37 machine code (counted by tests/kernels), the rates those of
the CUDA programming guide for compute capability 3.7. A token takes its products, LAUNCHES kernels a layer, and on
several dies two sums over them a layer. Attention over the context is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

SMS = 13
CLOCKS = {"562 MHz": 562e6, "875 MHz": 875e6}
# Bytes a second of a die with ECC; 112 to 145 GB/s are reported for matrix-vector products.
BANDWIDTH = 130e9
# Lanes a clock of a multiprocessor. Four schedulers issue one instruction each: pairs are not counted on.
RATES = {"issue": 128, "FFMA": 192, "logic": 160, "shift": 64, "multiply": 32, "convert": 32, "shared": 16}
UNITS = {
    "FFMA": "FFMA", "FADD": "FFMA", "FMUL": "FFMA", "LOP": "logic", "LOP32I": "logic", "IADD": "logic",
    "IADD32I": "logic", "PRMT": "shift", "SHR": "shift", "SHL": "shift", "SHF": "shift", "BFE": "shift",
    "ISCADD": "shift",
    "SHFL": "multiply", "IMAD": "multiply", "IMUL": "multiply", "F2F": "convert", "I2F": "convert",
    "LDS.128": "shared",
}
# Assumed: a kernel's launch on the device, kernels a layer, and a sum of one token's activations over four dies.
LAUNCH, LAUNCHES, ALL_REDUCE = 5e-6, 12, 50e-6
# A die's memory less what the engine and its context take.
MEMORY = 10.2 * 2**30


@dataclass(frozen=True)
class Kernel:
    """One kernel of linear.cu or linear_tiled.cu on sm_37.

    Attributes:
        bytes: of a weight, with scales in groups of 128.
        weights: a lane's in one pass of the inner loop.
        registers, shared, threads: of a block.
        loop: instructions of the pass; "issue" is all of them, those of scales too, which a group of 128 columns needs
            in fewer passes.
    """

    bytes: float
    weights: int
    registers: int
    shared: int
    threads: int
    loop: dict[str, int]

    def clocks(self) -> tuple[float, str]:
        """Clocks of a multiprocessor for one weight, and the unit that takes them."""
        used = dict.fromkeys(RATES, 0.0)
        for name, count in self.loop.items():
            used[name if name == "issue" else UNITS[name]] += count
        return max((count / RATES[unit] / self.weights, unit) for unit, count in used.items())

    def seconds(self, clock: float) -> float:
        """Of one weight on one die."""
        return max(self.bytes / BANDWIDTH, self.clocks()[0] / (SMS * clock))

    def warps(self) -> int:
        """Of the 64 that a multiprocessor can hold: by 128 K registers (8 a thread at a time), 112 KiB, 16 blocks."""
        registers = -(-self.registers // 8) * 8 * self.threads
        return min(131072 // registers, (112 << 10) // self.shared, 16, 2048 // self.threads) * self.threads // 32


KERNELS = {
    ("float16", 1): Kernel(2.0, 32, 71, 9344, 256, {"issue": 89, "FFMA": 32, "IMAD": 8, "F2F": 32, "LDS.128": 2}),
    ("float16", 2): Kernel(2.0, 32, 96, 37376, 512, {"issue": 123, "FFMA": 64, "IMAD": 8, "F2F": 32, "LDS.128": 4}),
    ("float16", 4): Kernel(2.0, 32, 123, 37888, 512, {"issue": 191, "FFMA": 128, "IMAD": 8, "F2F": 32, "LDS.128": 8}),
    ("float16", 8): Kernel(2.0, 32, 145, 4136, 128, {
        "issue": 356, "FFMA": 256, "LOP32I": 3, "SHL": 3, "ISCADD": 5, "IMAD": 7, "F2F": 32, "LDS.128": 16}),
    ("float16", 16): Kernel(2.0, 32, 203, 8232, 128, {
        "issue": 637, "FFMA": 512, "LOP32I": 3, "SHL": 3, "ISCADD": 6, "IMAD": 8, "F2F": 32, "LDS.128": 32}),
    ("float16", 24): Kernel(2.0, 32, 254, 12328, 128, {
        "issue": 918, "FFMA": 768, "LOP32I": 2, "PRMT": 1, "SHL": 2, "ISCADD": 7, "IMAD": 9, "F2F": 32, "LDS.128": 48}),
    ("float16", 32): Kernel(2.0, 32, 249, 16808, 128, {
        "issue": 1226, "FFMA": 1024, "LOP32I": 4, "SHL": 7, "ISCADD": 8, "IMAD": 10, "F2F": 32, "LDS.128": 64}),
    ("float16", 36): Kernel(2.0, 32, 249, 18888, 128, {
        "issue": 1385, "FFMA": 1152, "LOP32I": 3, "PRMT": 1, "SHL": 5, "ISCADD": 10, "IMAD": 11, "F2F": 32,
        "LDS.128": 72}),
    ("float16", 48): Kernel(2.0, 32, 214, 24616, 64, {
        "issue": 1833, "FFMA": 1536, "LOP32I": 13, "SHL": 7, "ISCADD": 8, "IMAD": 18, "F2F": 32, "LDS.128": 80}),
    ("float16", 64): Kernel(2.0, 16, 128, 24616, 128, {
        "issue": 1218, "FFMA": 1024, "LOP32I": 11, "SHL": 5, "ISCADD": 5, "IMAD": 12, "F2F": 16, "LDS.128": 64}),
    ("float16", 128): Kernel(2.0, 8, 131, 32808, 256, {
        "issue": 1186, "FFMA": 1024, "LOP32I": 10, "SHL": 3, "ISCADD": 3, "IMAD": 13, "F2F": 8, "LDS.128": 64}),
    ("int8", 1): Kernel(1 + 1 / 64, 64, 62, 32256, 896, {
        "issue": 193, "FFMA": 65, "FADD": 6, "FMUL": 1, "LOP": 1, "LOP32I": 50, "PRMT": 17, "ISCADD": 5, "IMAD": 6,
        "SHFL": 6, "F2F": 1}),
    ("int8", 2): Kernel(1 + 1 / 64, 64, 96, 23040, 640, {
        "issue": 284, "FFMA": 130, "FADD": 10, "FMUL": 2, "LOP32I": 48, "PRMT": 17, "ISCADD": 5, "IMAD": 6, "SHFL": 9,
        "F2F": 1}),
    ("int8", 4): Kernel(1 + 1 / 64, 64, 127, 18432, 512, {
        "issue": 456, "FFMA": 260, "FADD": 17, "FMUL": 4, "LOP32I": 50, "PRMT": 17, "BFE": 3, "ISCADD": 5, "IMAD": 6,
        "SHFL": 16, "F2F": 1}),
    ("int8", 5): Kernel(1 + 1 / 64, 64, 128, 9216, 256, {
        "issue": 536, "FFMA": 325, "FADD": 23, "FMUL": 5, "LOP32I": 49, "PRMT": 17, "BFE": 4, "ISCADD": 5, "IMAD": 6,
        "SHFL": 22, "F2F": 1}),
    ("int8", 6): Kernel(1 + 1 / 64, 64, 168, 9216, 256, {
        "issue": 617, "FFMA": 390, "FADD": 26, "FMUL": 6, "LOP32I": 48, "PRMT": 17, "ISCADD": 5, "IMAD": 6, "SHFL": 25,
        "F2F": 1}),
    ("int8", 8): Kernel(1 + 1 / 64, 64, 242, 9216, 256, {
        "issue": 765, "FFMA": 520, "FADD": 32, "FMUL": 8, "LOP32I": 48, "PRMT": 17, "ISCADD": 5, "IMAD": 6, "SHFL": 31,
        "F2F": 1}),
    ("int8", 16): Kernel(1 + 1 / 64, 32, 206, 8232, 128, {
        "issue": 771, "FFMA": 544, "FMUL": 24, "LOP32I": 28, "PRMT": 9, "BFE": 8, "SHL": 2, "SHR": 6, "ISCADD": 14,
        "IMAD": 16, "F2F": 8, "LDS.128": 32}),
    ("int8", 24): Kernel(1 + 1 / 64, 32, 255, 12328, 128, {
        "issue": 1056, "FFMA": 800, "FMUL": 28, "LOP32I": 27, "PRMT": 10, "BFE": 8, "SHR": 5, "SHF": 1, "ISCADD": 15,
        "IMAD": 17, "F2F": 8, "LDS.128": 48}),
    ("int8", 32): Kernel(1 + 1 / 64, 32, 254, 16552, 128, {
        "issue": 1360, "FFMA": 1056, "FMUL": 32, "LOP32I": 28, "PRMT": 8, "BFE": 8, "SHL": 6, "SHR": 5, "ISCADD": 16,
        "IMAD": 18, "F2F": 8, "LDS.128": 64}),
    ("int8", 36): Kernel(1 + 1 / 64, 32, 255, 18632, 128, {
        "issue": 1522, "FFMA": 1184, "FMUL": 36, "LOP32I": 27, "PRMT": 9, "BFE": 8, "SHL": 4, "SHR": 5, "ISCADD": 18,
        "IMAD": 19, "F2F": 8, "LDS.128": 72}),
    ("int8", 48): Kernel(1 + 1 / 64, 32, 218, 24616, 64, {
        "issue": 2010, "FFMA": 1568, "FADD": 4, "FMUL": 8, "LOP32I": 77, "SHL": 23, "SHR": 21, "SHF": 4, "ISCADD": 16,
        "IMAD": 26, "F2F": 8, "LDS.128": 80}),
    ("int8", 64): Kernel(1 + 1 / 64, 16, 148, 24616, 128, {
        "issue": 1307, "FFMA": 1040, "FADD": 2, "FMUL": 4, "LOP32I": 43, "SHL": 13, "SHR": 11, "SHF": 2, "ISCADD": 9,
        "IMAD": 16, "F2F": 4, "LDS.128": 64}),
    ("int8", 128): Kernel(1 + 1 / 64, 8, 141, 32808, 256, {
        "issue": 1233, "FFMA": 1032, "FADD": 1, "FMUL": 2, "LOP32I": 26, "SHL": 7, "SHR": 6, "SHF": 1, "ISCADD": 5,
        "IMAD": 15, "F2F": 2, "LDS.128": 64}),
    ("int4", 1): Kernel(0.5 + 1 / 64, 128, 77, 34816, 512, {
        "issue": 328, "FFMA": 129, "FADD": 6, "FMUL": 1, "LOP": 1, "LOP32I": 97, "PRMT": 1, "BFE": 17, "SHF": 16,
        "ISCADD": 5, "IMAD": 6, "SHFL": 6, "F2F": 1}),
    ("int4", 2): Kernel(0.5 + 1 / 64, 128, 128, 34816, 512, {
        "issue": 482, "FFMA": 258, "FADD": 10, "FMUL": 2, "LOP32I": 97, "PRMT": 1, "BFE": 18, "SHF": 16, "ISCADD": 5,
        "IMAD": 6, "SHFL": 9, "F2F": 1}),
    ("int4", 4): Kernel(0.5 + 1 / 64, 128, 238, 17408, 256, {
        "issue": 765, "FFMA": 516, "FADD": 17, "FMUL": 4, "LOP32I": 96, "PRMT": 1, "BFE": 16, "SHF": 16, "ISCADD": 5,
        "IMAD": 6, "SHFL": 16, "F2F": 1}),
    ("int4", 5): Kernel(0.5 + 1 / 64, 64, 164, 9216, 256, {
        "issue": 540, "FFMA": 325, "FADD": 23, "FMUL": 5, "LOP32I": 48, "PRMT": 1, "BFE": 12, "SHF": 8, "ISCADD": 5,
        "IMAD": 6, "SHFL": 22, "F2F": 1}),
    ("int4", 6): Kernel(0.5 + 1 / 64, 64, 168, 9216, 256, {
        "issue": 617, "FFMA": 390, "FADD": 26, "FMUL": 6, "LOP32I": 48, "PRMT": 1, "BFE": 12, "SHF": 8, "ISCADD": 5,
        "IMAD": 6, "SHFL": 25, "F2F": 1}),
    ("int4", 8): Kernel(0.5 + 1 / 64, 64, 252, 9216, 256, {
        "issue": 764, "FFMA": 520, "FADD": 32, "FMUL": 8, "LOP32I": 48, "PRMT": 1, "BFE": 8, "SHF": 8, "ISCADD": 5,
        "IMAD": 6, "SHFL": 31, "F2F": 1}),
    ("int4", 16): Kernel(0.5 + 1 / 64, 32, 201, 8232, 128, {
        "issue": 766, "FFMA": 544, "FMUL": 24, "LOP32I": 24, "PRMT": 13, "BFE": 12, "SHL": 1, "SHR": 5, "SHF": 1,
        "ISCADD": 14, "IMAD": 16, "F2F": 8, "LDS.128": 32}),
    ("int4", 24): Kernel(0.5 + 1 / 64, 32, 255, 12328, 128, {
        "issue": 1051, "FFMA": 800, "FMUL": 28, "LOP32I": 23, "PRMT": 14, "BFE": 12, "SHR": 5, "SHF": 1, "ISCADD": 15,
        "IMAD": 17, "F2F": 8, "LDS.128": 48}),
    ("int4", 32): Kernel(0.5 + 1 / 64, 32, 255, 16552, 128, {
        "issue": 1357, "FFMA": 1056, "FMUL": 32, "LOP32I": 24, "PRMT": 12, "BFE": 12, "SHL": 6, "SHR": 5, "ISCADD": 16,
        "IMAD": 18, "F2F": 8, "LDS.128": 64}),
    ("int4", 36): Kernel(0.5 + 1 / 64, 32, 252, 18632, 128, {
        "issue": 1514, "FFMA": 1184, "FMUL": 36, "LOP32I": 23, "PRMT": 13, "BFE": 12, "SHL": 4, "SHR": 5, "ISCADD": 18,
        "IMAD": 19, "F2F": 8, "LDS.128": 72}),
    ("int4", 48): Kernel(0.5 + 1 / 64, 32, 226, 24616, 64, {
        "issue": 2002, "FFMA": 1568, "FADD": 8, "FMUL": 16, "LOP32I": 77, "PRMT": 16, "SHL": 7, "SHR": 5, "SHF": 4,
        "ISCADD": 16, "IMAD": 26, "F2F": 8, "LDS.128": 80}),
    ("int4", 64): Kernel(0.5 + 1 / 64, 16, 146, 24616, 128, {
        "issue": 1303, "FFMA": 1040, "FADD": 4, "FMUL": 8, "LOP32I": 43, "PRMT": 8, "SHL": 5, "SHR": 3, "SHF": 2,
        "ISCADD": 9, "IMAD": 16, "F2F": 4, "LDS.128": 64}),
    ("int4", 128): Kernel(0.5 + 1 / 64, 8, 128, 32808, 256, {
        "issue": 1231, "FFMA": 1032, "FADD": 2, "FMUL": 4, "LOP32I": 26, "PRMT": 4, "SHL": 3, "SHR": 2, "SHF": 1,
        "ISCADD": 5, "IMAD": 15, "F2F": 2, "LDS.128": 64}),
}
# Layers, weights of a layer, weights of the last product (and of the embedding).
MODELS = {
    "Llama 7B": (32, 202_375_168, 131_072_000),
    "Llama 3 8B": (32, 218_103_808, 525_336_576),
    "Llama 13B": (40, 317_194_240, 163_840_000),
}


def kernel_rows() -> Iterator[dict[str, object]]:
    """What bounds each kernel, at the base clock."""
    for (weights, rows), kernel in KERNELS.items():
        clocks, unit = kernel.clocks()
        memory, work = kernel.bytes / BANDWIDTH, clocks / (SMS * CLOCKS["562 MHz"])
        yield {
            "weights": weights, "rows": rows, "instructions a weight": kernel.loop["issue"] / kernel.weights,
            "registers": kernel.registers, "shared memory": kernel.shared, "warps of 64": kernel.warps(),
            "memory, ps a weight": memory * 1e12, "arithmetic, ps a weight": work * 1e12,
            "bound by": "memory" if memory >= work else unit,
        }


def token_seconds(model: str, weights: str, dies: int, clock: float) -> float | None:
    """Of one token of one sequence; None where the weights do not fit. float32: cuBLAS, at the full bandwidth."""
    layers, of_layer, of_head = MODELS[model]
    size = 4.0 if weights == "float32" else KERNELS[weights, 1].bytes
    head_size = 4.0 if weights == "float32" else 2.0
    if (layers * of_layer * size + 2 * of_head * head_size) / dies > MEMORY:
        return None
    one = 4.0 / BANDWIDTH if weights == "float32" else KERNELS[weights, 1].seconds(clock)
    head = 4.0 / BANDWIDTH if weights == "float32" else KERNELS["float16", 1].seconds(clock)
    sums = 2 * ALL_REDUCE if dies > 1 else 0.0
    return (layers * of_layer * one + of_head * head) / dies + layers * (LAUNCH * LAUNCHES + sums)


def token_rows() -> Iterator[dict[str, object]]:
    """Tokens a second of one sequence."""
    for model in MODELS:
        for weights in ("float32", "float16", "int8", "int4"):
            row: dict[str, object] = {"model": model, "weights": weights}
            for dies in (1, 4):
                for name, clock in CLOCKS.items():
                    took = token_seconds(model, weights, dies, clock)
                    row[f"{dies} die{'s' if dies > 1 else ''}, {name}"] = "does not fit" if took is None else 1 / took
            yield row


def table(rows: list[dict[str, object]]) -> str:
    """Markdown, three digits."""
    shown = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *shown]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def text() -> str:
    """The model's tables, with what they assume."""
    return f"""## On a K80: predicted, never measured on a K80

{BANDWIDTH / 1e9:.0f} GB/s a die with ECC, {SMS} multiprocessors, one instruction a clock from each of four schedulers.
Instructions of the inner loops in the sm_37 machine code; warps that fit a multiprocessor at once.

{table(list(kernel_rows()))}
Tokens a second of one sequence: the products, {LAUNCHES} kernels a layer of {LAUNCH * 1e6:.0f} µs each, and on four
dies two sums a layer of {ALL_REDUCE * 1e6:.0f} µs each, both assumed; the last product in float16 where weights are
not float32; attention over the context left out.

{table(list(token_rows()))}"""


if __name__ == "__main__":
    print(text())
