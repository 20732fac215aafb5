"""Tiny models with random weights, their greedy answers from transformers in float64, and the fixtures for both."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

VOCABULARY = 320
CONTEXT = 512
NEW_TOKENS = 24
PROMPT_LENGTHS = (1, 7, 16, 33, 120)
# One common shape; 32 is the smallest head that the CUDA kernels take.
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
WINDOW = 32
# For a family that knows no groups of heads: vLLM would believe a number that is there.
MULTI_HEAD = {"num_key_value_heads": 4}
# name -> (model type of transformers, what differs from SHAPE)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma": ("gemma", {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", {"hidden_act": "gelu_pytorch_tanh", "head_dim": 32, "sliding_window": WINDOW,
                          "query_pre_attn_scalar": 32, "attn_logit_softcapping": 5.0,
                          "final_logit_softcapping": 30.0}),
    "phi3": ("phi3", {}),
    "granite": ("granite", {"attention_multiplier": 0.2, "residual_multiplier": 0.5, "embedding_multiplier": 2.0,
                            "logits_scaling": 0.5}),
    "gpt2": ("gpt2", {**MULTI_HEAD, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_inner": 192,
                      "n_positions": CONTEXT}),
    "bloom": ("bloom", {**MULTI_HEAD, "n_head": 4, "n_layer": 2}),
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "starcoder2": ("starcoder2", {"sliding_window": WINDOW}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": ("qwen3_moe", {"head_dim": 32, "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True,
                                "moe_intermediate_size": 64, "decoder_sparse_step": 1}),
}


@dataclass(frozen=True)
class TinyModel:
    """A model on disk, prompts for it, and what transformers answers greedily in float32.

    Attributes:
        directory: config and safetensors; no tokenizer.
        prompts: token ids of prompts of mixed lengths.
        answers: as many token ids for each prompt.
        margins: for each token of `answers`, the distance of the two largest logits, in float64.
        bound: distance below which float32 may order two logits either way.
        context: the longest sequence.
    """

    directory: Path
    prompts: list[list[int]]
    answers: list[list[int]]
    margins: list[list[float]]
    bound: float
    context: int


@torch.no_grad()
def greedy(model: Any, prompt: list[int], tokens: int) -> tuple[list[int], list[float], float]:
    """Greedy ids, margins and the largest logit, each step from the whole sequence: no cache to trust."""
    ids, margins, largest = list(prompt), [], 0.0
    for _ in range(tokens):
        logits = model(torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1]
        top = logits.topk(2).values
        margins.append(float(top[0] - top[1]))
        largest = max(largest, float(logits.abs().max()))
        ids.append(int(logits.argmax()))
    return ids[len(prompt):], margins, largest


def make(
    family: str,
    directory: Path,
    seed: int,
    lengths: Sequence[int] = PROMPT_LENGTHS,
    tokens: int = NEW_TOKENS,
    context: int = CONTEXT,
    heard: float = 1.0,
) -> TinyModel:
    """Write a model of the family with fresh weights and ask transformers.

    Args:
        lengths: of the prompts, in tokens.
        tokens: how many are answered to each.
        context: the model's longest sequence.
        heard: factor of what attention adds. Where it is small a token decides the next one, and answers go in circles.
    """
    kind, differs = FAMILIES[family]
    torch.manual_seed(seed)
    positions = {name: context for name in ("max_position_embeddings", "n_positions") if name in {**SHAPE, **differs}}
    config = transformers.AutoConfig.for_model(kind, **(SHAPE | differs | positions))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        # Biases and norms start at 0 and 1: give them a say.
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name or "ln_" in name else 0.0, std=0.1)
        if "o_proj" in name:
            parameter.data.mul_(heard)
    model.save_pretrained(directory)
    prompts = [torch.randint(3, VOCABULARY, (length,)).tolist() for length in lengths]
    double = model.double().to("cuda" if torch.cuda.is_available() else "cpu")
    found = [greedy(double, prompt, tokens) for prompt in prompts]
    del model, double
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # First-order error of float32: each of 2 L + 1 products of at most n terms adds n · 2⁻²⁴ of the value.
    layers = SHAPE["num_hidden_layers"]
    terms = SHAPE["hidden_size"] + SHAPE["intermediate_size"]
    bound = 2 * (2 * layers + 1) * terms * 2.0**-24 * max(largest for _, _, largest in found)
    return TinyModel(directory, prompts, [ids for ids, _, _ in found], [margins for _, margins, _ in found], bound,
                     context)


def assert_same(model: TinyModel, got: list[list[int]]) -> None:
    """Token for token equal to transformers; a tie that float32 cannot decide may end the comparison early."""
    for prompt, expected, margins, found in zip(model.prompts, model.answers, model.margins, got, strict=True):
        for position, (one, other) in enumerate(zip(expected, found, strict=True)):
            if one != other:
                assert margins[position] < model.bound, (
                    f"prompt of {len(prompt)} tokens, token {position}: {found} instead of {expected}; margin "
                    f"{margins[position]:.2e}, bound {model.bound:.2e}"
                )
                break


def assert_most_are_decided(model: TinyModel) -> None:
    """Check that the bound leaves something to compare, with any seed: most margins lie above it."""
    margins = [margin for of_prompt in model.margins for margin in of_prompt]
    assert sum(margin > model.bound for margin in margins) > 0.7 * len(margins)


@pytest.fixture(scope="session")
def seed() -> int:
    """Fresh for each run; KEPLER_TEST_SEED repeats one."""
    chosen = int(os.environ.get("KEPLER_TEST_SEED") or random.SystemRandom().randrange(1 << 31))
    print(f"\nKEPLER_TEST_SEED={chosen}")
    return chosen


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, seed: int):
    """Function from the name of a family to its TinyModel, made once."""
    made: dict[str, TinyModel] = {}

    def get(family: str) -> TinyModel:
        if family not in made:
            made[family] = make(family, tmp_path_factory.mktemp(family), seed)
        return made[family]

    return get
