"""What needs processes of its own: tensor parallelism, log lines, refusals at start."""

import pytest
from serve_once import serve
from tiny_models import assert_same
from vllm_serving.versions import v0_9_2


@pytest.mark.parametrize(
    ("family", "ranks", "environment"), [("llama", 2, {}), ("llama", 4, None), ("gemma2", 2, None)]
)
def test_tensor_parallel(tiny, family, ranks, environment):
    """Ranks over gloo give the ids of one; on torch 2.0.1 this hangs without the backfill of TCPStore."""
    model = tiny(family)
    done = serve(model, environment, tensor_parallel_size=ranks)
    assert done.status == 0, done.printed
    assert_same(model, done.ids)


def test_what_the_log_says(tiny):
    done = serve(tiny("llama"), environment={})
    assert done.status == 0, done.printed
    printed = done.printed
    assert "Platform plugin kepler is activated" in printed
    assert "the CPU stands in for the Kepler GPU" in printed
    assert not [wanted for wanted in v0_9_2.LOG_WANTED["always"] if wanted not in printed]
    assert "Using Torch SDPA attention backend for Kepler GPU (sm < 60)." in printed
    assert not [unwanted for unwanted in v0_9_2.LOG_UNWANTED if unwanted in printed]


REFUSALS = [
    ({"dtype": "bfloat16"}, "dtype: found bfloat16; expected float32 or half"),
    ({"block_size": 64}, "block_size: found 64; expected one of 8, 16, 32"),
    ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype: found fp8"),
]


@pytest.mark.parametrize(("options", "message"), REFUSALS)
def test_refused_at_start(tiny, options, message):
    """One clear line, before any weight is read."""
    done = serve(tiny("llama"), **options)
    assert done.status != 0
    assert done.ids is None
    assert message in done.printed
    assert "Loading safetensors" not in done.printed


def test_an_unknown_device_is_refused(tiny):
    done = serve(tiny("llama"), {"VLLM_KEPLER_DEVICE": "gpu"})
    assert done.status != 0
    assert "VLLM_KEPLER_DEVICE" in done.printed
