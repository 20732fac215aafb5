"""Tiny models as float16 stores them, and tiny quantized checkpoints, with the greedy answers of what they stand for.

The quantizer rounds to nearest. It and the writers share nothing with the port: they follow the formats.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import CONTEXT, FAMILIES, NEW_TOKENS, PROMPT_LENGTHS, SHAPE, TinyModel, greedy
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Groups of 128 columns fit both; half of either is a multiple of 64, for two ranks.
SIZES = {"hidden_size": 128, "intermediate_size": 256}
NOTHING: Mapping[str, Any] = {}
# A mixture in which every token goes through an expert of its own besides.
SHARED = {"qwen2-moe": ("qwen2_moe", {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
                                      "shared_expert_intermediate_size": 128, "decoder_sparse_step": 1})}
# Families that are tried from GGUF files alone.
FROM_FILES = {
    "gemma3": ("gemma3_text", {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 64, "sliding_window": 32,
                               "query_pre_attn_scalar": 64, "num_hidden_layers": 7, "rope_theta": 1e6}),
    "granitemoe": ("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_multiplier": 0.2,
                                  "residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 0.5}),
    "granitemoeshared": ("granitemoeshared", {
        "num_local_experts": 4, "num_experts_per_tok": 2, "attention_multiplier": 0.2, "residual_multiplier": 0.5,
        "embedding_multiplier": 2.0, "logits_scaling": 0.5, "shared_intermediate_size": 256}),
    "olmo2": ("olmo2", {}),
    "glm4": ("glm4", {"head_dim": 64, "partial_rotary_factor": 0.5, "attention_bias": True}),
}


def fresh_model(family: str, seed: int, **differs: Any) -> Any:
    """A model of transformers with random weights, biases and norms among them."""
    kind, own = {**FAMILIES, **SHARED, **FROM_FILES}[family]
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, **{**SHAPE, **SIZES, **own, **differs})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name or "ln_" in name else 0.0, std=0.1)
    return model


def rounding_attention(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any,
                       **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over keys and values that were kept in float16."""
    key, value = key.half().to(query.dtype), value.half().to(query.dtype)
    return sys.modules[type(module).__module__].eager_attention_forward(module, query, key, value, *rest, **named)


ALL_ATTENTION_FUNCTIONS["rounding"] = rounding_attention


def expected(
    model: Any,
    directory: Path,
    half_cache: bool = False,
    lengths: Sequence[int] = PROMPT_LENGTHS,
    tokens: int = NEW_TOKENS,
) -> TinyModel:
    """Prompts of these lengths, and the model's answers of so many tokens, in float64.

    The bound is float32's, as tiny_models has it. With half_cache the reference rounds keys and values to float16, and
    float32 may round single ones the other way. That moves one by a whole step, where rounding moves it by half of one
    at most: the bound is twice, and for two logits again twice, what all roundings together change a logit by.
    """
    prompts = [torch.randint(3, model.config.vocab_size, (length,)).tolist() for length in lengths]
    double = model.double()
    model.config._attn_implementation = "rounding" if half_cache else "eager"
    found = [greedy(double, prompt, tokens) for prompt in prompts]
    terms = sum(SIZES.values())
    bound = 2 * (2 * SHAPE["num_hidden_layers"] + 1) * terms * 2.0**-24 * max(largest for _, _, largest in found)
    if half_cache:
        for prompt, (ids, _, _) in zip(prompts, found, strict=True):
            whole, logits = torch.tensor([prompt + ids]), {}
            for implementation in ("eager", "rounding"):
                model.config._attn_implementation = implementation
                with torch.no_grad():
                    logits[implementation] = double(whole, use_cache=False).logits
            bound = max(bound, 2 * 2 * float((logits["eager"] - logits["rounding"]).abs().max()))
    return TinyModel(directory, prompts, [ids for ids, _, _ in found], [margins for _, margins, _ in found], bound,
                     CONTEXT)


def stored_as_half(name: str, parameter: torch.Tensor) -> bool:
    """Matrices: linear layers, embeddings and heads; not the positions of GPT-2 nor routers: plain torch layers."""
    return parameter.dim() == 2 and not any(part in name for part in ("wpe", ".gate.", "shared_expert_gate"))


