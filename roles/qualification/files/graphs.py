#!/usr/bin/env python3
"""Whether CUDA graphs serve on this host: a tiny model's answers with them and without, on the serving environment.

Takes the options of the ranks' program, of which it needs --world and --device. Prints JSON lines: `working` each
second, then `done` with `equal`, whether both engines gave the same ids, and the seconds of a decoding step, `eager`
and `graphs`. An engine that fails ends it with its last line.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# As many heads as four ranks share. Launches are most of a step, as in models that a GPU is fast with.
LAYERS, HIDDEN, INNER, HEADS, WORDS = 16, 512, 1024, 8, 1024
PROMPTS, TOKENS, SEED = ((3, 5, 7), (11,) * 20, (13, 17) * 30, (19,)), 48, 7
MARK = "graphs: "


def report(event: str, **content: object) -> None:
    print(json.dumps(dict(content, event=event)), flush=True)


def write_model(directory: Path) -> None:
    """A Llama of random weights, large enough that ids differ from token to token."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(SEED)

    def matrix(n: int, k: int) -> torch.Tensor:
        return torch.randn(n, k) * 2 * k**-0.5

    tensors = {"model.embed_tokens.weight": torch.randn(WORDS, HIDDEN), "lm_head.weight": matrix(WORDS, HIDDEN),
               "model.norm.weight": torch.ones(HIDDEN)}
    feed_forward = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{at}.self_attn.{name}.weight"] = matrix(HIDDEN, HIDDEN)
        for name, (n, k) in feed_forward.items():
            tensors[f"{at}.mlp.{name}.weight"] = matrix(n, k)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{name}.weight"] = torch.ones(HIDDEN)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": WORDS,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "torch_dtype": "float32", "bos_token_id": 0,
        "eos_token_id": 1,
    }))


def measure(directory: str, ranks: int) -> None:
    """Print the ids of all prompts, and the median seconds of a decoding step of one sequence."""
    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(directory, dtype="half", skip_tokenizer_init=True, max_model_len=256, max_num_seqs=len(PROMPTS),
              tensor_parallel_size=ranks, gpu_memory_utilization=0.3, num_gpu_blocks_override=256, swap_space=0)
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    done = llm.generate([TokensPrompt(prompt_token_ids=list(prompt)) for prompt in PROMPTS], sampling, use_tqdm=False)
    engine, times = llm.llm_engine, []
    engine.add_request("one", TokensPrompt(prompt_token_ids=list(PROMPTS[0])), sampling)
    while engine.has_unfinished_requests():
        begun = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - begun)
    ids = [list(output.outputs[0].token_ids) for output in done]
    print(MARK + json.dumps({"ids": ids, "seconds": statistics.median(times[5:])}), flush=True)
    # Ranks may abort the process while Python shuts down.
    os._exit(0)


def engine(directory: str, arguments: argparse.Namespace, graphs: str) -> dict:
    """What an engine of its own process printed; reports `working` meanwhile. Exits with its last line if it fails."""
    environment = {
        **os.environ, "VLLM_KEPLER_CUDA_GRAPHS": graphs, "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_KEPLER_DEVICE": "cpu" if arguments.device == "cpu" else "",
        "VLLM_KEPLER_VERIFY": "1" if arguments.device == "verify" else "",
    }
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, __file__, "--measure", directory, "--world", str(arguments.world)], env=environment,
            stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )
        while process.poll() is None:
            time.sleep(1)
            report("working", graphs=graphs == "1")
        output.seek(0)
        lines = [line.strip() for line in output if line.strip()]
    found = [line for line in lines if line.startswith(MARK)]
    if not found:
        sys.exit(f"an engine {'with' if graphs == '1' else 'without'} graphs: {lines[-1] if lines else 'no word'}")
    return json.loads(found[-1][len(MARK):])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=int, required=True)
    parser.add_argument("--device", choices=("kepler", "verify", "cpu"), default="kepler")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments, _ = parser.parse_known_args()
    # Neither it nor an engine outlives what watches it: PR_SET_PDEATHSIG.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if arguments.measure:
        measure(arguments.measure, arguments.world)
    with tempfile.TemporaryDirectory(dir=os.environ.get("HOME")) as directory:
        write_model(Path(directory))
        eager, graphs = (engine(directory, arguments, switch) for switch in "01")
    report("done", equal=eager["ids"] == graphs["ids"], eager=eager["seconds"], graphs=graphs["seconds"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
