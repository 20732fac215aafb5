"""What of an engine's settings is refused before a weight is read."""

from types import SimpleNamespace

import pytest
from vllm.config import CacheConfig, CompilationConfig, DecodingConfig, ParallelConfig, SchedulerConfig
from vllm_kepler.settings import apply_defaults


def settings(**changes):
    """The settings of an engine without a model, as vLLM's own defaults have them."""
    made = SimpleNamespace(
        model_config=None, cache_config=CacheConfig(block_size=16), parallel_config=ParallelConfig(),
        scheduler_config=SchedulerConfig(), decoding_config=DecodingConfig(), speculative_config=None,
        lora_config=None, compilation_config=CompilationConfig(),
    )  # fmt: skip
    for name, value in changes.items():
        part, _, own = name.partition("__")
        if own:
            setattr(getattr(made, part), own, value)
        else:
            setattr(made, part, value)
    return made


def test_defaults_are_applied():
    made = settings()
    apply_defaults(made)
    assert made.parallel_config.disable_custom_all_reduce
    assert made.compilation_config.level == 0
    assert made.decoding_config.backend == "guidance"


@pytest.mark.parametrize(("changes", "message"), [
    ({"speculative_config": object()}, "speculative_config: found one"),
    ({"lora_config": object()}, "enable_lora: found true"),
    ({"scheduler_config__num_scheduler_steps": 8}, "num_scheduler_steps: found 8; expected 1"),
    ({"parallel_config__enable_expert_parallel": True}, "enable_expert_parallel: found true"),
    ({"cache_config__block_size": 64}, "block_size: found 64; expected one of 8, 16, 32"),
    ({"cache_config__cache_dtype": "fp8"}, "kv_cache_dtype: found fp8; expected auto"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")  # fmt: skip
def test_unserved_setting_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        apply_defaults(settings(**changes))
