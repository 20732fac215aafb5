"""Definition of an operator, and the choice between its reference and its kernel."""

from __future__ import annotations

import functools
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
        reference: plain torch; writes into the arguments that the schema marks. Runs on the CPU, and kernels are
            checked against it.
        kernel: the same over the kernel library, for tensors of a GPU; None if there is none.
    """

    namespace: str
    schema: str
    reference: Callable[..., Any]
    kernel: Callable[..., Any] | None = None

    @property
    def name(self) -> str:
        return self.schema.partition("(")[0]


def by_device(reference: Callable[..., Any], kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Make an operator that runs `kernel` if its first argument is on a GPU, else `reference`.

    For operators that the port alone calls: a call through torch's dispatcher costs ten times as much.
    """

    @functools.wraps(reference)
    def operator(first: torch.Tensor, *others: Any) -> Any:
        return (kernel if first.is_cuda else reference)(first, *others)

    return operator
