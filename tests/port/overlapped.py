"""The output of a step handled beside the next one, as vLLM does with CUDA graphs; upstream's CPU has none of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_kepler.cpu_worker import KeplerCpuWorker
from vllm_kepler.platform_cpu import KeplerCpuPlatform

if TYPE_CHECKING:
    from collections.abc import Callable


def overlap(replace: Callable[[Any, str, Any], None] = setattr) -> list[int]:
    """Let engines on the CPU do so; the tokens of the proposals of each step beside which it was done, so far.

    replace: what replaces an attribute of an object.
    """
    seen, prepare = [], KeplerCpuWorker._get_driver_input_and_broadcast

    def prepared(worker: KeplerCpuWorker, request: Any) -> Any:
        callback, request.async_callback = request.async_callback, None
        found = prepare(worker, request)
        if callback:
            seen.append(request.num_lookahead_slots)
            callback()
        return found

    replace(KeplerCpuWorker, "_get_driver_input_and_broadcast", prepared)
    replace(KeplerCpuPlatform, "is_async_output_supported", lambda *_: True)
    return seen
