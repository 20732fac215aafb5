#!/usr/bin/env python3
"""What prompt lookup gains on a text that repeats itself, and costs on one that does not, for 8 billion parameters.

usage: bench_speculation.py --out DIR [--texts random] [--graphs 1]

The model is bench_batches' in 4 bits, with a head that makes each token decide the next one: tokens go in circles of
64, or never come back.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from bench_batches import CONFIG, CONTEXT, write_model

os.environ.setdefault("VLLM_KEPLER_VERIFY", "1")
os.environ["VLLM_NO_USAGE_STATS"] = "1"

TOKENS, ROUNDS = 256, 3
SEQUENCES = (1, 2, 4)
VOCABULARY = CONFIG["vocab_size"]
# Text -> (tokens after which it repeats itself, bar of the ratio for one sequence). Both divide the vocabulary.
TEXTS = {"repeats itself": (64, 1.7), "random": (VOCABULARY, 0.95)}
# The least n-gram of all: in the random text nearly every lookup finds something, and all of it is wrong.
LOOKUP = {"method": "ngram", "num_speculative_tokens": 7, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
# Of a code, beside 0.003 and 0.002.
QUIET = 1e-6
MARK = "bench_speculation: "


def lead(directory: Path, period: int) -> None:
    """Rewrite the head so that token i is followed by i + 1, and the last of each `period` tokens by the first.

    What layers add to a token's embedding, by codes whose mean is not zero, is made too little to decide.
    """
    import torch
    from safetensors.torch import load_file, save_file

    file = directory / "model.safetensors"
    tensors = load_file(file)
    embedding = tensors["model.embed_tokens.weight"]
    ids = torch.arange(VOCABULARY)
    following = torch.where(ids % period == period - 1, ids - period + 1, ids + 1)
    head = torch.empty_like(embedding)
    head[following] = embedding
    tensors["lm_head.weight"] = (head.float() * CONFIG["hidden_size"] ** -0.5).half()
    for name in tensors:
        if name.endswith(("o_proj.scales", "down_proj.scales")):
            tensors[name].fill_(QUIET)
    save_file(tensors, file, metadata={"format": "pt"})


def prompt_of(period: int, index: int) -> list[int]:
    """A part of the circle, again and again; or any of few tokens, whose followers are others."""
    import torch

    if period < VOCABULARY:
        return [index * period + place % period for place in range(CONTEXT)]
    return torch.randint(0, 2 * TOKENS, (CONTEXT,), generator=torch.Generator().manual_seed(index)).tolist()


def text_after(prompt: list[int], period: int, count: int) -> list[int]:
    """The tokens that the model must give: each decides the next one."""
    first = prompt[-1] // period * period
    return [first + (prompt[-1] - first + place) % period for place in range(1, count + 1)]


def measure(directory: str, period: int, speculates: bool) -> None:
    """Print the least time in seconds of TOKENS tokens for each number of sequences, and the tokens of the first."""
    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(directory, dtype="half", skip_tokenizer_init=True, max_model_len=1024, max_num_seqs=max(SEQUENCES),
              gpu_memory_utilization=0.5, num_gpu_blocks_override=4096, swap_space=0,
              speculative_config=dict(LOOKUP) if speculates else None)
    first: list[int] = []
    seconds = {}
    for count in SEQUENCES:
        prompts = [TokensPrompt(prompt_token_ids=prompt_of(period, index)) for index in range(count)]
        times: dict[int, list[float]] = {1: [], TOKENS + 1: []}
        for tokens in list(times) * (ROUNDS + 1):
            sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
            start = time.perf_counter()
            done = llm.generate(prompts, sampling, use_tqdm=False)
            times[tokens].append(time.perf_counter() - start)
        first = first or list(done[0].outputs[0].token_ids)
        # Without the first round, and without the prompt.
        seconds[count] = min(times[TOKENS + 1][1:]) - min(times[1][1:])
    if first != (expected := text_after(prompt_of(period, 0), period, len(first))):
        print(f"found the text {first[:12]} ...; expected {expected[:12]} ...: another text than is to be measured")
        return
    print(MARK + json.dumps({"seconds": seconds, "ids": first}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--out", type=Path)
    which.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--period", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--speculates", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS), help="a part of the run")
    parser.add_argument("--graphs", choices=("0", "1", "01"), default="01", help="without, with, or both")
    options = parser.parse_args()
    from machine import decoding, describe, heading, table

    if options.measure:
        sys.path.append(str(Path(__file__).resolve().parents[1] / "port"))
        from serve_once import end_with_ranks

        end_with_ranks(lambda: measure(options.measure, options.period, options.speculates))
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory), 4)
        for text in options.texts:
            period, bar = TEXTS[text]
            lead(Path(directory), period)
            for graphs in options.graphs:
                asked = ("--period", str(period))
                plain, found = (
                    decoding(__file__, directory, graphs, MARK, *asked, *more)[0] for more in ((), ("--speculates",))
                )
                for count in SEQUENCES:
                    before, after = (one["seconds"][str(count)] for one in (plain, found))
                    row: dict[str, object] = {
                        "text": text, "graphs": "yes" if graphs == "1" else "no", "sequences": count,
                        "plain, tok/s": round(count * TOKENS / before), "lookup, tok/s": round(count * TOKENS / after),
                        "ratio": before / after, "same ids": plain["ids"] == found["ids"],
                    }
                    if count == 1:
                        row |= {"bar": bar, "held": before / after >= bar}
                    rows.append(row)
    described = describe()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "speculation.json").write_text(json.dumps({**described, "rows": rows}))
    report = f"""# Prompt lookup

{heading(described)}
Llama 3 8B's shape in 4 bits (GPTQ, groups of 128), the rest in `half`; prompts of {CONTEXT} tokens, {TOKENS} tokens
after the first, greedy; least of {ROUNDS} rounds. Seven tokens are looked up by n-grams of 1 to 3 tokens. The text that
repeats itself has circles of {TEXTS['repeats itself'][0]} tokens; in the random one nearly every lookup finds
something, and none of it is right.

{table(rows)}"""
    (options.out / "speculation.md").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
