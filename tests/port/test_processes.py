"""What needs processes of its own: tensor parallelism, log lines, refusals at start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CONTEXT, NEW_TOKENS, assert_same

SCRIPT = Path(__file__).with_name("serve_once.py")


def serve(model, environment=None, **options):
    """Run one engine to its end: (exit status, what it printed, ids or None)."""
    request = {"model": str(model.directory), "prompts": model.prompts, "tokens": NEW_TOKENS,
               "options": {"max_model_len": CONTEXT, "max_num_seqs": 16, **options}}
    done = subprocess.run(
        [sys.executable, SCRIPT], input=json.dumps(request), text=True, env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("[[")]
    return done.returncode, done.stdout, json.loads(lines[-1]) if lines else None


@pytest.mark.parametrize(("family", "ranks"), [("llama", 2), ("llama", 4), ("gemma2", 2)])
def test_tensor_parallel(tiny, family, ranks):
    """Ranks over gloo give the ids of one; on torch 2.0.1 this hangs without the backfill of TCPStore."""
    model = tiny(family)
    status, printed, ids = serve(model, tensor_parallel_size=ranks)
    assert status == 0, printed
    assert_same(model, ids)


def test_what_the_log_says(tiny):
    status, printed, _ = serve(tiny("llama"))
    assert status == 0, printed
    assert "Platform plugin kepler is activated" in printed
    assert "the CPU stands in for the Kepler GPU" in printed
    assert "Initializing a V0 LLM engine" in printed
    assert "Using Torch SDPA attention backend for Kepler GPU (sm < 60)." in printed
    for unwanted in ("FlashAttention", "xformers", "Triton", "Traceback"):
        assert unwanted not in printed


REFUSALS = [
    ({"dtype": "float16"}, "dtype: found float16; expected float32"),
    ({"dtype": "bfloat16"}, "dtype: found bfloat16; expected float32"),
    ({"block_size": 64}, "block_size: found 64; expected one of 8, 16, 32"),
    ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype: found fp8"),
]


@pytest.mark.parametrize(("options", "message"), REFUSALS)
def test_refused_at_start(tiny, options, message):
    """One clear line, before any weight is read."""
    status, printed, ids = serve(tiny("llama"), **options)
    assert status != 0
    assert ids is None
    assert message in printed
    assert "Loading safetensors" not in printed


def test_an_unknown_device_is_refused(tiny):
    status, printed, _ = serve(tiny("llama"), {"VLLM_KEPLER_DEVICE": "gpu"})
    assert status != 0
    assert "VLLM_KEPLER_DEVICE" in printed
