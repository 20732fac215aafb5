"""Upstream's GPU worker, with the port's model runner."""

from __future__ import annotations

from vllm.worker import worker

from .model_runner import KeplerModelRunner

# Replaced in place: upstream's workers, a draft model's too, make their runner by name.
worker.ModelRunner = KeplerModelRunner  # type: ignore[misc]


class KeplerWorker(worker.Worker):
    """Named by the platform, so that every process of the engine imports this module."""
