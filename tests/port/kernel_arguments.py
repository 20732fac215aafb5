"""Operators of the CPU that give a kernel's wrapper their arguments, too: a library takes them and does nothing.

A reference takes what a kernel refuses, such as strides that no row has. Importing this changes the operators, so it
comes before all else of the port.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch
from vllm_kepler.ops import library, operator, registry

# Of a K80's die.
PROCESSORS = 13
# Wrappers that are at work: a kernel's may call another operator.
at_work: list[Callable[..., Any]] = []


class Launchers(library.KernelLibrary):
    """Each converts its arguments as the library's would."""

    def __init__(self) -> None:
        for name, letters in {**library.LAUNCHERS, "moe_capacity": "iii"}.items():
            types = [library._LETTERS[letter] for letter in letters]
            answer = 64 if name == "moe_capacity" else 0
            setattr(self, name, ctypes.CFUNCTYPE(ctypes.c_int, *types)(lambda *arguments, answer=answer: answer))


launchers = Launchers()


def given_to_both(reference: Callable[..., Any], kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The reference; before it the kernel's wrapper takes the same arguments."""

    @functools.wraps(reference)
    def called(first: torch.Tensor, *others: Any) -> Any:
        at_work.append(kernel)
        try:
            kernel(first, *others)
        finally:
            at_work.pop()
        return reference(first, *others)

    return called


def take_arguments() -> None:
    """Let the operators do so; those of the other devices that they ask for, too."""
    operator.by_device = given_to_both  # type: ignore[assignment]
    from vllm_kepler.ops import activation, attention, cache, linear, moe, norm, rotary

    for family in (activation, attention, cache, linear, moe, norm, rotary):
        family.library = lambda: launchers if at_work else library.library()  # type: ignore[attr-defined]
    torch._C._cuda_getCurrentRawStream = lambda device: 0  # type: ignore[attr-defined]
    asked = torch.cuda.get_device_properties

    def properties(device: Any) -> Any:
        return type("Gpu", (), {"multi_processor_count": PROCESSORS}) if at_work else asked(device)

    torch.cuda.get_device_properties = properties
    for known in registry.OPERATORS:
        if known.kernel is not None:
            object.__setattr__(known, "reference", given_to_both(known.reference, known.kernel))


take_arguments()
