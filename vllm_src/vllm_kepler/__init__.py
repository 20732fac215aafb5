"""vLLM on NVIDIA Kepler.

vLLM is not changed: it finds `register` through the entry point group `vllm.platform_plugins` and `register_layers`
through `vllm.general_plugins`.
"""

from .version import __version__

__all__ = ["__version__", "register", "register_layers"]


def register() -> str | None:
    """Return the platform class's name for this machine, or None to leave it to vLLM's own platforms.

    Raises SystemExit for a setting that is refused: vLLM swallows every Exception of a plugin, and would go on without
    a platform.
    """
    from .device import platform_class

    try:
        return platform_class()
    except ValueError as error:
        raise SystemExit(str(error)) from None


def register_layers() -> None:
    """Replace vLLM's layers and slow steps of a start by the port's, if the port serves."""
    from vllm.platforms import current_platform

    from .settings import KeplerSettings

    if isinstance(current_platform, KeplerSettings):
        from . import configs, guided, layers, models, moe, parallel_samples, quick_start, tokenizers
        from .quantization import config
        from .speculation import config as speculation

        quick_start.register()
        parallel_samples.register()
        configs.register()
        tokenizers.register()
        guided.register()
        models.register()
        moe.register()
        layers.register()
        config.register()
        speculation.register()
