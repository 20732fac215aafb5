"""The compile stack. Dynamo 2.0 cannot trace vLLM and Triton needs sm_70: everything runs eagerly, so these names
can be imported and decorate, but compile nothing. Imports of vLLM's compiled mode are left out: Inductor's modules
would take a second of every process's start."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch._dynamo.config

from .record import Backfill, constant, passthrough, stub_class

DECORATES = "vLLM and transformers decorate with it"
IMPORTED = "vLLM imports it and calls it in compiled mode alone"


@contextlib.contextmanager
def null_context(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield


def identity_compile(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def compile(model: Any = None, **kwargs: Any) -> Any:
        return passthrough(model)

    compile.is_identity = True  # type: ignore[attr-defined]
    return compile


def compiles_with_dynamo_of_2_0(compile: Callable[..., Any]) -> bool:
    return torch.__version__.startswith("2.0.") and not hasattr(compile, "is_identity")


def config_entry(value: Any) -> Callable[[], Any]:
    """Maker of an entry of torch._dynamo.config, which refuses names that it does not know."""

    def make() -> Any:
        allowed = getattr(torch._dynamo.config, "_allowed_keys", None)
        if allowed is not None:
            allowed.add("accumulated_cache_size_limit")
        return value

    return make


def loaded_inductor_config() -> Any:
    from torch._inductor import config

    return config


RECORDS = [
    Backfill("torch.compile", "vLLM compiles small functions at import", "2.1", identity_compile, "replace",
             compiles_with_dynamo_of_2_0),
    Backfill("torch._inductor.config", "vLLM sets an option of it without importing it", "2.1",
             loaded_inductor_config),
    Backfill("torch.compiler", DECORATES, "2.1", how="module"),
    *(
        Backfill(f"torch.compiler.{name}", "asked in eager code", "2.1", constant(False))
        for name in ("is_compiling", "is_dynamo_compiling", "is_exporting")
    ),
    *(
        Backfill(f"torch.compiler.{name}", DECORATES, "2.1", lambda: passthrough)
        for name in ("disable", "allow_in_graph", "assume_constant_result", "wrap_numpy")
    ),
    *(
        Backfill(f"torch.compiler.{name}", "called around compiled code", "2.1", constant(None))
        for name in ("reset", "cudagraph_mark_step_begin")
    ),
    Backfill("torch.compiler.list_backends", IMPORTED, "2.1", constant([])),
    Backfill("torch.compiler.set_stance", IMPORTED, "2.6", lambda: null_context),
    Backfill("torch.compiler.substitute_in_graph", DECORATES, "2.5", lambda: lambda *args, **kwargs: passthrough),
    *(
        Backfill(f"torch._dynamo.{name}", "vLLM marks dynamic shapes of its inputs", "2.1", constant(None))
        for name in ("mark_dynamic", "mark_static", "mark_static_address", "maybe_mark_dynamic")
    ),
    Backfill("torch._dynamo.config.accumulated_cache_size_limit", "vLLM raises it at import", "2.1", config_entry(64)),
    Backfill("torch._inductor.custom_graph_pass", IMPORTED, "2.6", how="module"),
    Backfill("torch._inductor.custom_graph_pass.CustomGraphPass", "vLLM derives from it at import", "2.6",
             stub_class("CustomGraphPass")),
]
