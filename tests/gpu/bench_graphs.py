#!/usr/bin/env python3
"""Decoding with CUDA graphs and without, for a model so small that a fast GPU waits for its launches.

usage: bench_graphs.py --out DIR
"""

import argparse
import json
import os
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_KEPLER_VERIFY", "1")
os.environ["VLLM_NO_USAGE_STATS"] = "1"

CONTEXT, STEPS, WARM_UP = 512, 60, 10
# Each batch is measured so many times, the batches by turns: what else the machine does only slows a step.
ROUNDS = 4
BATCHES = (1, 4, 16)
# The shape of Qwen2 0.5B.
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MARK = "bench_graphs: "


def measure(directory: str) -> None:
    """Print the time in seconds of a decoding step for each batch: the least of the rounds' medians."""
    import torch
    from vllm import LLM, SamplingParams, TokensPrompt

    running = LLM(directory, load_format="dummy", skip_tokenizer_init=True, max_model_len=2048,
                  max_num_seqs=max(BATCHES), gpu_memory_utilization=0.5, num_gpu_blocks_override=4096,
                  swap_space=0).llm_engine
    sampling = SamplingParams(temperature=0, max_tokens=10**6, ignore_eos=True, detokenize=False)
    medians: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for batch in BATCHES * ROUNDS:
        names = [f"{batch}-{index}" for index in range(batch)]
        for name in names:
            prompt = TokensPrompt(prompt_token_ids=torch.randint(3, 150000, (CONTEXT,)).tolist())
            running.add_request(name, prompt, sampling)
        while running.scheduler[0].waiting:
            running.step()
        times = []
        for _ in range(WARM_UP + STEPS):
            start = time.perf_counter()
            running.step()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        medians[batch].append(statistics.median(times[WARM_UP:]))
        running.abort_request(names)
        running.step()
    print(MARK + json.dumps({batch: min(found) for batch, found in medians.items()}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--out", type=Path)
    which.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    from machine import decoding, describe, heading, table

    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.json").write_text(json.dumps(CONFIG))
        eager, _ = decoding(__file__, directory, "0", MARK)
        graphs, printed = decoding(__file__, directory, "1", MARK)
    captured: Any = re.search(r"captured decoding steps of (.*) sequences.*they take (\d+) MiB", printed)
    rows = [
        {
            "sequences": batch, "eager, tok/s": round(int(batch) / eager[batch]),
            "graphs, tok/s": round(int(batch) / graphs[batch]), "eager, ms a step": eager[batch] * 1e3,
            "graphs, ms a step": graphs[batch] * 1e3, "ratio": eager[batch] / graphs[batch],
        }
        for batch in eager
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    described = describe()
    result = {**described, "sizes": captured[1], "mib": int(captured[2]), "rows": rows}
    (options.out / "graphs.json").write_text(json.dumps(result, indent=1))
    (options.out / "graphs.md").write_text(f"""# Decoding with CUDA graphs

{heading(described)}
Qwen2's 0.5 B shape, random weights, float32, sequences of {CONTEXT} tokens, greedy; least of {ROUNDS} medians of
{STEPS} steps, each waited for. Graphs for {captured[1]} sequences took {captured[2]} MiB beside the KV cache.

{table(rows)}
This is an H200, on which a step of so small a model is launches above all. **No K80 has run this**: there the step's
work takes many times longer, and launches hide behind it.
""")
    print((options.out / "graphs.md").read_text())


if __name__ == "__main__":
    main()
