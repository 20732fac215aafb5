#!/usr/bin/env python3
"""Tokens a second of all sequences together, of a model of 8 billion parameters, and the time of a prompt.

usage: bench_batches.py --out DIR [--storages 4,8,half]

The model has Llama 3 8B's shape and random weights: GPTQ in groups of 128 columns, `half` for the rest, or all of it.
In 4 bits it is measured on 1, 2 and 4 GPUs as far as they are there, else on one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_KEPLER_VERIFY", "1")
os.environ["VLLM_NO_USAGE_STATS"] = "1"

CONTEXT, STEPS, WARM_UP, PROMPTS = 256, 16, 3, 5
# All numbers of sequences where another kernel or tile begins, and those around them.
BATCHES = (
    *range(1, 11), 12, 13, 16, 17, 20, 21, 24, 25, 28, 29, 32, 33, 36, 37, 38, 40, 41, 44, 45, 48, 49, 50, 52, 53, 56,
    57, 60, 64,
)
RANKS = (1, 2, 4)
# Tokens a second, in 4 bits on one GPU, with CUDA graphs.
BARS = {1: 340, 8: 1050, 16: 1300, 32: 1500, 64: 2200}
PROMPT_BAR = 75e-3
# llama.cpp 0.3.36 on one H200 from compute_37 PTX, November 2026: batches of the same shape without a server.
PEERS = {
    "llama.cpp, q4_0": ((1, 224), (8, 676), (16, 287), (32, 502), (64, 820)),
    "llama.cpp, q4_K_M": ((1, 185), (8, 538), (16, 315), (32, 540)),
}
GROUP = 128
CONFIG: dict[str, Any] = {
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
}
# Name on the command line -> (bits, what it is called in the tables).
STORAGES = {"4": (4, "4 bits"), "8": (8, "8 bits"), "half": (16, "float16")}
MARK = "bench_batches: "


def write_model(directory: Path, bits: int) -> None:
    """A checkpoint of random weights or codes, with scales that keep activations near 1."""
    import torch
    from safetensors.torch import save_file

    hidden, inner, heads, keys = 4096, 14336, 32 * 128, 8 * 128
    matrices = {
        "self_attn.q_proj": (heads, hidden), "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, heads), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }

    def normal(n: int, k: int, deviation: float) -> torch.Tensor:
        return torch.randn(n, k, device="cuda").mul_(deviation).half().cpu()

    tensors = {
        "model.embed_tokens.weight": normal(CONFIG["vocab_size"], hidden, 1),
        "lm_head.weight": normal(CONFIG["vocab_size"], hidden, hidden**-0.5),
        "model.norm.weight": torch.ones(hidden).half(),
    }
    for layer in range(CONFIG["num_hidden_layers"]):
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = torch.ones(hidden).half()
        for name, (n, k) in matrices.items():
            at = f"model.layers.{layer}.{name}"
            if bits == 16:
                tensors[f"{at}.weight"] = normal(n, k, k**-0.5)
                continue
            per_word, middle = 32 // bits, 1 << bits - 1
            words = torch.randint(-(2**31), 2**31, (k // per_word, n), dtype=torch.int32, device="cuda")
            tensors[f"{at}.qweight"] = words.cpu()
            # The middle, stored one less.
            zeros = (middle - 1) * (0x11111111 if bits == 4 else 0x01010101)
            tensors[f"{at}.qzeros"] = torch.full((k // GROUP, n // per_word), zeros, dtype=torch.int32)
            # Codes less the middle are spread evenly: their deviation is 2 ** bits / √12.
            tensors[f"{at}.scales"] = torch.full((k // GROUP, n), 12**0.5 / (2**bits * k**0.5)).half()
            tensors[f"{at}.g_idx"] = torch.arange(k, dtype=torch.int32) // GROUP
    torch.cuda.empty_cache()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    quantized = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": False, "sym": True}
    config = CONFIG if bits == 16 else {**CONFIG, "quantization_config": quantized}
    (directory / "config.json").write_text(json.dumps(config))


def measure(directory: str, ranks: int) -> None:
    """Print the median time in seconds of a decoding step for each batch, and of one prompt."""
    import torch
    from vllm import LLM, SamplingParams, TokensPrompt

    running = LLM(directory, dtype="half", skip_tokenizer_init=True, max_model_len=1024, max_num_seqs=max(BATCHES),
                  tensor_parallel_size=ranks, gpu_memory_utilization=0.5, num_gpu_blocks_override=8192,
                  swap_space=0).llm_engine
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
    # The same sequences, fewer and fewer of them: the longest ones are in the smallest batches.
    left = [f"sequence-{index}" for index in range(max(BATCHES))]
    for name in left:
        add(name)
    while running.scheduler[0].waiting:
        running.step()
    for batch in sorted(BATCHES, reverse=True):
        running.abort_request(left[batch:])
        del left[batch:]
        decoding[batch] = statistics.median([step() for _ in range(WARM_UP + STEPS)][WARM_UP:])
    print(MARK + json.dumps({"prompt": statistics.median(prompts[2:]), "decoding": decoding}), flush=True)


def rows_of(storage: str, ranks: int, eager: dict, graphs: dict) -> list[dict[str, object]]:
    """Of one storage on so many GPUs, from what `measure` printed without graphs and with them."""
    rows = []
    for batch in BATCHES:
        plain, replayed = eager["decoding"][str(batch)], graphs["decoding"][str(batch)]
        row = {
            "weights": STORAGES[storage][1], "GPUs": ranks, "sequences": batch,
            "eager, tok/s": round(batch / plain), "graphs, tok/s": round(batch / replayed),
            "eager, ms a step": plain * 1e3, "graphs, ms a step": replayed * 1e3,
        }
        if (storage, ranks) == ("4", 1) and batch in BARS:
            row |= {"bar, tok/s": BARS[batch], "held": batch / replayed >= BARS[batch]}
        rows.append(row)
    return rows


def write(out: Path, rows: list[dict[str, object]], prompts: list[dict[str, object]]) -> str:
    """The tables so far: a run that is cut short leaves what it has measured."""
    from machine import describe, heading, table
    from plots import plot
    from vllm_kepler.settings import CAPTURE_SIZES

    described = describe()
    lines = {
        f"{storage}, {'graphs' if way.startswith('graphs') else 'eager'}": [
            (row["sequences"], row[way]) for row in rows if (row["weights"], row["GPUs"]) == (storage, 1)
        ]
        for storage in dict.fromkeys(row["weights"] for row in rows) for way in ("graphs, tok/s", "eager, tok/s")
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "batches.json").write_text(json.dumps({**described, "rows": rows, "prompts": prompts}))
    text = f"""# Decoding of many sequences

