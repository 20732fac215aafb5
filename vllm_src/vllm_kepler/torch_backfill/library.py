"""torch.library: registering operators from Python."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.library

from .record import Backfill, passthrough

SCALARS = {
    torch.Tensor: "Tensor",
    int: "SymInt",
    float: "float",
    bool: "bool",
    str: "str",
    complex: "complex",
    torch.dtype: "ScalarType",
    torch.device: "Device",
    torch.types.Number: "Scalar",
}


def schema_type(annotation: Any) -> str:
    """Return the schema type of a parameter's annotation, such as "Tensor?" for Optional[Tensor].

    Raises ValueError for an annotation that no schema can express.
    """
    if annotation in SCALARS:
        return SCALARS[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        if len(inner) == 1 and len(arguments) == 2:
            return schema_type(inner[0]) + "?"
    elif origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        elements = {argument for argument in arguments if argument is not Ellipsis}
        if len(elements) == 1:
            return schema_type(elements.pop()) + "[]"
    raise ValueError(f"infer_schema: the type {annotation!r} has no place in an operator's schema")


def schema_default(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return str(value).removeprefix("torch.")


def infer_schema(
    prototype_function: Callable[..., Any],
    /,
    *,
    mutates_args: str | Sequence[str] = (),
    op_name: str | None = None,
) -> str:
    """Return the operator schema of an annotated function, in the form that torch.library.define takes."""
    signature = inspect.signature(prototype_function)
    hints = typing.get_type_hints(prototype_function)
    parameters, aliases, keyword_only = [], 0, False
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            parameters.append("*")
            keyword_only = True
        kind = schema_type(hints[name])
        if kind.startswith("Tensor") and (mutates_args == "unknown" or name in mutates_args):
            kind = f"Tensor(a{aliases}!)" + kind[len("Tensor"):]
            aliases += 1
        default = "" if parameter.default is parameter.empty else f"={schema_default(parameter.default)}"
        parameters.append(f"{kind} {name}{default}")
    returned = hints.get("return", type(None))
    if returned is type(None):
        result = "()"
    elif typing.get_origin(returned) is tuple:
        result = "(" + ", ".join(schema_type(part) for part in typing.get_args(returned)) + ")"
    else:
        result = schema_type(returned)
    return f"{op_name or ''}({', '.join(parameters)}) -> {result}"


def library_init(original: Callable[..., None]) -> Callable[..., None]:
    """Library.__init__ that takes the kind FRAGMENT, which torch 2.0's dispatcher knows and its Python refuses."""

    def __init__(self: Any, ns: str, kind: str, dispatch_key: str = "") -> None:
        if kind != "FRAGMENT":
            original(self, ns, kind, dispatch_key)
            return
        # Not inspect.stack(): it reads the source around each frame, a quarter of a second a call.
        caller = sys._getframe(1)
        self.m = torch._C._dispatch_library(kind, ns, dispatch_key, caller.f_code.co_filename, caller.f_lineno)
        self.ns, self.kind, self.dispatch_key, self._op_impls = ns, kind, dispatch_key, set()

    __init__.takes_fragment = True  # type: ignore[attr-defined]
    return __init__


def library_define(original: Callable[..., str]) -> Callable[..., str]:
    """Library.define that takes `tags` and ignores them: they are for the compiler, which never runs here."""

    def define(self: Any, schema: str, alias_analysis: str = "", *, tags: Any = ()) -> str:
        return original(self, schema, alias_analysis)

    return define


def takes_no_fragment(init: Callable[..., None]) -> bool:
    return not getattr(init, "takes_fragment", False) and "FRAGMENT" not in inspect.getsource(torch.library)


def takes_no_tags(define: Callable[..., str]) -> bool:
    return "tags" not in inspect.signature(define).parameters


def make_custom_op() -> Callable[..., Any]:
    libraries: dict[str, torch.library.Library] = {}

    def custom_op(
        name: str,
        fn: Callable[..., Any] | None = None,
        /,
        *,
        mutates_args: str | Sequence[str] = (),
        device_types: Any = None,
        schema: str | None = None,
    ) -> Any:
        """Define the operator `namespace::name` for every device; fake and gradient kernels are not kept."""

        def decorate(function: Any) -> Any:
            namespace, operator = name.split("::")
            if namespace not in libraries:
                libraries[namespace] = torch.library.Library(namespace, "FRAGMENT")
            library = libraries[namespace]
            library.define(operator + (schema or infer_schema(function, mutates_args=mutates_args)))
            library.impl(operator, function, "CompositeExplicitAutograd")
            function.register_fake = passthrough
            function.register_kernel = lambda *args, **kwargs: passthrough
            function.register_autograd = lambda *args, **kwargs: None
            return function

        return decorate if fn is None else decorate(fn)

    return custom_op


def register_fake(op: Any, func: Any = None, /, *, lib: Any = None, _stacklevel: int = 1) -> Any:
    """Ignore a fake kernel: fake tensors are for the compiler, which never runs here."""
    return passthrough(func)


EAGER = "operators are registered with fake kernels for the compiler"
RECORDS = [
    Backfill("torch.library.Library.__init__", "vLLM adds operators to namespaces that exist", "2.1", library_init,
             "replace", takes_no_fragment),
    Backfill("torch.library.Library.define", "vLLM defines operators with tags", "2.3", library_define, "replace",
             takes_no_tags),
    Backfill("torch.library.Library._register_fake", EAGER, "2.4", lambda: lambda self, *args, **kwargs: None),
    Backfill("torch.library.register_fake", EAGER, "2.4", lambda: register_fake),
    Backfill("torch.library.impl_abstract", EAGER, "2.2", lambda: register_fake),
    Backfill("torch.library.infer_schema", "vLLM registers its operators by their annotations", "2.5",
             lambda: infer_schema),
    Backfill("torch.library.custom_op", "operators of vLLM's layers", "2.4", make_custom_op),
    *(
        Backfill(f"torch.Tag.{tag}", "vLLM defines operators with this tag", since,
                 lambda: torch.Tag.nondeterministic_seeded)
        for tag, since in (("needs_fixed_stride_order", "2.1"), ("flexible_layout", "2.6"),
                           ("pt2_compliant_tag", "2.2"))
    ),
]