def half_model(
    family: str,
    directory: Path,
    seed: int,
    dtype: torch.dtype = torch.float32,
    asked: Mapping[str, Any] = NOTHING,
    **differs: Any,
) -> TinyModel:
    """A checkpoint in `dtype`, and the answers of its weights rounded to float16, over a float16 cache.

    Args:
        asked: lengths and tokens, as `expected` takes them.
    """
    fresh_model(family, seed, **differs).to(dtype).save_pretrained(directory)
    # Read anew: to() rounds the frequencies of the positions too.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, torch_dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if stored_as_half(name, parameter):
                parameter.copy_(parameter.half())
    made = expected(model, directory, half_cache=True, **asked)
    if routing_is_decided(model, made):
        return made
    return half_model(family, directory, seed + 1, dtype, asked, **differs)


@torch.no_grad()
def routing_is_decided(model: Any, made: TinyModel) -> bool:
    """Whether rounding keys and values leaves each token the same experts: no bound on logits holds where it does not.

    The gap between the last expert that is chosen and the next is more than what all of the roundings change of it.
    """
    model.config._attn_implementation = "eager"
    exact = router_logits(model, made)
    model.config._attn_implementation = "rounding"
    rounded = router_logits(model, made)
    return bool((gap(model, rounded) > 2 * (exact - rounded).abs().amax(1)).all())


