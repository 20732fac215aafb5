"""vLLM on NVIDIA Kepler.

vLLM is not changed: it finds `register` through the entry point group `vllm.platform_plugins`.
"""

from .version import __version__

__all__ = ["__version__", "register"]


def register() -> str | None:
    """Name of the platform class for this machine; None leaves it to vLLM's own platforms."""
    from .device import platform_class

    return platform_class()
