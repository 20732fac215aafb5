"""The engine under test, and the tiny models that it serves."""

from __future__ import annotations

import functools
import gc
import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

# Before vLLM is imported: the CPU stands in for the Kepler GPU. An empty value with VLLM_KEPLER_VERIFY=1 takes a GPU.
os.environ.setdefault("VLLM_KEPLER_DEVICE", "cpu")
os.environ["VLLM_NO_USAGE_STATS"] = "1"
# vLLM leaves the sockets of its processes behind.
os.environ["VLLM_RPC_BASE_PATH"] = SOCKETS = tempfile.mkdtemp(prefix="vllm-")

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit"))
from forked import freeze

if os.environ["VLLM_KEPLER_DEVICE"] == "cpu":
    import kernel_arguments  # noqa: F401
from serve_once import IMPORTED
from tiny_models import CONTEXT, NEW_TOKENS, TinyModel, seed, tiny  # noqa: F401


def pytest_unconfigure() -> None:
    shutil.rmtree(SOCKETS, ignore_errors=True)


@functools.cache
def import_engine() -> None:
    """Import what engines share, and leave it out of collections: the four that end an engine took most of a test."""
    for module in IMPORTED:
        importlib.import_module(module)
    freeze()


@pytest.fixture
def engine():
    """Function that makes an engine; the last one is gone before the next, and at the end of the test."""
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    import_engine()
    made = []

    def end() -> None:
        made.clear()
        gc.collect()
        cleanup_dist_env_and_memory()

    def start(model: TinyModel, **options: Any) -> Any:
        end()
        made.append(LLM(str(model.directory), skip_tokenizer_init=True, max_model_len=CONTEXT, max_num_seqs=16,
                        gpu_memory_utilization=0.05, swap_space=1,
                        disable_log_stats=False, **options))
        return made[0]

    yield start
    end()


def generate(llm: Any, prompts: list[list[int]], tokens: int = NEW_TOKENS) -> list[list[int]]:
    """Greedy token ids of one batch."""
    from vllm import SamplingParams, TokensPrompt

    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    done = llm.generate([TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], sampling, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in done]
