"""GPTQ checkpoints (Frantar et al., 2022), as AutoGPTQ and GPTQModel write them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .packed import Layout
from .scheme import WHOLE_ROW, Scheme, checked, refuse

LAYOUT = Layout(
    codes="qweight", scales="scales", zeros="qzeros", group_of_column="g_idx", shape=None, input_dim=0,
    packed_input=True,
)
# What is added to a stored zero; the first format stores one less than it means.
FORMATS = {"gptq": 1, "gptq_v2": 0}


@dataclass(frozen=True)
class GptqCheckpoint:
    """What the config says.

    Attributes:
        scheme: of every layer that `rules` say nothing of.
        rules: (regular expression, scheme; None where the layer is not quantized), the first that matches a layer's
            name decides.
        only: parts of names; a layer whose name has none of them is not quantized. Empty: all are.
    """

    scheme: Scheme
    rules: tuple[tuple[str, Scheme | None], ...]
    only: tuple[str, ...]

    method = "gptq"
    layout = LAYOUT

    def scheme_of(self, name: str) -> Scheme | None:
        if self.only and not any(part in name for part in self.only):
            return None
        return next((scheme for rule, scheme in self.rules if re.match(rule, name)), self.scheme)

    def schemes(self) -> Sequence[Scheme]:
        return [self.scheme, *(scheme for _, scheme in self.rules if scheme)]


def read(config: Mapping[str, Any]) -> GptqCheckpoint:
    """The checkpoint that a quantization_config describes.

    Raises ValueError for what the port does not have.
    """
    written = str(config.get("checkpoint_format") or "gptq").lower()
    if written not in FORMATS or config.get("is_marlin_format"):
        refuse(f"gptq in the format {'marlin' if config.get('is_marlin_format') else written}")
    if config.get("lm_head"):
        refuse("gptq with a quantized lm_head")
    rules = []
    for pattern, differs in (config.get("dynamic") or {}).items():
        skipped = pattern.startswith("-:")
        scheme = None if skipped else _scheme({**config, **differs}, FORMATS[written])
        rules.append((pattern[2:] if pattern[:2] in ("-:", "+:") else pattern, scheme))
    listed = config.get("modules_in_block_to_quantize") or []
    only = tuple(part for entry in listed for part in ([entry] if isinstance(entry, str) else entry))
    return GptqCheckpoint(_scheme(config, FORMATS[written]), tuple(rules), only)


def _scheme(config: Mapping[str, Any], zero_offset: int) -> Scheme:
    group = config.get("group_size")
    act_order = bool(config.get("desc_act")) and group != WHOLE_ROW
    return checked(Scheme(config.get("bits"), group, act_order, zero_offset=zero_offset), "gptq")
