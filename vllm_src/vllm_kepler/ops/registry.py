"""Registration of the operators with torch."""

from __future__ import annotations

import sys
import types

import torch

from ..errors import StartError
from . import activation, graphs, norm, queries, rotary

# Extension modules that upstream imports for the sake of their operators.
EXTENSIONS = ("vllm._C", "vllm._moe_C")
# The operators of the port that upstream calls.
OPERATORS = [operator for family in (norm, activation, rotary, graphs, queries) for operator in family.OPERATORS]
# Keeps the registrations alive: they end with the object.
_libraries: dict[str, torch.library.Library] = {}


def install() -> None:
    """Register the operators and stand in for the extension modules; a second call does nothing.

    Raises StartError if upstream's own compiled modules are loaded: their operators have the same names.
    """
    if _libraries:
        return
    for extension in EXTENSIONS:
        present = sys.modules.get(extension)
        if present is not None and getattr(present, "__file__", None):
            raise StartError(
                f"{extension}: found upstream's compiled module; expected a vLLM that was built with "
                "VLLM_TARGET_DEVICE=empty. Install that one."
            )
        sys.modules[extension] = types.ModuleType(extension, "Its operators come from vllm_kepler.ops.")
    for operator in OPERATORS:
        library = _libraries.setdefault(operator.namespace, torch.library.Library(operator.namespace, "FRAGMENT"))
        library.define(operator.schema)
        if operator.kernel is None:
            library.impl(operator.name, operator.reference, "CompositeExplicitAutograd")
        else:
            library.impl(operator.name, operator.reference, "CPU")
            library.impl(operator.name, operator.kernel, "CUDA")
