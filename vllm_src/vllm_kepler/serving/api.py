"""Stands in front of vLLM's API, which loads this module by `--middleware vllm_kepler.serving.api.Door`."""

from uvicorn.config import HTTP_PROTOCOLS

from .connections import Connection
from .door import Door

__all__ = ["Door"]

# vLLM leaves the choice to uvicorn, which makes it after it has loaded the middleware.
HTTP_PROTOCOLS["auto"] = f"{Connection.__module__}:{Connection.__qualname__}"
