"""Tiny GGUF files, with the greedy answers of what the gguf package takes them for.

That package has no quantizer for the K types: those here round to nearest and follow ggml-quants.h.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy
import quantized_models
import torch
from gguf import GGMLQuantizationType as Type
from quantized_models import expected, fresh_model
from tiny_models import TinyModel
from vllm_kepler.checkpoint.files import find_gguf_alone
from vllm_kepler.checkpoint.gguf_model import write_model

# A block of the K types is 256 columns.
SIZES = {"hidden_size": 256, "intermediate_size": 512}
# Weights at which attention neither ignores its scores nor makes much of their rounding.
SPREAD = {"initializer_range": 0.06}
# Tokens of the prompts.
LENGTHS = (1, 7, 33, 70)
WITH_OFFSETS = (Type.Q4_1, Type.Q5_1, Type.Q4_K, Type.Q5_K)


def in_6_bits(wanted: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """float16 [..., 1] and whole numbers up to 63, whose product is near `wanted` [..., 8], which is not below 0."""
    unit = (wanted.max(-1, keepdims=True) / 63).astype(numpy.float16)
    return unit, (wanted / numpy.maximum(unit.astype(numpy.float32), 1e-30)).round().clip(0, 63).astype(numpy.uint8)


def with_offsets(weight: numpy.ndarray, bits: int) -> numpy.ndarray:
    """Q4_K or Q5_K: a block has float16 scales of 8 scales and 8 minima of 6 bits, fifth bits (Q5_K) and nibbles."""
    most = 2**bits - 1
    parts = weight.reshape(len(weight), -1, 8, 32)
    low = numpy.minimum(parts.min(-1), 0)
    d, scales = in_6_bits((parts.max(-1).clip(0) - low) / most)
    dmin, mins = in_6_bits(-low)
    step = (d.astype(numpy.float32) * scales)[..., None]
    offset = (dmin.astype(numpy.float32) * mins)[..., None]
    codes = ((parts + offset) / numpy.where(step == 0, 1, step)).round().clip(0, most).astype(numpy.uint8)
    packed = numpy.concatenate([
        scales[..., :4] | scales[..., 4:] >> 4 << 6, mins[..., :4] | mins[..., 4:] >> 4 << 6,
        scales[..., 4:] & 15 | (mins[..., 4:] & 15) << 4,
    ], -1)
    fifths = [sum(codes[..., group, :] >> 4 << group for group in range(8))] if bits == 5 else []
    nibbles = codes & 15
    nibbles = (nibbles[..., ::2, :] | nibbles[..., 1::2, :] << 4).reshape(*codes.shape[:2], 128)
    return numpy.concatenate([d.view(numpy.uint8), dmin.view(numpy.uint8), packed, *fifths, nibbles], -1)


def scales_and_offsets(rows: numpy.ndarray, kind: Type) -> tuple[numpy.ndarray, numpy.ndarray]:
    """float32 [n, groups, 1] each, of a type that has offsets; value = scale · code - offset."""
    blocks = rows.reshape(len(rows), -1, gguf.GGML_QUANT_SIZES[kind][1])
    first, second = (blocks[..., at : at + 2].copy().view(numpy.float16).astype(numpy.float32) for at in (0, 2))
    if kind in (Type.Q4_1, Type.Q5_1):
        return first, -second
    scales, mins = (
        part.reshape(*blocks.shape[:2], 8) for part in gguf.quants.Q4_K.get_scale_min(blocks[..., 4:16].reshape(-1, 12))
    )
    return tuple((unit * part).reshape(len(rows), -1, 1) for unit, part in ((first, scales), (second, mins)))


def rounded(rows: numpy.ndarray, kind: Type) -> numpy.ndarray:
    """What the rows stand for once scale and offset / scale are rounded to float16."""
    values = gguf.dequantize(rows, kind)
    scales, offsets = scales_and_offsets(rows, kind)
    # The largest scale is brought near float16's end, by a power of two.
    unit = 2.0 ** (numpy.frexp(numpy.abs(scales).max())[1] - 15)
    kept = (scales / unit).astype(numpy.float16).astype(numpy.float32) * unit
    assert (kept != 0).all()
    codes = ((values.reshape(len(rows), -1, 32) + offsets) / scales).round()
    zeros = (offsets / kept).astype(numpy.float16).astype(numpy.float32)
    return (kept * (codes - zeros)).reshape(values.shape)


def q6_k(weight: numpy.ndarray) -> numpy.ndarray:
    """A block has low nibbles, then upper pairs of bits, 16 signed scales and their float16 scale."""
    parts = weight.reshape(len(weight), -1, 16, 16)
    wanted = numpy.abs(parts).max(-1) / 31
    d = (wanted.max(-1, keepdims=True) / 127).astype(numpy.float16)
    scales = (wanted / numpy.maximum(d.astype(numpy.float32), 1e-30)).round().clip(0, 127).astype(numpy.int8)
    step = (d.astype(numpy.float32) * scales)[..., None]
    codes = ((parts / numpy.where(step == 0, 1, step)).round().clip(-32, 31) + 32).astype(numpy.uint8)
    # Two halves of four runs of 32 columns.
    runs = codes.reshape(*codes.shape[:2], 2, 4, 32)
    low = (runs[..., :2, :] & 15 | (runs[..., 2:, :] & 15) << 4).reshape(*codes.shape[:2], 128)
    high = sum(runs[..., run, :] >> 4 << 2 * run for run in range(4)).reshape(*codes.shape[:2], 64)
    return numpy.concatenate([low, high, scales.view(numpy.uint8), d.view(numpy.uint8)], -1)


def stored(weight: numpy.ndarray, kind: Type) -> numpy.ndarray:
    """float32 [n, k] as a file of this type has it."""
    if kind == Type.Q6_K:
        return q6_k(weight).reshape(len(weight), -1)
    if kind in (Type.Q4_K, Type.Q5_K):
        return with_offsets(weight, 4 if kind == Type.Q4_K else 5).reshape(len(weight), -1)
    return gguf.quantize(weight, kind)


def permuted(rows: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Rows of queries or keys as llama.cpp's converter orders them: those of a head's halves by turns."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write(
    model: Any, directory: Path, kind_of: Callable[[str], Type], name: str = "model.gguf",
    change: Callable[[dict[str, tuple[numpy.ndarray, Type]]], None] = lambda tensors: None,
) -> dict[str, torch.Tensor]:
    """Write config.json and the model's GGUF file, and give the model the weights that it stands for.

    Returns the linear layers' weights that the port rounds, as it does.

    Args:
        kind_of: how a matrix is stored, by the file's name for it.
        change: what is done to the file's tensors before they are written.
    """
    config = model.config
    config.architectures, config.torch_dtype = [type(model).__name__], torch.float32
    config.save_pretrained(directory)
    architecture = "llama" if config.model_type == "mistral" else config.model_type
    arch = {known: key for key, known in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors, kept = {}, {}
    for own, parameter in model.named_parameters():
        base, _, suffix = own.rpartition(".")
        called = f"{names.get_name(base)}.{suffix}"
        weight = parameter.detach().numpy().copy()
        kind = kind_of(called) if weight.ndim == 2 else Type.F32
        rows = stored(weight, kind)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(gguf.dequantize(rows, kind).copy()))
        if kind in WITH_OFFSETS and "blk." in called:
            kept[own] = torch.from_numpy(rounded(rows, kind))
        if architecture == "llama" and ("attn_q." in called or "attn_k." in called):
            heads = config.num_attention_heads if "attn_q." in called else config.num_key_value_heads
            rows = permuted(rows, heads)
        tensors[called] = (rows, kind)
    if getattr(config, "rope_scaling", None):
        # llama.cpp's converter writes the factors; config.json says how they are made.
        tensors["rope_freqs.weight"] = (numpy.ones(32, numpy.float32), Type.F32)
    change(tensors)
    writer = gguf.GGUFWriter(directory / name, architecture)
    # Parts of fused layers in another order than vLLM has them.
    for called, (rows, kind) in sorted(tensors.items()):
        writer.add_tensor(called, numpy.ascontiguousarray(rows), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


# Architectures of files whose models transformers calls otherwise.
ARCHITECTURES = {"mistral": "llama", "mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe",
                 "gemma3_text": "gemma3", "granitemoeshared": "granitemoe"}
PERMUTED, FROM_ONE = ("llama", "granite", "granitemoe"), ("gemma", "gemma2", "gemma3")
EXPERTS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}


def laid_out(model: Any, architecture: str) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """The tensors of a file: its name for each, and the weights, or parts of one, of which it is a stack.

    In the order in which llama.cpp's converter has them, and by the gguf package's names.
    """
    arch = {known: key for key, known in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    stacks: dict[str, list[torch.Tensor]] = {}
    for own, parameter in model.named_parameters():
        weight, layer = parameter.data, (re.findall(r"layers\.(\d+)\.", own) or [""])[0]
        expert = re.search(r"experts\.\d+\.(\w+)\.weight$", own)
        if expert:
            stacks.setdefault(f"blk.{layer}.ffn_{EXPERTS[expert[1]]}_exps.weight", []).append(weight)
        elif own.endswith("shared_mlp.input_linear.weight"):
            for part, half in zip(("gate", "up"), weight.chunk(2), strict=True):
                yield f"blk.{layer}.ffn_{part}_shexp.weight", [half]
        elif own.endswith("shared_mlp.output_linear.weight"):
            yield f"blk.{layer}.ffn_down_shexp.weight", [weight]
        elif own.endswith("input_linear.weight"):
            for part, half in zip(("gate", "up"), weight.chunk(2, dim=1), strict=True):
                yield f"blk.{layer}.ffn_{part}_exps.weight", list(half)
        elif own.endswith("output_linear.weight"):
            yield f"blk.{layer}.ffn_down_exps.weight", list(weight)
        else:
            base, _, suffix = own.rpartition(".")
            yield f"{names.get_name(base)}.{suffix}", [weight]
    yield from stacks.items()


def convert(called: str, weight: numpy.ndarray, config: Any, architecture: str, back: bool = False) -> numpy.ndarray:
    """A weight as the converter changes it for the file, or `back` again."""
    if architecture in FROM_ONE and called.endswith("norm.weight"):
        return weight + (-1 if back else 1)
    if architecture in PERMUTED and (".attn_q." in called or ".attn_k." in called):
        heads = config.num_attention_heads if ".attn_q." in called else config.num_key_value_heads
        if back:
            return weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
        return permuted(weight, heads)
    return weight


def header(writer: gguf.GGUFWriter, config: Any) -> None:
    """Values as llama.cpp's converter writes them, and a small tokenizer."""
    of = config.to_dict().get
    heads = config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    if of("norm_epsilon"):
        writer.add_layer_norm_eps(config.norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    size = of("head_dim") or config.hidden_size // heads
    if of("head_dim"):
        writer.add_key_length(size)
        writer.add_value_length(size)
    if of("partial_rotary_factor"):
        writer.add_rope_dimension_count(int(size * config.partial_rotary_factor))
    for keys, add in (
        (("num_local_experts", "num_experts"), writer.add_expert_count),
        (("num_experts_per_tok",), writer.add_expert_used_count),
        (("shared_intermediate_size",), writer.add_expert_shared_feed_forward_length),
        (("attn_logit_softcapping",), writer.add_attn_logit_softcapping),
        (("final_logit_softcapping",), writer.add_final_logit_softcapping),
        (("attention_multiplier",), writer.add_attention_scale),
        (("embedding_multiplier",), writer.add_embedding_scale),
        (("residual_multiplier",), writer.add_residual_scale), (("logits_scaling",), writer.add_logit_scale),
    ):
        for key in keys:
            if of(key):
                add(of(key))
    if config.model_type.startswith("gemma") and of("sliding_window"):
        writer.add_sliding_window(config.sliding_window)
    tokens = ["<unk>", "<s>", "</s>", *map(chr, range(0x4E00, 0x4E00 + config.vocab_size - 3))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3, *[1] * (len(tokens) - 3)])