@torch.no_grad()
def router_logits(model: Any, made: TinyModel) -> torch.Tensor:
    """What the routers say of each token of prompts and answers, [tokens of all layers, experts]; [0, 1] without."""
    seen: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda *call: seen.append(call[-1].flatten(0, -2)))
        for name, module in model.named_modules() if name.endswith((".gate", ".router.layer"))
    ]  # fmt: skip
    for prompt, ids in zip(made.prompts, made.answers, strict=True):
        model(torch.tensor([prompt + ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.cat(seen) if seen else torch.empty(0, 1)


def gap(model: Any, logits: torch.Tensor) -> torch.Tensor:
    """Distance of the last expert that each token takes from the next one; [0] without experts."""
    if not len(logits):
        return logits.new_empty(0)
    top = logits.topk(model.config.num_experts_per_tok + 1).values
    return top[:, -2] - top[:, -1]


def experts_of(model: Any, logits: torch.Tensor) -> list[set[int]]:
    """The experts that each token takes."""
    return [set(row.topk(model.config.num_experts_per_tok).indices.tolist()) for row in logits]


@dataclass(frozen=True)
class Rounded:
    """A weight [n, k], rounded to codes; value = scale · (code - zero).

    Attributes:
        codes: int64 [n, k].
        scales: float32 [n, groups], numbers of float16.
        zeros: int64 [n, groups].
        group_of_column: int64 [k].
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    group_of_column: torch.Tensor

    @property
    def values(self) -> torch.Tensor:
        zeros, scales = (part[:, self.group_of_column] for part in (self.zeros, self.scales))
        return (self.codes - zeros).float() * scales


def round_to_nearest(weight: torch.Tensor, bits: int, group: int, symmetric: bool, scattered: bool) -> Rounded:
    """The weight in codes; `scattered`: the columns of a group lie anywhere (act-order)."""
    n, k = weight.shape
    group = k if group == -1 else group
    order = torch.arange(k)
    if scattered:
        # Layers that vLLM fuses have the same input, so the same order.
        order = torch.randperm(k, generator=torch.Generator().manual_seed(k))
    group_of_column = torch.empty(k, dtype=torch.long)
    group_of_column[order] = torch.arange(k) // group
    parts = weight[:, order].view(n, k // group, group)
    most = 2**bits - 1
    if symmetric:
        scales = (2 * parts.abs().amax(-1) / most).half().float()
        zeros = torch.full(scales.shape, 2 ** (bits - 1))
    else:
        low, high = parts.amin(-1).clamp_max(0), parts.amax(-1).clamp_min(0)
        scales = ((high - low) / most).half().float()
        # GPTQ's first format stores one less, and no -1.
        zeros = (-low / scales).round().long().clamp(1, most)
    codes = ((weight / scales[:, group_of_column]).round().long() + zeros[:, group_of_column]).clamp(0, most)
    return Rounded(codes, scales, zeros, group_of_column)


def words_of(codes: torch.Tensor, bits: int, dim: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """int32 words of codes packed along `dim`; a word holds, from its lowest bits on, those that `order` names."""
    per_word = 32 // bits
    split = codes.unflatten(dim, (-1, per_word))
    words = torch.zeros(split.select(dim + 1, 0).shape, dtype=torch.long)
    for place, member in enumerate(order or range(per_word)):
        words |= split.select(dim + 1, member) << bits * place
    return torch.where(words >= 2**31, words - 2**32, words).int().contiguous()


def gptq(rounded: Rounded, bits: int, stored_less: int) -> dict[str, torch.Tensor]:
    return {
        "qweight": words_of(rounded.codes.T, bits, 0),
        "qzeros": words_of(rounded.zeros.T - stored_less, bits, 1),
        "scales": rounded.scales.T.half().contiguous(),
        "g_idx": rounded.group_of_column.int(),
    }


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def awq(rounded: Rounded) -> dict[str, torch.Tensor]:
    return {
        "qweight": words_of(rounded.codes.T, 4, 1, AWQ_ORDER),
        "qzeros": words_of(rounded.zeros.T, 4, 1, AWQ_ORDER),
        "scales": rounded.scales.T.half().contiguous(),
    }


def compressed_tensors(rounded: Rounded, bits: int, symmetric: bool) -> dict[str, torch.Tensor]:
    tensors = {
        "weight_packed": words_of(rounded.codes, bits, 1),
        "weight_scale": rounded.scales.half(),
        "weight_shape": torch.tensor(rounded.codes.shape),
    }
    if not symmetric:
        tensors["weight_zero_point"] = words_of(rounded.zeros, bits, 0)
    return tensors


@dataclass(frozen=True)
class Kind:
    """A kind of quantized checkpoint.

    Attributes:
        method: as config.json names it.
        differs: what its quantization_config has that is not in the usual one.
        kept: parts of the names of layers that are not quantized.
    """

    method: str
    bits: int = 4
    group: int = 32
    symmetric: bool = False
    act_order: bool = False
    version: str = "gptq"
    kept: tuple[str, ...] = ()

    def config(self) -> dict[str, Any]:
        if self.method == "gptq":
            return {"quant_method": "gptq", "bits": self.bits, "group_size": self.group, "desc_act": self.act_order,
                    "sym": self.symmetric, "checkpoint_format": self.version, "lm_head": False,
                    "dynamic": {f"-:.*{part}.*": {} for part in self.kept}}
        if self.method == "awq":
            return {"quant_method": "awq", "bits": 4, "group_size": self.group, "zero_point": True, "version": "gemm",
                    "modules_to_not_convert": list(self.kept) or None}
        weights = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric, "dynamic": False,
                   "actorder": None, "strategy": "channel" if self.group == -1 else "group",
                   "group_size": None if self.group == -1 else self.group}
        return {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
                "kv_cache_scheme": None, "sparsity_config": {},
                "ignore": ["lm_head", *(f"re:.*{part}.*" for part in self.kept)],
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None,
                                              "output_activations": None}}}

    def tensors(self, rounded: Rounded) -> dict[str, torch.Tensor]:
        if self.method == "gptq":
            return gptq(rounded, self.bits, 1 if self.version == "gptq" else 0)
        return awq(rounded) if self.method == "awq" else compressed_tensors(rounded, self.bits, self.symmetric)


def write(model: Any, directory: Path, kind: Kind) -> set[str]:
    """Write the model's checkpoint of this kind, and give the model the weights that it stands for.

    Returns the names of the weights that are quantized.
    """
    quantized = set()
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name == "lm_head" or any(part in name for part in kind.kept):
            continue
        weight = tensors.pop(f"{name}.weight")
        rounded = round_to_nearest(weight, kind.bits, kind.group, kind.symmetric, kind.act_order)
        tensors |= {f"{name}.{own}": tensor for own, tensor in kind.tensors(rounded).items()}
        with torch.no_grad():
            module.weight.copy_(rounded.values)
        quantized.add(f"{name}.weight")
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    config = {**model.config.to_dict(), "architectures": [type(model).__name__], "torch_dtype": "float32"}
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": kind.config()}))
    return quantized


def quantized_model(
    family: str, directory: Path, seed: int, kind: Kind, asked: Mapping[str, Any] = NOTHING, half: bool = False,
    **differs: Any,
) -> TinyModel:
    """A checkpoint of this kind, and the answers of the weights that it stands for; `asked` as half_model has it.

    half: what is not quantized, and the cache, as `dtype: half` stores them.
    """
    model = fresh_model(family, seed, **differs)
    quantized = write(model, directory, kind)
    if half:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if stored_as_half(name, parameter) and name not in quantized:
                    parameter.copy_(parameter.half())
    return expected(model, directory, half_cache=half, **asked)


def rewrite_config(model: TinyModel, directory: Path, change: Callable[[dict[str, Any]], None]) -> TinyModel:
    """A copy of the checkpoint whose config.json is changed."""
    directory.mkdir()
    for path in model.directory.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))
    return replace(model, directory=directory)


def rewrite_tensors(
    model: TinyModel, directory: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> TinyModel:
    """A copy of the checkpoint whose tensors are changed."""
    model = rewrite_config(model, directory, lambda whole: None)
    path = model.directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    return model
