"""What the port reads of quantized checkpoints, and how it refuses the rest.

This module imports nothing of vLLM: settings names its constants while vLLM is being imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

# The port's name among vLLM's quantization methods.
METHOD = "kepler"
BITS = (4, 8)
WHOLE_ROW = -1
GROUPS = (32, 64, 128, WHOLE_ROW)
WORKS = (
    "GPTQ with 4 or 8 bits, AWQ with 4 bits (version gemm), compressed-tensors pack-quantized with 4 or 8 bits and "
    "unquantized activations (w4a16, w8a16), a directory with one GGUF file of a Llama, Mistral, Qwen2 or Qwen3 (Q4_0, "
    "Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, F16, BF16, F32), its config.json and its tokenizer, or no quantization"
)


@dataclass(frozen=True)
class Scheme:
    """How one linear layer is quantized; value = scale · (code - zero).

    Attributes:
        bits: of a code, 4 or 8.
        group: columns that share a scale and a zero; WHOLE_ROW for all of a row.
        act_order: whether the columns of a group are scattered over the row (GPTQ's desc_act).
        has_zeros: whether the checkpoint holds zeros; without them zero is 2^(bits - 1).
        zero_offset: what is added to a zero of the checkpoint.
    """

    bits: int
    group: int
    act_order: bool = False
    has_zeros: bool = True
    zero_offset: int = 0

    @property
    def per_word(self) -> int:
        """Codes in an int32."""
        return 32 // self.bits

    def columns(self, k: int) -> int:
        """Columns of a group, of k in a row."""
        return k if self.group == WHOLE_ROW else self.group


class Checkpoint(Protocol):
    """What a quantized checkpoint's config says."""

    method: str

    def scheme_of(self, name: str) -> Scheme | None:
        """Scheme of the checkpoint's linear layer `name`; None where it is not quantized."""

    def schemes(self) -> Sequence[Scheme]:
        """Every scheme of the checkpoint."""


def refuse(found: str) -> NoReturn:
    """Raise ValueError for a checkpoint that the port cannot serve."""
    raise ValueError(f"quantization: found {found}; expected one of: {WORKS}. Choose such a checkpoint of the model.")


def checked(scheme: Scheme, method: str, bits: Sequence[int] = BITS, groups: Sequence[int] = GROUPS) -> Scheme:
    """The scheme itself.

    Raises ValueError for bits or groups that the port does not have for the method.
    """
    # True is 1 and 4.0 is 4, but no checkpoint means that.
    if type(scheme.bits) is not int or scheme.bits not in bits:
        refuse(f"{method} with {scheme.bits} bits")
    if type(scheme.group) is not int or scheme.group not in groups:
        refuse(f"{method} with group size {scheme.group} (one of {', '.join(map(str, groups))} is expected)")
    return scheme
