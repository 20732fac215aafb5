"""vLLM on NVIDIA Kepler.

vLLM is not changed: it finds `register` through the entry point group `vllm.platform_plugins` and `register_layers`
through `vllm.general_plugins`.
"""

from .version import __version__

__all__ = ["__version__", "register", "register_layers"]


def register() -> str | None:
    """Name of the platform class for this machine; None leaves it to vLLM's own platforms.

    Raises SystemExit for a switch that makes no sense: vLLM swallows every Exception of a plugin and would go on with
    no platform at all.
    """
    from .device import platform_class

    try:
        return platform_class()
    except ValueError as error:
        raise SystemExit(str(error)) from None


def register_layers() -> None:
    """Put the port's layers and shorter ways to start where vLLM has its own; nothing where the port does not serve."""
    from vllm.platforms import current_platform

    from .settings import KeplerSettings

    if isinstance(current_platform, KeplerSettings):
        from . import configs, moe, parallel_samples, quick_start
        from .quantization import config

        quick_start.register()
        parallel_samples.register()
        configs.register()
        moe.register()
        config.register()
