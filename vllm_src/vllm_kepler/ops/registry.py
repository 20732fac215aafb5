"""Registration of operators with torch, and the choice between reference and kernel."""

from __future__ import annotations

import functools
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
        namespace: "_C" or "_C_utils".
        schema: as upstream declares it: callers pass arguments by position.
        reference: plain torch; writes into the arguments that the schema marks. What the CPU runs, and what the
            kernel is checked against.
        kernel: the same over the kernel library, for tensors of a GPU; None where it takes none.
    """

    namespace: str
    schema: str
    reference: Callable[..., Any]
    kernel: Callable[..., Any] | None = None

    @property
    def name(self) -> str:
        return self.schema.partition("(")[0]


def by_device(reference: Callable[..., Any], kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The operator that runs `kernel` where its first argument lies on a GPU, else `reference`.

    For operators that the port alone calls: a call through torch's dispatcher costs ten times as much.
    """

    @functools.wraps(reference)
    def operator(first: torch.Tensor, *others: Any) -> Any:
        return (kernel if first.is_cuda else reference)(first, *others)

    return operator


# Extension modules that upstream imports for the sake of their operators.
EXTENSIONS = ("vllm._C", "vllm._moe_C")
# Keeps the registrations alive: they end with the object.
_libraries: dict[str, torch.library.Library] = {}


def operators() -> list[Operator]:
    """Every operator of the port that upstream calls."""
    from . import activation, graphs, norm, queries, rotary

    return [operator for family in (norm, activation, rotary, graphs, queries) for operator in family.OPERATORS]


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
        if operator.kernel is None:
            library.impl(operator.name, operator.reference, "CompositeExplicitAutograd")
        else:
            library.impl(operator.name, operator.reference, "CPU")
            library.impl(operator.name, operator.kernel, "CUDA")
