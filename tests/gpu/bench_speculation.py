#!/usr/bin/env python3
"""What prompt lookup gains on a text that repeats itself, and costs on one that does not, for 8 billion parameters.

usage: bench_speculation.py --out DIR [--method draft] [--texts random] [--graphs 1]

The model is bench_batches' in 4 bits, with a head that makes each token decide the next one: tokens go in circles of
64, or never come back. With `--method draft` its first layers draft: with its head they are always right, the most that
a draft model of that size can gain, and with a head of another order never, what it costs until it is left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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
# Layers of the draft model, of 32; the tokens that it proposes; and by how many tokens its head leads on.
LAYERS, DRAFTED, DRAFTS = 4, 4, {"right": 1, "wrong": 2}
# Of a code, beside 0.003 and 0.002.
QUIET = 1e-6
MARK = "bench_speculation: "


def lead(directory: Path, period: int, pace: int = 1) -> None:
    """Rewrite the head so that token i is followed by i + `pace`, and the last of each `period` tokens by the first.

    What layers add to a token's embedding, by codes whose mean is not zero, is made too little to decide.
    """
    import torch
    from safetensors.torch import load_file, save_file

    file = directory / "model.safetensors"
    tensors = load_file(file)
    embedding = tensors["model.embed_tokens.weight"]
    ids = torch.arange(VOCABULARY)
    following = ids // period * period + (ids + pace) % period
    head = torch.empty_like(embedding)
    head[following] = embedding
    tensors["lm_head.weight"] = (head.float() * CONFIG["hidden_size"] ** -0.5).half()
    for name in tensors:
        if name.endswith(("o_proj.scales", "down_proj.scales")):
            tensors[name].fill_(QUIET)
    save_file(tensors, file, metadata={"format": "pt"})


def write_draft(directory: Path, target: Path, period: int, pace: int) -> None:
    """The first layers of the target, with a head of its own."""
    from safetensors.torch import load_file, save_file

    directory.mkdir()
    tensors = load_file(target / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items()
            if not name.startswith("model.layers.") or int(name.split(".")[2]) < LAYERS}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": LAYERS}))
    lead(directory, period, pace)


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


def measure(directory: str, period: int, speculative: dict[str, object] | None) -> None:
    """Print the least time in seconds of TOKENS tokens for each number of sequences, and the tokens of the first."""
    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(directory, dtype="half", skip_tokenizer_init=True, max_model_len=1024, max_num_seqs=max(SEQUENCES),
              gpu_memory_utilization=0.5, num_gpu_blocks_override=4096, swap_space=0,
              speculative_config=speculative)
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


def compared(
    text: str, graphs: str, method: str, bar: float | None, plain: dict[str, Any], found: dict[str, Any]
) -> list[dict[str, object]]:
    """Rows of the table: one for each number of sequences."""
    rows = []
    for count in SEQUENCES:
        before, after = (one["seconds"][str(count)] for one in (plain, found))
        row: dict[str, object] = {
            "text": text, "graphs": "yes" if graphs == "1" else "no", "sequences": count,
            "plain, tok/s": round(count * TOKENS / before), f"{method}, tok/s": round(count * TOKENS / after),
            "ratio": before / after, "same ids": plain["ids"] == found["ids"],
        }
        if count == 1 and bar is not None:
            row |= {"bar": bar, "held": before / after >= bar}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--out", type=Path)
    which.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--period", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--speculates", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--method", choices=("lookup", "draft"), default="lookup")
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS), help="a part of the run")
    parser.add_argument("--graphs", choices=("0", "1", "01"), default="01", help="without, with, or both")
    options = parser.parse_args()
    from machine import decoding, describe, heading, table

    if options.measure:
        sys.path.append(str(Path(__file__).resolve().parents[1] / "port"))
        from serve_once import end_with_ranks

        end_with_ranks(lambda: measure(options.measure, options.period, options.speculates))
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_model(directory, 4)
        for text in options.texts if options.method == "lookup" else ["random"]:
            period, bar = TEXTS[text]
            lead(directory, period)
            # What the rows call the text -> how they speculate, and the bar of one sequence.
            cases: dict[str, tuple[dict[str, object], float | None]] = {text: (LOOKUP, bar)}
            if options.method == "draft":
                cases = {}
                for drafted, pace in DRAFTS.items():
                    draft = directory / drafted
                    write_draft(draft, directory, period, pace)
                    speculative = {"model": str(draft), "num_speculative_tokens": DRAFTED}
                    cases[f"the draft is {drafted}"] = speculative, None
            for graphs in options.graphs:
                asked = name, graphs, MARK, "--period", str(period)
                plain, _ = decoding(__file__, *asked)
                for case, (config, least) in cases.items():
                    found, _ = decoding(__file__, *asked, "--speculates", json.dumps(config))
                    rows += compared(case, graphs, options.method, least, plain, found)
    described = describe()
    options.out.mkdir(parents=True, exist_ok=True)
    file = "speculation" if options.method == "lookup" else "drafts"
    (options.out / f"{file}.json").write_text(json.dumps({**described, "rows": rows}))
    said = f"""Seven tokens are looked up by n-grams of 1 to 3 tokens. The text that
repeats itself has circles of {TEXTS['repeats itself'][0]} tokens; in the random one nearly every lookup finds
something, and none of it is right."""
    if options.method == "draft":
        said = f"""The draft is the model's first {LAYERS} layers of 32 and
proposes {DRAFTED} tokens: with the model's head it is always right, with another one never."""
    report = f"""# {'Prompt lookup' if options.method == 'lookup' else 'Draft models'}

{heading(described)}
Llama 3 8B's shape in 4 bits (GPTQ, groups of 128), the rest in `half`; prompts of {CONTEXT} tokens, {TOKENS} tokens
after the first, greedy; least of {ROUNDS} rounds. {said}

{table(rows)}"""
    (options.out / f"{file}.md").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
