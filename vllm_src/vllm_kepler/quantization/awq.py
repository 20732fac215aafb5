"""AWQ checkpoints (Lin et al., 2023), as AutoAWQ's version "gemm" writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .packed import Layout
from .scheme import GROUPS, Scheme, checked, refuse

LAYOUT = Layout(
    codes="qweight", scales="scales", zeros="qzeros", group_of_column=None, shape=None, input_dim=0,
    packed_input=False, order=(0, 2, 4, 6, 1, 3, 5, 7),
)


@dataclass(frozen=True)
class AwqCheckpoint:
    """What the config says.

    Attributes:
        scheme: of every quantized layer.
        skipped: parts of names; a layer whose name has one of them is not quantized.
    """

    scheme: Scheme
    skipped: tuple[str, ...]

    method = "awq"
    layout = LAYOUT

    def scheme_of(self, name: str) -> Scheme | None:
        # "gate" is an expert layer's router, not a gate_proj.
        is_skipped = any(re.search(rf"{re.escape(part)}(?!_proj)", name) for part in self.skipped)
        return None if is_skipped else self.scheme

    def schemes(self) -> Sequence[Scheme]:
        return [self.scheme]


def read(config: Mapping[str, Any]) -> AwqCheckpoint:
    """The checkpoint that a quantization_config describes.

    Raises ValueError for what the port does not have.
    """
    version = str(config.get("version") or "gemm").lower()
    if version != "gemm":
        refuse(f"awq of version {version}")
    bits, group = (
        config[other] if config.get(other) is not None else config.get(name)
        for name, other in (("bits", "w_bit"), ("group_size", "q_group_size"))
    )
    scheme = checked(Scheme(bits, group), "awq", bits=(4,), groups=GROUPS[:-1])
    return AwqCheckpoint(scheme, tuple(config.get("modules_to_not_convert") or ()))
