"""Configs of transformers 5, which the pinned transformers would read without their rotary embedding, and those of
DeepSeek.
"""

from __future__ import annotations

from typing import Any

from transformers import DeepseekV3Config, PretrainedConfig
from vllm.transformers_utils.config import _CONFIG_REGISTRY
from vllm.transformers_utils.configs.deepseek_vl2 import DeepseekV2Config

from .checkpoint.config import translate

# vLLM reads these of DeepSeek V3's config; transformers' class does not set them.
V3_DEFAULTS = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "moe_layer_freq": 1}


def register() -> None:
    """Translate every config.json before transformers makes a config of it: vLLM's classes and its own read it here.

    Of DeepSeek V2 vLLM has the class as a part of another model's; by its own name it would run the code beside it.
    """
    _CONFIG_REGISTRY.setdefault(DeepseekV2Config.model_type, DeepseekV2Config)
    for name, value in V3_DEFAULTS.items():
        setattr(DeepseekV3Config, name, value)
    plain = PretrainedConfig.get_config_dict.__func__
    if getattr(plain, "translates", False):
        return

    def get_config_dict(cls: type[PretrainedConfig], *args: Any, **options: Any) -> tuple[dict[str, Any], Any]:
        config, left = plain(cls, *args, **options)
        return translate(config), left

    get_config_dict.translates = True  # type: ignore[attr-defined]
    PretrainedConfig.get_config_dict = classmethod(get_config_dict)  # type: ignore[assignment]
