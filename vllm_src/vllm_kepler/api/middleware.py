"""Middleware in front of vLLM's API, which loads this module by `--middleware`."""

from typing import Any

from uvicorn.config import HTTP_PROTOCOLS
from vllm_serving.admission import AdmissionMiddleware
from vllm_serving.limits import Limits

from .connections import Connection
from .requests import guard

# vLLM leaves the choice to uvicorn, which makes it after it has loaded the middleware.
HTTP_PROTOCOLS["auto"] = f"{Connection.__module__}:{Connection.__qualname__}"


class KeplerMiddleware(AdmissionMiddleware):
    """Admission that knows the model, and checks parsed requests too."""

    async def learn(self, state: Any) -> Limits:
        return await guard(state, self.limits)
