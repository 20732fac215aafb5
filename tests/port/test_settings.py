"""What of an engine's settings is refused before a weight is read."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from vllm.config import CacheConfig, CompilationConfig, DecodingConfig, LoRAConfig, ParallelConfig, SchedulerConfig
from vllm_kepler.settings import apply_adapters, apply_defaults


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


@pytest.mark.parametrize(("architecture", "refused"), [("BloomForCausalLM", True), ("LlamaForCausalLM", False)])
def test_adapters_are_refused_where_vllm_has_none(architecture, refused):
    model = SimpleNamespace(hf_config=SimpleNamespace(architectures=[architecture]), quantization=None,
                            model_impl="auto", task="generate")
    asked = SimpleNamespace(model_config=model, lora_config=LoRAConfig())
    expected = pytest.raises(ValueError, match=f"{architecture}, which vLLM has no") if refused else nullcontext()
    with expected:
        apply_adapters(asked, graphs=False)


def test_graphs_and_adapters_exclude_each_other():
    with pytest.raises(ValueError, match="VLLM_KEPLER_CUDA_GRAPHS: found 1 and enable_lora"):
        apply_defaults(settings(lora_config=LoRAConfig()), graphs=True)


def test_adapters_are_float32_without_tokens_of_their_own():
    made = settings(lora_config=LoRAConfig(lora_dtype="float16"))
    apply_defaults(made)
    assert (made.lora_config.lora_dtype, made.lora_config.lora_extra_vocab_size) == (torch.float32, 0)


def test_defaults_are_applied():
    made = settings()
    apply_defaults(made)
    assert made.parallel_config.disable_custom_all_reduce
    assert made.compilation_config.level == 0
    assert made.decoding_config.backend == "guidance"


@pytest.mark.parametrize(("changes", "message"), [
    ({"lora_config": LoRAConfig(fully_sharded_loras=True)}, "fully_sharded_loras: found True"),
    ({"lora_config": LoRAConfig(bias_enabled=True)}, "bias_enabled: found True"),
    ({"scheduler_config__num_scheduler_steps": 8}, "num_scheduler_steps: found 8; expected 1"),
    ({"parallel_config__enable_expert_parallel": True}, "enable_expert_parallel: found true"),
    ({"cache_config__block_size": 64}, "block_size: found 64; expected one of 8, 16, 32"),
    ({"cache_config__cache_dtype": "fp8"}, "kv_cache_dtype: found fp8; expected auto"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")  # fmt: skip
def test_unserved_setting_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        apply_defaults(settings(**changes))
