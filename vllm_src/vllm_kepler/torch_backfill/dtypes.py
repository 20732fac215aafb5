"""Stand-ins for data types that torch 2.0.1 does not have; they equal no real dtype."""

from __future__ import annotations

import types
from typing import Any

import torch

from .record import Backfill

# name -> (bytes, largest value, eps); the finite ranges of the OCP 8-bit formats.
FLOATS = {
    "float8_e4m3fn": (1, 448.0, 2.0**-3),
    "float8_e4m3fnuz": (1, 240.0, 2.0**-3),
    "float8_e5m2": (1, 57344.0, 2.0**-2),
    "float8_e5m2fnuz": (1, 57344.0, 2.0**-2),
    "float8_e8m0fnu": (1, 2.0**127, 1.0),
}
UNSIGNED = {"uint16": 2, "uint32": 4, "uint64": 8}
SINCE = {"float8_e4m3fn": "2.1", "float8_e5m2": "2.1", "float8_e4m3fnuz": "2.2", "float8_e5m2fnuz": "2.2",
         "float8_e8m0fnu": "2.7"}


class AbsentDtype:
    """Stands for a dtype that this torch lacks. It equals itself alone, so no tensor ever has it."""

    is_complex = False

    def __init__(self, name: str, itemsize: int, is_floating_point: bool) -> None:
        self.name = name
        self.itemsize = itemsize
        self.is_floating_point = is_floating_point
        self.is_signed = is_floating_point

    def __repr__(self) -> str:
        return f"torch.{self.name}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled by name: one object a process, so that identity survives the way to a worker.
        return absent_dtype, (self.name,)


def absent_dtype(name: str) -> Any:
    """Return the object under torch.`name` in this process."""
    return getattr(torch, name)


def info_of(dtype: AbsentDtype) -> types.SimpleNamespace:
    """Return the information of torch.finfo or torch.iinfo about `dtype`."""
    bits = 8 * dtype.itemsize
    if dtype.is_floating_point:
        _, largest, eps = FLOATS[dtype.name]
        return types.SimpleNamespace(dtype=dtype.name, bits=bits, max=largest, min=-largest, eps=eps)
    return types.SimpleNamespace(dtype=dtype.name, bits=bits, max=2**bits - 1, min=0)


def knows_absent(info: Any) -> bool:
    try:
        info(torch.float8_e4m3fn if info.__name__ == "finfo" else torch.uint16)
    except TypeError:
        return False
    return True


def info_with_absent(info: Any) -> Any:
    """`info` (torch.finfo or torch.iinfo) that takes AbsentDtype too and stays usable with isinstance."""

    class Meta(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, (info, types.SimpleNamespace))

    class Info(metaclass=Meta):
        def __new__(cls, dtype: Any = None) -> Any:
            if isinstance(dtype, AbsentDtype):
                return info_of(dtype)
            return info() if dtype is None else info(dtype)

    Info.__name__ = info.__name__
    return Info


def itemsize_property() -> property:
    sizes: dict[torch.dtype, int] = {}

    def itemsize(dtype: torch.dtype) -> int:
        if dtype not in sizes:
            sizes[dtype] = torch.empty(0, dtype=dtype).element_size()
        return sizes[dtype]

    return property(itemsize)


RECORDS = [
    *(
        Backfill(f"torch.{name}", "vLLM names it in tables of quantized types", SINCE[name],
                 lambda name=name: AbsentDtype(name, FLOATS[name][0], True))
        for name in FLOATS
    ),
    *(
        Backfill(f"torch.{name}", "vLLM and safetensors name it in tables of types", "2.3",
                 lambda name=name: AbsentDtype(name, UNSIGNED[name], False))
        for name in UNSIGNED
    ),
    Backfill("torch.dtype.itemsize", "vLLM sizes its KV cache by it", "2.1", itemsize_property),
    Backfill("torch.finfo", "vLLM asks for the range of float8 types at import", "2.1", info_with_absent, "replace",
             lambda info: not knows_absent(info)),
    Backfill("torch.iinfo", "the counterpart of torch.finfo", "2.3", info_with_absent, "replace",
             lambda info: not knows_absent(info)),
]
