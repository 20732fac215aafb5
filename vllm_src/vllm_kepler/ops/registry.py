"""Registration of operators with torch."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Operator:
    """One operator of upstream's extension modules.

    Attributes:
        namespace: "_C", "_C_cache_ops" or "_C_utils".
        schema: as upstream declares it: callers pass arguments by position.
        reference: plain torch, on any device; writes into the arguments that the schema marks.
    """

    namespace: str
    schema: str
    reference: Callable[..., Any]

    @property
    def name(self) -> str:
        return self.schema.partition("(")[0]


# Extension modules that upstream imports for the sake of their operators.
EXTENSIONS = ("vllm._C", "vllm._moe_C")
# Keeps the registrations alive: they end with the object.
_libraries: dict[str, torch.library.Library] = {}


def operators() -> list[Operator]:
    """Every operator of the port."""
    from . import activation, norm, rotary, threads

    return [operator for family in (norm, activation, rotary, threads) for operator in family.OPERATORS]


def install() -> None:
    """Register the operators and stand in for the extension modules; a second call does nothing.

    Raises RuntimeError where upstream's own compiled modules are there: two sets of operators cannot be.
    """
    if _libraries:
        return
    for extension in EXTENSIONS:
        present = sys.modules.get(extension)
        if present is not None and getattr(present, "__file__", None):
            raise RuntimeError(
                f"{extension}: found upstream's compiled module; expected a vLLM that was built with "
                "VLLM_TARGET_DEVICE=empty. Install that one."
            )
        sys.modules[extension] = types.ModuleType(extension, "Its operators come from vllm_kepler.ops.")
    for operator in operators():
        library = _libraries.setdefault(operator.namespace, torch.library.Library(operator.namespace, "FRAGMENT"))
        library.define(operator.schema)
        library.impl(operator.name, operator.reference, "CompositeExplicitAutograd")
