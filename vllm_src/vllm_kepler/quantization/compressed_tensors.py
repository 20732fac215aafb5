"""Checkpoints of compressed-tensors (llm-compressor) whose weights alone are quantized: pack-quantized."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .packed import Layout
from .scheme import GROUPS, WHOLE_ROW, Scheme, checked, refuse

LAYOUT = Layout(
    codes="weight_packed", scales="weight_scale", zeros="weight_zero_point", group_of_column=None,
    shape="weight_shape", input_dim=1, packed_input=True,
)
METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
# A target that names a class of torch instead of a layer.
EVERY_LINEAR = "Linear"


@dataclass(frozen=True)
class CompressedTensorsCheckpoint:
    """What the config says.

    Attributes:
        groups: (targets, scheme): a layer has the scheme of the first group that has it as a target.
        ignored: targets that are not quantized.
    """

    groups: tuple[tuple[tuple[str, ...], Scheme], ...]
    ignored: tuple[str, ...]

    method = METHOD
    layout = LAYOUT

    def scheme_of(self, name: str) -> Scheme | None:
        if matches(name, self.ignored):
            return None
        return next((scheme for targets, scheme in self.groups if matches(name, targets)), None)

    def schemes(self) -> Sequence[Scheme]:
        return [scheme for _, scheme in self.groups]


def matches(name: str, targets: Sequence[str]) -> bool:
    """Whether a linear layer's name is among the targets: names, regular expressions after "re:", or its class."""
    return any(
        re.match(target[3:], name) if target.startswith("re:") else target in (name, EVERY_LINEAR)
        for target in targets
    )


def read(config: Mapping[str, Any]) -> CompressedTensorsCheckpoint:
    """The checkpoint that a quantization_config describes.

    Raises ValueError for what the port does not have.
    """
    groups = config.get("config_groups") or {}
    for group in (config, *groups.values()):
        found = group.get("format") or FORMAT
        if found != FORMAT:
            refuse(f"{METHOD} in the format {found}")
    sparsity = (config.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense":
        refuse(f"{METHOD} with sparse weights ({sparsity})")
    if config.get("kv_cache_scheme"):
        refuse(f"{METHOD} with a quantized KV cache")
    if not groups:
        refuse(f"{METHOD} without config_groups")
    read_groups = tuple((tuple(group["targets"]), _scheme(group)) for group in groups.values())
    return CompressedTensorsCheckpoint(read_groups, tuple(config.get("ignore") or ()))


def _scheme(group: Mapping[str, Any]) -> Scheme:
    weights = group.get("weights") or {}
    for activations in ("input_activations", "output_activations"):
        if group.get(activations):
            refuse(f"{METHOD} with quantized activations ({activations})")
    if "Embedding" in group["targets"]:
        refuse(f"{METHOD} with quantized embeddings")
    if weights.get("type", "int") != "int" or weights.get("dynamic"):
        refuse(f"{METHOD} with weights of type {weights.get('type')}")
    strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "channel")
    if strategy not in ("group", "channel"):
        refuse(f"{METHOD} with one scale a {strategy}")
    order = weights.get("actorder")
    if order in (True, "group", "dynamic"):
        refuse(f"{METHOD} with act-order of groups (actorder: {order})")
    size = weights.get("group_size") if strategy == "group" else WHOLE_ROW
    scheme = Scheme(weights.get("num_bits"), size, has_zeros=not weights.get("symmetric", True))
    return checked(scheme, METHOD, groups=GROUPS[:-1] if strategy == "group" else (WHOLE_ROW,))
