"""Configs of transformers 5, of which the pinned transformers ignores the rotary embedding."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from .checkpoint.config import translate


def register() -> None:
    """Translate every config.json before transformers or vLLM make a config of it."""
    plain = PretrainedConfig.get_config_dict.__func__
    if getattr(plain, "translates", False):
        return

    def get_config_dict(cls: type[PretrainedConfig], *args: Any, **options: Any) -> tuple[dict[str, Any], Any]:
        config, left = plain(cls, *args, **options)
        return translate(config), left

    get_config_dict.translates = True  # type: ignore[attr-defined]
    PretrainedConfig.get_config_dict = classmethod(get_config_dict)  # type: ignore[assignment]
