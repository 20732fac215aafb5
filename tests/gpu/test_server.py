"""A server as its unit starts it: supervisor, admission, and an engine whose ranks are forks, on GPUs over NCCL."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / part) for part in ("unit", "unit/serving", "models")]
from supervised import Unit  # noqa: E402
from test_licence_llama import MODEL, PROMPT_WORDS, TOKENS, WORDS, sentence_starts, what_follows  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

START = 300


@pytest.fixture(params=[1, 2, 4], ids=["tp1", "tp2", "tp4"])
def server(request, tmp_path):
    if torch.cuda.device_count() < request.param:
        pytest.skip(f"needs {request.param} GPUs")
    unit = Unit(tmp_path, model=MODEL, dtype="float32", **{
        "served-model-name": "license", "tensor-parallel-size": request.param, "gpu-memory-utilization": 0.2,
        "enforce-eager": True, "disable-log-requests": True,
    })  # fmt: skip
    gpus = ",".join(map(str, range(request.param)))
    unit.run("-m", "vllm_serving", "main", tmp_path / "main.yaml", 7, VLLM_USE_V1=0, VLLM_KEPLER_DEVICE="",
             CUDA_VISIBLE_DEVICES=gpus)  # fmt: skip
    try:
        unit.ready(START)
        yield unit
    finally:
        unit.kill()
        unit.close()


def complete(unit, prompt):
    """The greedy completion of a prompt, as text."""
    status, text = unit.ask("/v1/completions", {
        "model": "license", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0,
    })  # fmt: skip
    assert status == 200, text
    return json.loads(text)["choices"][0]["text"]


def test_forked_ranks_answer_and_drain(server):
    """A missing rank shows in these answers (tests/models)."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    prompts = {" ".join(WORDS[at : at + PROMPT_WORDS]): what_follows(tokenizer, at + PROMPT_WORDS)
               for at in sentence_starts()}  # fmt: skip
    with ThreadPoolExecutor(16) as pool:
        assert dict(zip(prompts, pool.map(lambda prompt: complete(server, prompt), prompts), strict=True)) == prompts
    commands = [Path(f"/proc/{process}/cmdline").read_bytes() for process in server.processes()]
    assert not [command for command in commands if b"spawn_main" in command], commands
    server.process.terminate()
    assert server.process.wait(60) == 0, server.output()
    assert server.processes() == []