{heading(described)}
Llama 3 8B's shape, random weights: GPTQ in groups of {GROUP} and the rest in `half`, or all in `half`. Sequences of
{CONTEXT} tokens ({max(BATCHES)} of them) to {CONTEXT + (WARM_UP + STEPS) * len(BATCHES)} (one); greedy, median of
{STEPS} steps, each waited for. On several GPUs tensor parallelism over NCCL. Graphs are recorded for each number of
sequences up to {max(CAPTURE_SIZES)}.

{table(rows)}
![tokens a second over sequences](batches.svg)

## A prompt of {CONTEXT} tokens

{table(prompts)}"""
    (out / "batches.md").write_text(text)
    plot(out / "batches.svg", lines, PEERS, heading(described) + " llama.cpp 0.3.36: one H200, November 2026.",
         xlabel="sequences", ylabel="tokens a second", title="Decoding of Llama 3 8B's shape on one GPU")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--out", type=Path)
    which.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--ranks", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--storages", default=",".join(STORAGES), help="some of %(default)s")
    options = parser.parse_args()
    import torch
    from machine import decoding

    if options.measure:
        sys.path.append(str(Path(__file__).resolve().parents[1] / "port"))
        from serve_once import end_with_ranks

        end_with_ranks(lambda: measure(options.measure, options.ranks))
    storages = options.storages.split(",")
    if unknown := set(storages) - set(STORAGES):
        parser.error(f"--storages: found {', '.join(sorted(unknown))}; expected some of {', '.join(STORAGES)}")
    rows, prompts = [], []
    for storage in storages:
        with tempfile.TemporaryDirectory() as directory:
            write_model(Path(directory), STORAGES[storage][0])
            for ranks in RANKS if storage == "4" else RANKS[:1]:
                if ranks > torch.cuda.device_count():
                    continue
                eager, graphs = (
                    decoding(__file__, directory, switch, MARK, "--ranks", str(ranks))[0] for switch in "01"
                )
                rows += rows_of(storage, ranks, eager, graphs)
                prompt = {"weights": STORAGES[storage][1], "GPUs": ranks, "ms": graphs["prompt"] * 1e3}
                if (storage, ranks) == ("4", 1):
                    prompt |= {"bar, ms": PROMPT_BAR * 1e3, "held": graphs["prompt"] <= PROMPT_BAR}
                prompts.append(prompt)
                text = write(options.out, rows, prompts)
    print(text)


if __name__ == "__main__":
    main()
