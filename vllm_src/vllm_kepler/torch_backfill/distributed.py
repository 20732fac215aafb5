"""torch.distributed: names, and one constructor that must not wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed
import torch.distributed.distributed_c10d
import torch.distributed.rendezvous

from .record import Backfill, absent, constant, stub_class

GROUPS = "vLLM makes and ends process groups of its own"


def is_backend_available(backend: str) -> bool:
    """Return whether this torch was built with the named backend."""
    name = backend.lower()
    available = getattr(torch.distributed, f"is_{name}_available", None)
    return bool(available()) if available else hasattr(torch.distributed.Backend, name.upper())


def store_that_does_not_wait(original: Callable[..., Any]) -> Callable[..., Any]:
    """TCPStore whose constructor does not wait for the other ranks.

    In 2.0 it waits while it holds the interpreter's lock. vLLM's executor is rank 0, and a thread of that very
    process must still hand the workers the task that makes them join: without this, TP > 1 hangs for ever. The
    barrier that follows waits for all ranks, without the lock.
    """

    def TCPStore(*args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("wait_for_workers", False)
        return original(*args, **kwargs)

    TCPStore.does_not_wait = True  # type: ignore[attr-defined]
    return TCPStore


def waits_with_the_lock(store: Any) -> bool:
    return torch.__version__.startswith("2.0.") and not hasattr(store, "does_not_wait")


def default_timeout() -> Callable[[Any], Any]:
    return lambda backend: torch.distributed.distributed_c10d.default_pg_timeout


RECORDS = [
    Backfill("torch.distributed.rendezvous.TCPStore", "vLLM's executor dead-locks on it with TP > 1", "2.1",
             store_that_does_not_wait, "replace", waits_with_the_lock),
    Backfill("torch.distributed.is_backend_available", GROUPS, "2.1", lambda: is_backend_available),
    Backfill("torch.distributed.DistNetworkError", "vLLM catches it", "2.2",
             lambda: type("DistNetworkError", (RuntimeError,), {})),
    Backfill("torch.distributed.DistError", "vLLM catches it", "2.2", lambda: type("DistError", (RuntimeError,), {})),
    Backfill("torch.distributed.distributed_c10d._get_default_timeout", GROUPS, "2.1", default_timeout),
    Backfill("torch.distributed.distributed_c10d._unregister_process_group", GROUPS, "2.2", constant(None)),
    Backfill("torch.distributed.distributed_c10d._shutdown_backend", GROUPS, "2.2", constant(None)),
    Backfill("torch.distributed._symmetric_memory", "vLLM imports it", "2.5", how="module"),
    Backfill("torch.distributed._symmetric_memory.enable_symm_mem_for_group", "vLLM imports it", "2.5",
             lambda: absent("torch.distributed._symmetric_memory.enable_symm_mem_for_group")),
    Backfill("torch.distributed.device_mesh", "transformers imports it", "2.2", how="module"),
    Backfill("torch.distributed.device_mesh.DeviceMesh", "transformers annotates with it", "2.2",
             stub_class("DeviceMesh")),
    Backfill("torch.distributed.device_mesh.init_device_mesh", "transformers imports it", "2.2",
             lambda: absent("torch.distributed.device_mesh.init_device_mesh")),
    Backfill("torch.distributed.tensor", "transformers imports it", "2.5", how="module"),
    *(
        Backfill(f"torch.distributed.tensor.{name}", "transformers annotates with it", "2.5", stub_class(name))
        for name in ("DTensor", "Placement", "Replicate", "Shard")
    ),
]
