#!/usr/bin/env python3
"""What Python and launches cost in a decoding step, for a Llama of a billion parameters in float32.

usage: bench_engine.py --out DIR

A step's wall time minus the time that the GPU is busy in it is the overhead: on a fast GPU nearly all of a step. It
is compared with what the same step takes at a K80 die's memory bandwidth.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_KEPLER_VERIFY", "1")
os.environ["VLLM_NO_USAGE_STATS"] = "1"

import torch
from machine import describe, heading

BATCH, CONTEXT, STEPS, WARM_UP, ROUNDS = 32, 512, 60, 10, 4
# A plain read on one die with ECC on reaches 148 to 157 GB/s, as K80 owners measured.
K80_BANDWIDTH = 150e9
BAR = 0.15
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def engine(directory: Path):
    """An engine with random weights and a full batch of prompts, past their prefill."""
    from vllm import LLM, SamplingParams, TokensPrompt

    (directory / "config.json").write_text(json.dumps(CONFIG))
    llm = LLM(str(directory), load_format="dummy", skip_tokenizer_init=True, max_model_len=2048, max_num_seqs=BATCH,
              gpu_memory_utilization=0.8, num_gpu_blocks_override=4096, swap_space=0)
    sampling = SamplingParams(temperature=0, max_tokens=10**6, ignore_eos=True, detokenize=False)
    for index in range(BATCH):
        prompt = TokensPrompt(prompt_token_ids=torch.randint(3, 128000, (CONTEXT,)).tolist())
        llm.llm_engine.add_request(str(index), prompt, sampling)
    return llm.llm_engine


def step_seconds(running) -> list[float]:
    """Wall time of each decoding step."""
    times = []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        running.step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


def kernels(running, steps: int) -> tuple[float, float]:
    """(GPU time in seconds, kernels and copies) of a step, from the profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            running.step()
        torch.cuda.synchronize()
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(event.time_range.elapsed_us() for event in events) / 1e6 / steps, len(events) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        running = engine(Path(directory))
        while running.scheduler[0].waiting:
            running.step()
        for _ in range(WARM_UP):
            running.step()
        # What else the machine does only slows a step.
        wall = min(statistics.median(step_seconds(running)) for _ in range(ROUNDS))
        busy, launches = kernels(running, 10)
        weights = sum(p.numel() * p.element_size() for p in
                      running.model_executor.driver_worker.model_runner.model.parameters())
    layers, width = CONFIG["num_hidden_layers"], CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    tokens = BATCH * (CONTEXT + WARM_UP + ROUNDS * STEPS // 2)
    cache = 2 * 4 * layers * width * tokens
    k80 = (weights + cache) / K80_BANDWIDTH
    overhead = wall - busy
    machine = describe()
    result = {
        **machine, "batch": BATCH, "context": CONTEXT, "step_seconds": wall, "gpu_busy_seconds": busy,
        "launches": launches, "overhead_seconds": overhead, "weight_bytes": weights, "cache_bytes": cache,
        "k80_step_seconds": k80, "overhead_of_k80_step": overhead / k80,
    }
    (out / "engine.json").write_text(json.dumps(result, indent=1))
    (out / "engine.md").write_text(f"""# Overhead of a decoding step

{heading(machine)}
Llama of {weights / 4 / 1e9:.2f} billion parameters, float32, {BATCH} sequences of {CONTEXT} tokens, greedy, eager;
least of {ROUNDS} medians of {STEPS} steps.

| | |
|---|---|
| step, wall time | {wall * 1e3:.2f} ms |
| GPU busy in it (profiler) | {busy * 1e3:.2f} ms in {launches:.0f} kernels and copies |
| overhead: wall time less busy time | {overhead * 1e3:.2f} ms |
| weights read a step | {weights / 1e9:.2f} GB |
| keys and values read a step | {cache / 1e9:.2f} GB |
| the step at a K80 die's {K80_BANDWIDTH / 1e9:.0f} GB/s: (weights + cache) / bandwidth | {k80 * 1e3:.1f} ms |
| **overhead of that step** | **{overhead / k80:.1%}** (bar {BAR:.0%}: {"met" if overhead / k80 < BAR else "missed"}) |

The overhead is this machine's processor's. A K80 host's is older and slower, by a factor of about two a core; on the
other hand launches run ahead of a slow GPU and most of the overhead hides behind its work.
""")
    print((out / "engine.md").read_text())


if __name__ == "__main__":
    main()