def model_alone(
    family: str, directory: Path, seed: int, kind_of: Callable[[str], Type], split: int = 0, **differs: Any
) -> TinyModel:
    """A GGUF file and nothing else, the directory that is made of it, and the answers of the weights it stands for.

    split: tensors of a part, of which there are several then.
    """
    # expected() asks in float64: from here on, so that what is kept stays the model's own memory.
    model = fresh_model(family, seed, **{**SIZES, **SPREAD, **differs}).double()
    config, kept = model.config, []
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    directory.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(directory / "model.gguf", architecture, split_max_tensors=split)
    header(writer, config)
    for called, weights in laid_out(model, architecture):
        kind = kind_of(called) if weights[0].ndim == 2 and "ffn_gate_inp" not in called else Type.F32
        rows = []
        for weight in weights:
            rows.append(stored(convert(called, weight.float().numpy(), config, architecture), kind))
            makers = [gguf.dequantize, rounded] if kind in WITH_OFFSETS and "blk." in called else [gguf.dequantize]
            values = [
                torch.from_numpy(numpy.ascontiguousarray(
                    convert(called, make(rows[-1], kind).reshape(weight.shape), config, architecture, back=True)
                ))
                for make in makers
            ]
            weight.copy_(values[0])
            kept += [(weight, value) for value in values[1:]]
        data = rows[0] if len(rows) == 1 and "_exps" not in called else numpy.stack(rows)
        writer.add_tensor(called, numpy.ascontiguousarray(data.squeeze()), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    served = directory / "served"
    write_model(find_gguf_alone(str(directory)), str(served))
    made = with_bound(model, expected(model, served, lengths=LENGTHS, tokens=16), kept)
    return made or model_alone(family, directory / "other", seed + 1, kind_of, split, **differs)


def gguf_model(family: str, directory: Path, seed: int, kind_of: Callable[[str], Type], **differs: Any) -> TinyModel:
    """A GGUF file, and the answers of the weights that it stands for.

    The bound is float32's, and twice the most that the rounding of scales and zeros to float16 changes a logit of the
    answers: a margin is the difference of two.
    """
    model = fresh_model(family, seed, **{**SIZES, **SPREAD, **differs})
    kept, parameters = write(model, directory, kind_of), dict(model.named_parameters())
    found = expected(model, directory, lengths=LENGTHS, tokens=16)
    made = with_bound(model, found, [(parameters[own].data, value) for own, value in kept.items()])
    return made or gguf_model(family, directory / "other", seed + 1, kind_of, **differs)


@torch.no_grad()
def with_bound(model: Any, found: TinyModel, kept: list[tuple[torch.Tensor, torch.Tensor]]) -> TinyModel | None:
    """A model with the bound of its margins; `kept`: weights that the port rounds, and what it makes of them.

    None where that, or float32, may give a token other experts: no bound holds then.
    """
    exact = quantized_models.router_logits(model, found)
    # expected() has its own sizes.
    bound = found.bound * sum(SIZES.values()) / sum(quantized_models.SIZES.values())
    if kept:
        wholes = [torch.tensor([prompt + ids]) for prompt, ids in zip(found.prompts, found.answers, strict=True)]
        logits = [torch.cat([model(whole, use_cache=False).logits[0] for whole in wholes])]
        for weight, value in kept:
            weight.copy_(value)
        logits.append(torch.cat([model(whole, use_cache=False).logits[0] for whole in wholes]))
        bound += 2 * float((logits[0] - logits[1]).abs().max())
    routed = quantized_models.router_logits(model, found)
    if (quantized_models.gap(model, routed) < found.bound).any() or (
        quantized_models.experts_of(model, exact) != quantized_models.experts_of(model, routed)
    ):
        return None
    return replace(found, bound=bound)
