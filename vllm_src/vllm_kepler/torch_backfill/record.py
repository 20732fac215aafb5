"""Definition of a backfill, and how it is applied."""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Backfill:
    """One name that torch 2.0.1 lacks, or one whose behavior there does not serve vLLM.

    Attributes:
        name: dotted name, such as "torch.library.infer_schema".
        why: who needs it.
        since: the first torch release that has it.
        make: how "add": returns the value to put under the name. "replace": takes the present value, returns the
            new one. "module": returns nothing; the module is made empty.
        how: "add" and "module" do nothing if the name exists; "replace" does nothing unless `lacking` returns True.
        lacking: for "replace": returns True if the present value lacks what vLLM needs.
    """

    name: str
    why: str
    since: str
    make: Callable[..., Any] = lambda: None
    how: Literal["add", "module", "replace"] = "add"
    lacking: Callable[[Any], bool] | None = None


def find(name: str) -> Any:
    """Return the object under a dotted name: a loaded module, else an attribute, else a module to import.

    `torch.distributed.rendezvous` is both a module and a function.

    Raises AttributeError if there is none.
    """
    parts = name.split(".")
    found: Any = importlib.import_module(parts[0])
    for end, part in enumerate(parts[1:], start=2):
        path = ".".join(parts[:end])
        if path in sys.modules:
            found = sys.modules[path]
        elif hasattr(found, part):
            found = getattr(found, part)
        else:
            try:
                found = importlib.import_module(path)
            except ImportError as error:
                raise AttributeError(name) from error
    return found


def is_there(name: str) -> bool:
    try:
        find(name)
    except AttributeError:
        return False
    return True


def put(name: str, value: Any) -> None:
    """Set the attribute under a dotted name, also on a type that C code defines."""
    parent_name, _, leaf = name.rpartition(".")
    parent = find(parent_name)
    try:
        setattr(parent, leaf, value)
    except TypeError:
        # A static type refuses setattr; its dictionary does not.
        gc.get_referents(parent.__dict__)[0][leaf] = value
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(parent))


def apply(backfill: Backfill) -> bool:
    """Apply one backfill. Returns whether anything was changed."""
    if backfill.how == "replace":
        present = find(backfill.name)
        if backfill.lacking is None or not backfill.lacking(present):
            return False
        put(backfill.name, backfill.make(present))
        return True
    if is_there(backfill.name):
        return False
    if backfill.how == "module":
        module = types.ModuleType(backfill.name, f"Stands for a module that torch has since {backfill.since}.")
        module.__path__ = []
        sys.modules[backfill.name] = module
        put(backfill.name, module)
    else:
        put(backfill.name, backfill.make())
    return True


def absent(name: str) -> Callable[..., Any]:
    """Make a function that raises NotImplementedError, for a name that is imported and never called."""

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{name}: this torch does not have it, and the Kepler port does not use it")

    return stand_in


def constant(value: Any) -> Callable[[], Callable[..., Any]]:
    """Maker of a function that takes anything and returns `value`."""
    return lambda: lambda *args, **kwargs: value


def stub_class(name: str) -> Callable[[], type]:
    """Maker of an empty class: for what is derived from or annotated with, and never made."""
    return lambda: type(name, (), {})


def passthrough(function: Any = None, *args: Any, **kwargs: Any) -> Any:
    """A decorator that changes nothing, used with or without arguments."""
    return (lambda inner: inner) if function is None else function
