#!/usr/bin/env python3
"""Python of a decoding step, without a GPU: operators call a library that does nothing, on tensors of the CPU.

usage: PYTHONPATH=vllm_src SERVING/bin/python tests/benchmarks/step_python.py [SEQUENCES]

SERVING is the environment that `tests/port.sh` builds. The model is a Llama of 32 layers in 4 bits, small enough that
nothing but calls takes time. Prints the least times of 200 steps and forward passes, and that of an operator.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(VLLM_KEPLER_DEVICE="cpu", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR")

import torch
from vllm_kepler.ops import library, operator
from vllm_kepler.version import __version__

LAYERS, STEPS, WARM_UP, PROMPT = 32, 200, 20, 64
# Of a layer of this model; then the last norm.
OPERATORS = 11 * LAYERS + 1
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": LAYERS, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 1024,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "torch_dtype": "float16", "bos_token_id": 0,
    "eos_token_id": 1,
    "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
}


def build_library(directory: Path) -> Path:
    """A kernel library whose launchers return at once."""
    text = [f"int kepler_{name}() {{ return 0; }}" for name in library.LAUNCHERS if "workspace" not in name]
    text += [
        "int kepler_attention_decode_workspace(int a, int b, int c, int d, int e, unsigned long* n)",
        "{ *n = 0; return 0; }",
        "int kepler_moe_capacity(int a, int b, int c) { return 64; }",
        f'const char* kepler_version(void) {{ return "{__version__}"; }}',
        'const char* kepler_architectures(void) { return "sm_37 compute_37"; }',
        'const char* kepler_error_text(int code) { return ""; }',
    ]
    source, made = directory / "nothing.c", directory / "nothing.so"
    source.write_text("\n".join(text))
    subprocess.run(["gcc", "-w", "-shared", "-fPIC", "-O2", "-o", made, source], check=True)
    return made


def take_kernels() -> None:
    """Let every operator call the library, whatever device its tensors are on; before any of them is imported."""

    def by_device(reference: Callable[..., Any], kernel: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(reference)
        def called(first: torch.Tensor, *others: Any) -> Any:
            return (kernel if first is not None else reference)(first, *others)

        return called

    operator.by_device = by_device
    torch._C._cuda_getCurrentRawStream = lambda device: 0  # type: ignore[attr-defined]
    torch.cuda.get_device_properties = lambda device: type("Gpu", (), {"multi_processor_count": 13})
    from vllm_kepler.ops import registry

    for known in registry.OPERATORS:
        if known.kernel is not None:
            object.__setattr__(known, "reference", known.kernel)


def main() -> None:
    torch.set_num_threads(1)
    sequences = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        os.environ["VLLM_KEPLER_LIBRARY"] = str(build_library(directory))
        take_kernels()
        from vllm import LLM, SamplingParams, TokensPrompt

        (directory / "config.json").write_text(json.dumps(CONFIG))
        engine = LLM(name, dtype="half", load_format="dummy", skip_tokenizer_init=True, max_model_len=1024,
                     max_num_seqs=max(32, sequences), gpu_memory_utilization=0.05, swap_space=1).llm_engine
        sampling = SamplingParams(temperature=0, max_tokens=10**6, ignore_eos=True, detokenize=False)
        for index in range(sequences):
            engine.add_request(str(index), TokensPrompt(prompt_token_ids=[5] * PROMPT), sampling)
        while engine.scheduler[0].waiting:
            engine.step()
        worker = engine.model_executor.driver_worker
        model = getattr(worker, "worker", worker).model_runner.model
        forward, passes, steps = model.forward, [], []

        def timed(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            found = forward(*arguments, **named)
            passes.append(time.perf_counter() - begun)
            return found

        model.forward = timed
        for _ in range(WARM_UP + STEPS):
            begun = time.perf_counter()
            engine.step()
            steps.append(time.perf_counter() - begun)
        least = min(passes[WARM_UP:])
        print(f"{sequences} sequences, torch {torch.__version__}: a step {min(steps[WARM_UP:]) * 1e3:.2f} ms, its "
              f"forward pass {least * 1e3:.2f} ms, an operator {least / OPERATORS * 1e6:.1f} µs")


if __name__ == "__main__":
    main()
