#!/usr/bin/env python3
"""Tokens a second of all sequences together, of a model of 8 billion parameters in 4 bits, and the time of a prompt.

usage: bench_batches.py --out DIR

The model has Llama 3 8B's shape and random weights: GPTQ in groups of 128 columns, `half` for the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("VLLM_KEPLER_VERIFY", "1")
os.environ["VLLM_NO_USAGE_STATS"] = "1"

CONTEXT, STEPS, WARM_UP, PROMPTS = 256, 40, 10, 8
BATCHES = (1, 2, 4, 8, 16, 32, 64)
# Tokens a second, with CUDA graphs.
BARS = {1: 340, 8: 1050, 16: 1300, 32: 1500, 64: 2200}
PROMPT_BAR = 75e-3
BITS, GROUP = 4, 128
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "float16",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "quantization_config": {"quant_method": "gptq", "bits": BITS, "group_size": GROUP, "desc_act": False, "sym": True},
}
MARK = "bench_batches: "


def write_model(directory: Path) -> None:
    """A checkpoint of random codes, with scales that keep activations near 1."""
    import torch
    from safetensors.torch import save_file

    hidden, inner, heads, keys = 4096, 14336, 32 * 128, 8 * 128
    matrices = {
        "self_attn.q_proj": (heads, hidden), "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, heads), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    per_word = 32 // BITS
    tensors = {
        "model.embed_tokens.weight": torch.randn(CONFIG["vocab_size"], hidden).half(),
        "lm_head.weight": torch.randn(CONFIG["vocab_size"], hidden).mul_(hidden**-0.5).half(),
        "model.norm.weight": torch.ones(hidden).half(),
    }
    for layer in range(CONFIG["num_hidden_layers"]):
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = torch.ones(hidden).half()
        for name, (n, k) in matrices.items():
            at = f"model.layers.{layer}.{name}"
            tensors[f"{at}.qweight"] = torch.randint(-(2**31), 2**31, (k // per_word, n), dtype=torch.int32)
            # Zeros of 8, stored one less.
            tensors[f"{at}.qzeros"] = torch.full((k // GROUP, n // per_word), 0x77777777, dtype=torch.int32)
            # Codes less 8 have a deviation of 4.6.
            tensors[f"{at}.scales"] = torch.full((k // GROUP, n), 1 / (4.6 * k**0.5)).half()
            tensors[f"{at}.g_idx"] = torch.arange(k, dtype=torch.int32) // GROUP
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(CONFIG))


def measure(directory: str) -> None:
    """Print the median time in seconds of a decoding step for each batch, and of one prompt."""
    import torch
    from vllm import LLM, SamplingParams, TokensPrompt

    running = LLM(directory, dtype="half", skip_tokenizer_init=True, max_model_len=1024, max_num_seqs=max(BATCHES),
                  gpu_memory_utilization=0.5, num_gpu_blocks_override=8192, swap_space=0).llm_engine
    sampling = SamplingParams(temperature=0, max_tokens=10**6, ignore_eos=True, detokenize=False)

    def step() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        running.step()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def add(name: str) -> None:
        prompt = torch.randint(3, CONFIG["vocab_size"], (CONTEXT,)).tolist()
        running.add_request(name, TokensPrompt(prompt_token_ids=prompt), sampling)

    prompts, decoding = [], {}
    for index in range(PROMPTS):
        add(f"prompt-{index}")
        prompts.append(step())
        running.abort_request(f"prompt-{index}")
        running.step()
    for batch in BATCHES:
        names = [f"{batch}-{index}" for index in range(batch)]
        for name in names:
            add(name)
        while running.scheduler[0].waiting:
            running.step()
        decoding[batch] = statistics.median([step() for _ in range(WARM_UP + STEPS)][WARM_UP:])
        running.abort_request(names)
        running.step()
    print(MARK + json.dumps({"prompt": statistics.median(prompts[2:]), "decoding": decoding}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--out", type=Path)
    which.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    from machine import decoding, describe, heading, table

    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory))
        (eager, _), (graphs, _) = (decoding(__file__, directory, switch, MARK) for switch in "01")
    rows = []
    for batch in BATCHES:
        plain, replayed = eager["decoding"][str(batch)], graphs["decoding"][str(batch)]
        row = {
            "sequences": batch, "eager, tok/s": round(batch / plain), "graphs, tok/s": round(batch / replayed),
            "eager, ms a step": plain * 1e3, "graphs, ms a step": replayed * 1e3,
        }
        if batch in BARS:
            row |= {"bar, tok/s": BARS[batch], "held": batch / replayed >= BARS[batch]}
        rows.append(row)
    described = describe()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "batches.json").write_text(json.dumps({**described, "rows": rows, "prompt": graphs["prompt"]}))
    held = "met" if graphs["prompt"] <= PROMPT_BAR else "**missed**"
    (options.out / "batches.md").write_text(f"""# Decoding of many sequences

{heading(described)}
Llama 3 8B's shape, random weights, GPTQ of {BITS} bits in groups of {GROUP}, `half`, sequences of {CONTEXT} tokens and
more, greedy, one GPU; median of {STEPS} steps, each waited for. Graphs are recorded for up to 16 sequences.

{table(rows)}
A prompt of {CONTEXT} tokens takes {graphs["prompt"] * 1e3:.1f} ms (bar {PROMPT_BAR * 1e3:.0f}: {held}).
""")
    print((options.out / "batches.md").read_text())


if __name__ == "__main__":
    main()
