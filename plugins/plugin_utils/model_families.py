"""Families of models: what a config.json says, and the tensors that a checkpoint of it holds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..module_utils.checkpoint import config as checkpoint_config
from ..module_utils.checkpoint import gguf
from ..module_utils.checkpoint.engine_models import DEFAULTS, LANGUAGE_PARTS
from ..module_utils.checkpoint.errors import CheckpointError, UnsupportedQuantizationError, shortened
from ..module_utils.checkpoint.quantization import CODES, EXPERT_KEYS, Quantization, Scheme, mismatch, read_quantization
from ..module_utils.errors import KeplerError

# vLLM 0.9.2's for a config that names no length.
DEFAULT_POSITIONS = 2048


class CapacityError(KeplerError):
    """A config that the planner cannot take: what was found and what is expected."""


class UnknownModelError(CapacityError):
    """A config of a kind that the planner does not know, though the engine may."""


@dataclass(frozen=True)
class Tensor:
    """Tensors of one shape; numbers in the name are written as *.

    Attributes:
        plain: whether it is a matrix that a quantized checkpoint leaves as it was.
    """

    name: str
    shape: tuple[int, ...]
    count: int = 1
    plain: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.shape) * self.count


@dataclass(frozen=True)
class Model:
    """The values of a config that the engine reads.

    Attributes:
        positions: longest sequence; None where the config sets no bound.
        window: whether all layers attend to a window alone.
        multimodal: whether it takes images or sounds.
        rotary: elements of the table of angles of the rotary embedding, 0 where there is none.
        gated: whether the feed-forward layers are gated.
        query_norm, fused_kept, kept: see Family.
        latent: numbers of a head's keys and values that latent attention unpacks at once; 0 for others.
        experts, chosen: experts of a layer, and how many a token goes through; 0 where there are none.
        quantization: None for an unquantized checkpoint, and for one that is refused.
    """

    model_type: str
    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    positions: int | None
    window: bool
    multimodal: bool
    tied: bool
    rotary: int
    gated: bool
    query_norm: bool
    fused_kept: bool
    kept: int
    latent: int
    experts: int
    chosen: int
    expert_intermediate: int
    quantization: Quantization | None
    config: dict[str, Any]

    def kv_heads_of(self, gpus: int) -> int:
        """Heads of keys and values on a GPU: each GPU has one at least."""
        return max(1, self.kv_heads // gpus)


# No size of a model is larger, and no model is stretched further.
MOST, MOST_LAYERS, MOST_FACTOR = 1 << 32, 1 << 14, 1 << 16


def _first(config: dict[str, Any], names: Iterable[str]) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


def number(config: dict[str, Any], *names: str, default: int | None = None, most: int = MOST) -> int:
    """The first of the keys `names` that the config has, an integer of 1 to `most`.

    Raises CapacityError where there is none and no default, or where it is no such integer.
    """
    value = _first(config, names)
    if value is None:
        if default is None:
            raise UnknownModelError(f"a config.json without {names[0]}", "the config.json of a language model")
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        found = next(name for name in names if config.get(name) is not None)
        raise CapacityError(f"{found} {shortened(repr(value))} in config.json", f"an integer of 1 to {most}")
    return value


# -- Families: the tensors of a checkpoint, as transformers names them ------------------------------------------------

Tensors = dict[str, tuple[int, ...]]


def _linear(name: str, rows: int, columns: int, bias: bool = False) -> Tensors:
    weight: Tensors = {f"{name}.weight": (rows, columns)}
    return {**weight, **({f"{name}.bias": (rows,)} if bias else {})}


def _norm(name: str, size: int, bias: bool = False) -> Tensors:
    return {f"{name}.weight": (size,), **({f"{name}.bias": (size,)} if bias else {})}


def _attention(model: Model, qkv_bias: bool, out_bias: bool, out: str = "self_attn.o_proj") -> Tensors:
    """Separate projections of queries, keys and values."""
    q, kv = model.heads * model.head_size, model.kv_heads * model.head_size
    return {
        **_linear("self_attn.q_proj", q, model.hidden, qkv_bias),
        **_linear("self_attn.k_proj", kv, model.hidden, qkv_bias),
        **_linear("self_attn.v_proj", kv, model.hidden, qkv_bias),
        **_linear(out, model.hidden, q, out_bias),
    }


def _gated(model: Model, prefix: str, size: int, bias: bool = False) -> Tensors:
    return {
        **_linear(f"{prefix}.gate_proj", size, model.hidden, bias),
        **_linear(f"{prefix}.up_proj", size, model.hidden, bias),
        **_linear(f"{prefix}.down_proj", model.hidden, size, bias),
    }


def _whole(
    model: Model, layer: Tensors, prefix: str = "model.", layers: str = "layers", embedding: str = "embed_tokens",
    norm: str = "norm", norm_bias: bool = False, head: str = "lm_head", head_bias: bool = False,
    other: Tensors | None = None,
) -> list[Tensor]:
    """A decoder of equal layers with its embedding, last norm and head."""
    once = {
        **_linear(prefix + embedding, model.vocabulary, model.hidden), **_norm(prefix + norm, model.hidden, norm_bias),
        **{prefix + name: shape for name, shape in (other or {}).items()},
        **({} if model.tied else _linear(head, model.vocabulary, model.hidden, head_bias)),
    }
    return [Tensor(name, shape) for name, shape in once.items()] + [
        Tensor(f"{prefix}{layers}.*.{name}", shape, model.layers) for name, shape in layer.items()
    ]


NORMS = ("input_layernorm", "post_attention_layernorm")
GEMMA_NORMS = (*NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def _head_norms(size: int, other: int | None = None) -> Tensors:
    return {"self_attn.q_norm.weight": (size,), "self_attn.k_norm.weight": (other or size,)}


def _llama_like(
    norms: tuple[str, ...] = NORMS, qkv_bias: bool = False, head_norms: bool = False, wide_norms: bool = False
) -> Callable[[Model], list[Tensor]]:
    """Llama and what differs from it in norms and biases.

    Args:
        qkv_bias: queries, keys and values have a bias whatever the config says.
        head_norms, wide_norms: queries and keys are normalized, head by head or as a whole.
    """

    def tensors(model: Model) -> list[Tensor]:
        bias = bool(model.config.get("attention_bias"))
        layer = {
            **{f"{name}.weight": (model.hidden,) for name in norms},
            **_attention(model, qkv_bias or bias, bias and not qkv_bias),
            **_gated(model, "mlp", model.intermediate, bool(model.config.get("mlp_bias"))),
        }
        if head_norms:
            layer.update(_head_norms(model.head_size))
        if wide_norms:
            layer.update(_head_norms(model.heads * model.head_size, model.kv_heads * model.head_size))
        return _whole(model, layer)

    return tensors


def _phi3(model: Model) -> list[Tensor]:
    q, kv = model.heads * model.head_size, model.kv_heads * model.head_size
    return _whole(model, {
        **{f"{name}.weight": (model.hidden,) for name in NORMS},
        **_linear("self_attn.qkv_proj", q + 2 * kv, model.hidden), **_linear("self_attn.o_proj", model.hidden, q),
        **_linear("mlp.gate_up_proj", 2 * model.intermediate, model.hidden),
        **_linear("mlp.down_proj", model.hidden, model.intermediate),
    })


def _starcoder2(model: Model) -> list[Tensor]:
    bias = bool(model.config.get("use_bias", True))
    return _whole(model, {
        **_norm("input_layernorm", model.hidden, True), **_norm("post_attention_layernorm", model.hidden, True),
        **_attention(model, bias, bias),
        **_linear("mlp.c_fc", model.intermediate, model.hidden, bias),
        **_linear("mlp.c_proj", model.hidden, model.intermediate, bias),
    }, norm_bias=True)


def _phi(model: Model) -> list[Tensor]:
    return _whole(model, {
        **_norm("input_layernorm", model.hidden, True), **_attention(model, True, True, "self_attn.dense"),
        **_linear("mlp.fc1", model.intermediate, model.hidden, True),
        **_linear("mlp.fc2", model.hidden, model.intermediate, True),
    }, norm="final_layernorm", norm_bias=True, head_bias=True)


def _gpt2(model: Model) -> list[Tensor]:
    # Conv1D: matrices lie the other way round.
    size = model.hidden
    return _whole(model, {
        **_norm("ln_1", size, True), **_norm("ln_2", size, True),
        "attn.c_attn.weight": (size, 3 * size), "attn.c_attn.bias": (3 * size,),
        "attn.c_proj.weight": (size, size), "attn.c_proj.bias": (size,),
        "mlp.c_fc.weight": (size, model.intermediate), "mlp.c_fc.bias": (model.intermediate,),
        "mlp.c_proj.weight": (model.intermediate, size), "mlp.c_proj.bias": (size,),
    }, "transformer.", "h", "wte", "ln_f", True,
        other={"wpe.weight": (number(model.config, "n_positions", "max_position_embeddings"), size)})


def _bloom(model: Model) -> list[Tensor]:
    size = model.hidden
    return _whole(model, {
        **_norm("input_layernorm", size, True), **_norm("post_attention_layernorm", size, True),
        **_linear("self_attention.query_key_value", 3 * size, size, True),
        **_linear("self_attention.dense", size, size, True),
        **_linear("mlp.dense_h_to_4h", 4 * size, size, True), **_linear("mlp.dense_4h_to_h", size, 4 * size, True),
    }, "transformer.", "h", "word_embeddings", "ln_f", True,
        other=_norm("word_embeddings_layernorm", size, True))


def _gpt_neox(model: Model) -> list[Tensor]:
    size, bias = model.hidden, bool(model.config.get("attention_bias", True))
    return _whole(model, {
        **_norm("input_layernorm", size, True), **_norm("post_attention_layernorm", size, True),
        **_linear("attention.query_key_value", 3 * size, size, bias), **_linear("attention.dense", size, size, bias),
        **_linear("mlp.dense_h_to_4h", model.intermediate, size, True),
        **_linear("mlp.dense_4h_to_h", size, model.intermediate, True),
    }, "gpt_neox.", embedding="embed_in", norm="final_layer_norm", norm_bias=True, head="embed_out")


def _gptj(model: Model) -> list[Tensor]:
    size = model.hidden
    return _whole(model, {
        **_norm("ln_1", size, True),
        **{name.replace("self_attn", "attn"): shape
           for name, shape in _attention(model, False, False, "self_attn.out_proj").items()},
        **_linear("mlp.fc_in", model.intermediate, size, True),
        **_linear("mlp.fc_out", size, model.intermediate, True),
    }, "transformer.", "h", "wte", "ln_f", True, head_bias=True)


def _opt(model: Model) -> list[Tensor]:
    size, bias = model.hidden, bool(model.config.get("enable_bias", True))
    if number(model.config, "word_embed_proj_dim", default=size) != size:
        raise UnknownModelError("an OPT model with word_embed_proj_dim and no safetensors", "weights in safetensors")
    return _whole(model, {
        **_attention(model, bias, bias, "self_attn.out_proj"),
        **_norm("self_attn_layer_norm", size, True), **_norm("final_layer_norm", size, True),
        **_linear("fc1", model.intermediate, size, bias), **_linear("fc2", size, model.intermediate, bias),
    }, "model.decoder.", norm="final_layer_norm", norm_bias=True,
        other={"embed_positions.weight": (number(model.config, "max_position_embeddings") + 2, size)})


def _falcon(model: Model) -> list[Tensor]:
    size, bias = model.hidden, bool(model.config.get("bias"))
    new = bool(model.config.get("new_decoder_architecture"))
    parallel = bool(model.config.get("parallel_attn", True))
    two = new and model.config.get("num_ln_in_parallel_attn") in (None, 2)
    norms = ["ln_attn", "ln_mlp"] if two else ["input_layernorm"]
    if not new and not parallel:
        norms.append("post_attention_layernorm")
    return _whole(model, {
        **{key: shape for name in norms for key, shape in _norm(name, size, True).items()},
        **_linear("self_attention.query_key_value", (model.heads + 2 * model.kv_heads) * model.head_size, size, bias),
        **_linear("self_attention.dense", size, size, bias),
        **_linear("mlp.dense_h_to_4h", model.intermediate, size, bias),
        **_linear("mlp.dense_4h_to_h", size, model.intermediate, bias),
    }, "transformer.", "h", "word_embeddings", "ln_f", True)


def _mixtral(model: Model) -> list[Tensor]:
    size, inner = model.hidden, model.expert_intermediate
    expert = {"w1.weight": (inner, size), "w2.weight": (size, inner), "w3.weight": (inner, size)}
    return _whole(model, {
        **{f"{name}.weight": (size,) for name in NORMS}, **_attention(model, False, False),
        "block_sparse_moe.gate.weight": (model.experts, size),
    }) + [
        Tensor(f"model.layers.*.block_sparse_moe.experts.*.{name}", shape, model.layers * model.experts)
        for name, shape in expert.items()
    ]


def _sparse_layers(model: Model, router: Tensors, sparse: int) -> list[Tensor]:
    """MLPs of all layers: `sparse` of them have experts and what is in `router`, the rest one MLP each."""
    of_some = (
        (router, sparse), (_gated(model, "mlp", model.intermediate), model.layers - sparse),
        (_gated(model, "mlp.experts.*", model.expert_intermediate), sparse * model.experts),
    )
    return [
        Tensor(f"model.layers.*.{name}", shape, count)
        for part, count in of_some if count for name, shape in part.items()
    ]


def _qwen_moe(qkv_bias: bool, head_norms: bool, wide_norms: bool = False) -> Callable[[Model], list[Tensor]]:
    """Experts beside dense layers, and in Qwen 2 an expert that every token goes through."""

    def tensors(model: Model) -> list[Tensor]:
        config, bias = model.config, bool(model.config.get("attention_bias"))
        layer = {
            **{f"{name}.weight": (model.hidden,) for name in NORMS},
            **_attention(model, bool(config.get("qkv_bias", True)) if qkv_bias else bias, bias and not qkv_bias),
        }
        if head_norms:
            layer.update(_head_norms(model.head_size))
        if wide_norms:
            layer.update(_head_norms(model.heads * model.head_size, model.kv_heads * model.head_size))
        dense_layers, step = config.get("mlp_only_layers") or [], number(config, "decoder_sparse_step", default=1)
        if not isinstance(dense_layers, list):
            raise CapacityError(f"mlp_only_layers {shortened(repr(dense_layers))} in config.json", "a list of layers")
        sparse = sum(i not in dense_layers and (i + 1) % step == 0 for i in range(model.layers))
        router: Tensors = {"mlp.gate.weight": (model.experts, model.hidden)}
        if config.get("shared_expert_intermediate_size"):
            router["mlp.shared_expert_gate.weight"] = (1, model.hidden)
            router.update(_gated(model, "mlp.shared_expert", number(config, "shared_expert_intermediate_size")))
        return _whole(model, layer) + _sparse_layers(model, router, sparse)

    return tensors


def _latent(model: Model) -> list[Tensor]:
    """Multi-head latent attention, and experts beside shared ones after the first layers."""
    config = model.config
    latent, rope = number(config, "kv_lora_rank"), number(config, "qk_rope_head_dim")
    nope, value = number(config, "qk_nope_head_dim"), number(config, "v_head_dim")
    rank = number(config, "q_lora_rank", default=0)
    q = model.heads * (nope + rope)
    layer: Tensors = {
        **{f"{name}.weight": (model.hidden,) for name in NORMS},
        **_linear("self_attn.kv_a_proj_with_mqa", latent + rope, model.hidden),
        "self_attn.kv_a_layernorm.weight": (latent,),
        **_linear("self_attn.kv_b_proj", model.heads * (nope + value), latent),
        **_linear("self_attn.o_proj", model.hidden, model.heads * value),
    }
    if rank:
        layer.update({
            **_linear("self_attn.q_a_proj", rank, model.hidden), "self_attn.q_a_layernorm.weight": (rank,),
            **_linear("self_attn.q_b_proj", q, rank),
        })
    else:
        layer.update(_linear("self_attn.q_proj", q, model.hidden))
    first = number(config, "first_k_dense_replace") if config.get("first_k_dense_replace") else 0
    step = number(config, "moe_layer_freq", default=1)
    sparse = sum(i >= first and i % step == 0 for i in range(model.layers)) if model.experts else 0
    router: Tensors = {"mlp.gate.weight": (model.experts, model.hidden)}
    if model.model_type == "deepseek_v3":
        router["mlp.gate.e_score_correction_bias"] = (model.experts,)
    if shared := number(config, "n_shared_experts", default=0):
        router.update(_gated(model, "mlp.shared_experts", shared * model.expert_intermediate))
    return _whole(model, layer) + _sparse_layers(model, router, sparse)


@dataclass(frozen=True)
class Family:
    """A kind of decoder.

    Attributes:
        architectures: names in config.json, as vLLM 0.9.2 knows them.
        tensors: the tensors of a checkpoint.
        tied: whether the head is the embedding if the config does not have it (the default of transformers).
        gated: whether the feed-forward layers are gated.
        rotary: share of a head that is rotated if the config does not have it; 0 without rotary embedding.
        inner: key of the size of the feed-forward layers, which is four times the hidden size where it is left out.
        query_norm: whether queries and keys are normalized, which makes copies of them.
        fused_kept: whether vLLM's feed-forward layer still holds gate and up while it multiplies by down: it does
            where their product has a name of its own (`gate_up`), and not where it overwrites the input (`x`).
        kept: tensors of the hidden size that vLLM's model holds while a layer runs, beside those of every decoder.
        adapters: whether vLLM has LoRA adapters for it.
        latent: whether attention is latent: served with keys and values of every head, padded to the size of keys.
    """

    architectures: tuple[str, ...]
    tensors: Callable[[Model], list[Tensor]]
    tied: bool = False
    gated: bool = True
    rotary: float = 1.0
    inner: str = "intermediate_size"
    query_norm: bool = False
    fused_kept: bool = False
    kept: int = 0
    adapters: bool = False
    latent: bool = False


FAMILIES: dict[str, Family] = {
    "llama": Family(("LlamaForCausalLM", "LLaMAForCausalLM"), _llama_like(), adapters=True),
    "mistral": Family(("MistralForCausalLM",), _llama_like(), adapters=True),
    "granite": Family(("GraniteForCausalLM",), _llama_like(), fused_kept=True, adapters=True),
    "qwen2": Family(("Qwen2ForCausalLM",), _llama_like(qkv_bias=True), fused_kept=True, adapters=True),
    "qwen3": Family(("Qwen3ForCausalLM",), _llama_like(head_norms=True), query_norm=True,
                    fused_kept=True, adapters=True),
    "gemma": Family(("GemmaForCausalLM",), _llama_like(), tied=True, fused_kept=True, adapters=True),
    "gemma2": Family(("Gemma2ForCausalLM",), _llama_like(GEMMA_NORMS), tied=True, fused_kept=True, adapters=True),
    "gemma3_text": Family(("Gemma3ForCausalLM",), _llama_like(GEMMA_NORMS, head_norms=True), tied=True,
                          query_norm=True, fused_kept=True, adapters=True),
    "olmo2": Family(("Olmo2ForCausalLM",),
                    _llama_like(("post_attention_layernorm", "post_feedforward_layernorm"), wide_norms=True),
                    query_norm=True, fused_kept=True),
    "phi": Family(("PhiForCausalLM",), _phi, gated=False, rotary=0.5, adapters=True),
    "phi3": Family(("Phi3ForCausalLM",), _phi3, adapters=True),
    "starcoder2": Family(("Starcoder2ForCausalLM",), _starcoder2, tied=True, gated=False),
    "gpt2": Family(("GPT2LMHeadModel",), _gpt2, tied=True, gated=False, rotary=0, inner="n_inner", kept=3),
    "gpt_neox": Family(("GPTNeoXForCausalLM",), _gpt_neox, gated=False, rotary=0.25, kept=1),
    "gptj": Family(("GPTJForCausalLM",), _gptj, gated=False, inner="n_inner"),
    "bloom": Family(("BloomForCausalLM",), _bloom, tied=True, gated=False, rotary=0, inner="n_inner"),
    "opt": Family(("OPTForCausalLM",), _opt, tied=True, gated=False, rotary=0, inner="ffn_dim", kept=1),
    "falcon": Family(("FalconForCausalLM", "RWForCausalLM"), _falcon, tied=True, gated=False, inner="ffn_hidden_size"),
    "mixtral": Family(("MixtralForCausalLM",), _mixtral, adapters=True),
    "qwen2_moe": Family(("Qwen2MoeForCausalLM",), _qwen_moe(qkv_bias=True, head_norms=False)),
    "qwen3_moe": Family(("Qwen3MoeForCausalLM",), _qwen_moe(qkv_bias=False, head_norms=True), query_norm=True),
    "deepseek_v2": Family(("DeepseekV2ForCausalLM",), _latent, latent=True),
    "deepseek_v3": Family(("DeepseekV3ForCausalLM",), _latent, latent=True),
    "olmoe": Family(("OlmoeForCausalLM",), _qwen_moe(qkv_bias=False, head_norms=False, wide_norms=True),
                    query_norm=True),
}


# Keys of what a model has beside its language model.
OTHER_KEYS = ("vision_config", "audio_config", "speech_config", "visual")
# Types with a window in some layers only.
INTERLEAVED = ("gemma2", *checkpoint_config.PATTERNED)
# Key of an instance without windows: its sequences end where the window does.
NO_WINDOW = "disable_sliding_window"


# -- Reading a config -------------------------------------------------------------------------------------------------


def translated(config: dict[str, Any]) -> dict[str, Any]:
    """A config with the keys that the engine reads. Raises CapacityError for a key that it would not understand."""
    try:
        return checkpoint_config.translate(config)
    except CheckpointError as error:
        raise CapacityError(f"{error.found} in config.json", error.expected) from None


def text_config(config: Any) -> dict[str, Any]:
    """The part of config.json about the language model, with what its class has where it does not say.

    Raises CapacityError where there is none, and for a key that the engine would not understand.
    """
    if not isinstance(config, dict):
        raise CapacityError(f"a config.json that holds a {type(config).__name__}", "a mapping")
    config = translated(config)
    part = next((part for prefix, part in checkpoint_config.parts_of(config) if prefix), None)
    usual = LANGUAGE_PARTS.get(str(config.get("model_type")))
    if part is None and usual is None:
        return config
    part = {"model_type": usual or config.get("model_type"), **(part or {})}
    return {**config, **DEFAULTS.get(str(part["model_type"]), {}), **part}


def uncounted(config: dict[str, Any], recorded: Iterable[dict[str, Any]]) -> list[str]:
    """Parts of a config whose weights are counted by the files alone, where those are not known."""
    return [] if list(recorded) else [key for key in OTHER_KEYS if config.get(key)]


def has_window(config: dict[str, Any]) -> bool:
    """Whether layers attend to a window of the sequence alone."""
    return config.get("sliding_window") is not None and config.get("use_sliding_window", True) is not False


def longest(config: dict[str, Any]) -> int | None:
    """Positions of a config, as vLLM's _get_and_verify_max_len derives them; None where it names none."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions",
             "max_sequence_length", "max_seq_length", "seq_len")
    found = [number(config, name) for name in names if config.get(name) is not None]
    if config.get("model_max_length"):
        return number(config, "model_max_length")
    if not found:
        return None
    positions: float = min(found)
    scaling = config.get("rope_scaling")
    if isinstance(scaling, dict) and "gemma3" not in str(config.get("model_type")):
        kind = scaling.get("rope_type", scaling.get("type"))
        if kind not in ("su", "longrope", "llama3"):
            if kind == "yarn":
                positions = number(scaling, "original_max_position_embeddings", default=int(positions))
            factor = scaling.get("factor", 1.0)
            if not isinstance(factor, (int, float)) or not 0 < factor <= MOST_FACTOR:
                raise CapacityError(
                    f"rope_scaling.factor {shortened(repr(factor))} in config.json",
                    f"a number above 0, {MOST_FACTOR} at most",
                )
            positions *= factor
    if config.get(NO_WINDOW) and has_window(config):
        positions = min(positions, number(config, "sliding_window"))
    return int(positions)


def rotary_elements(config: dict[str, Any], share: float, head_size: int, positions: int | None) -> int:
    """Elements of the table of angles, which every layer shares; share 0 for none."""
    if not share or config.get("alibi"):
        return 0
    if config.get("rotary_dim"):
        size = number(config, "rotary_dim")
    else:
        rotated = _first(config, ("partial_rotary_factor", "rotary_pct"))
        rotated = rotated if isinstance(rotated, (int, float)) else share
        if not 0 <= rotated <= 1:
            raise CapacityError(f"a rotated share {shortened(repr(rotated))} in config.json", "a number of 0 to 1")
        size = int(head_size * float(rotated))
    tables = positions or DEFAULT_POSITIONS
    # Long RoPE keeps a table for short prompts beside the one for long ones.
    tables += number(config, "original_max_position_embeddings", default=0) if config.get("rope_scaling") else 0
    return tables * size


def served_quantization(config: dict[str, Any]) -> Quantization | None:
    """Quantization that the port serves; None for unquantized weights and for those that `judge` names."""
    try:
        return read_quantization(config)
    except UnsupportedQuantizationError:
        return None


def gguf_quantization(recorded: Iterable[dict[str, Any]]) -> Quantization | None:
    """The port's storage of a GGUF file's matrices: codes of the most frequent number of bits; None without codes.

    Matrices that it keeps in more bits are counted as an unquantized model's, which is more than they take.
    """
    elements: dict[int, int] = {}
    zeros = False
    for item in recorded:
        bits = gguf.BITS.get(item.get("dtype", ""))
        if bits and ".layers." in item["name"]:
            elements[bits] = elements.get(bits, 0) + math.prod(item["shape"]) * item["count"]
            zeros |= item["dtype"] not in gguf.SYMMETRIC
    if not elements:
        return None
    return Quantization("gguf", Scheme(max(elements, key=elements.__getitem__), gguf.GROUP), zeros)


def read(config: Any, recorded: Iterable[dict[str, Any]] = ()) -> Model:
    """A model by its config.json, and by its tensors where they are those of a GGUF file.

    Raises CapacityError, with what was found and expected, where it cannot be read.
    """
    config = text_config(config)
    model_type = str(config.get("model_type", ""))
    family = FAMILIES.get(model_type)
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    hidden = number(config, "hidden_size", "n_embd", "d_model")
    heads = number(config, "num_attention_heads", "n_head")
    head_size = number(config, "head_dim", default=hidden // heads)
    rotated, latent = head_size, 0
    if family and family.latent:
        rotated, nope = number(config, "qk_rope_head_dim"), number(config, "qk_nope_head_dim")
        head_size, latent = nope + rotated, nope + number(config, "v_head_dim")
    # Falcon's new architecture has groups even if multi_query is set.
    if not config.get("new_decoder_architecture") and config.get("multi_query", model_type == "falcon"):
        kv_heads = 1
    elif model_type == "falcon" and not config.get("new_decoder_architecture"):
        kv_heads = heads
    else:
        kv_heads = number(config, "n_head_kv", "num_kv_heads", "num_key_value_heads", default=heads)
    intermediate = number(config, family.inner if family else "intermediate_size", default=4 * hidden)
    experts = number(config, *EXPERT_KEYS, default=0)
    positions = longest(config)
    tied = config.get("tie_word_embeddings")
    return Model(
        model_type=model_type,
        architecture=architecture,
        hidden=hidden,
        layers=number(config, "num_hidden_layers", "n_layer", "num_layers", most=MOST_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        intermediate=intermediate,
        vocabulary=number(config, "vocab_size"),
        positions=positions,
        window=has_window(config) and not config.get(NO_WINDOW) and model_type not in INTERLEAVED,
        multimodal=any(config.get(key) for key in OTHER_KEYS),
        tied=bool(tied) if tied is not None else bool(family and family.tied),
        rotary=rotary_elements(config, family.rotary if family else 1.0, rotated, positions),
        gated=family.gated if family else True,
        query_norm=bool(family and family.query_norm),
        fused_kept=bool(family and family.fused_kept),
        kept=family.kept if family else 0,
        latent=latent,
        experts=experts,
        chosen=number(config, "num_experts_per_tok", "num_experts_per_token", default=1) if experts else 0,
        expert_intermediate=number(config, "moe_intermediate_size", default=intermediate),
        quantization=served_quantization(config) or gguf_quantization(recorded),
        config=config,
    )


# Buffers that old checkpoints carry and vLLM does not load.
BUFFERS = re.compile(r"(^|\.)(attn|attention)\.(bias|masked_bias)$|rotary_emb\.|\.inv_freq$")
HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.")
# What lies beside a quantized matrix in the file: scales, zero points, the order of the columns.
BESIDE_CODES = re.compile(r"\.(qzeros|scales|g_idx|weight_scale|weight_zero_point|weight_shape|weight_g_idx)$")


def whole_matrices(tensors: list[Tensor], quantization: Quantization) -> list[Tensor]:
    """Tensors of a quantized checkpoint as those of the model: 32-bit words of codes become rows by columns.

    GPTQ packs the columns of a matrix that stands on its side, AWQ its rows, compressed-tensors columns.
    """
    in_word, found = quantization.main.per_word, []
    for tensor in tensors:
        if BESIDE_CODES.search(tensor.name):
            continue
        if not CODES.search(tensor.name):
            found.append(replace(tensor, plain=len(tensor.shape) > 1))
            continue
        if len(tensor.shape) != 2:
            raise CapacityError(f"{tensor.name} of shape {list(tensor.shape)}", "a matrix")
        first, second = tensor.shape
        rows, columns = {
            "gptq": (second, first * in_word), "awq": (second * in_word, first),
            "compressed-tensors": (first, second * in_word),
        }[quantization.method]
        found.append(Tensor(CODES.sub(".weight", tensor.name), (rows, columns), tensor.count))
    return found


def tensors_of(model: Model, recorded: Iterable[dict[str, Any]] = ()) -> list[Tensor]:
    """The tensors that the engine keeps: those `recorded` from safetensors, or those of the model's family.

    Args:
        recorded: mappings of name, shape and count, as the module model_facts gives them.

    Raises CapacityError where nothing is recorded and the family is none of FAMILIES.
    """
    recorded = list(recorded)
    tensors = [Tensor(item["name"], tuple(item["shape"]), item["count"]) for item in recorded]
    if not tensors:
        family = FAMILIES.get(model.model_type)
        if family is None:
            raise UnknownModelError(
                f"the model type {model.model_type!r} and no safetensors",
                f"one of {', '.join(FAMILIES)}, or weights in safetensors",
            )
        return family.tensors(model)
    if wrong := mismatch(model.quantization, [tensor.name for tensor in tensors]):
        raise CapacityError(*wrong)
    if model.quantization is not None and model.quantization.method == "gguf":
        tensors = [
            replace(tensor, plain=len(tensor.shape) > 1
                    and not 0 < gguf.BITS.get(item["dtype"], 0) <= model.quantization.main.bits)
            for tensor, item in zip(tensors, recorded, strict=True)
        ]
    elif model.quantization is not None:
        tensors = whole_matrices(tensors, model.quantization)
    kept = [t for t in tensors if not BUFFERS.search(t.name) and not (model.tied and HEAD.search(t.name))]
    if not model.tied and not any(HEAD.search(tensor.name) for tensor in kept):
        kept.append(Tensor("lm_head.weight", (model.vocabulary, model.hidden)))
    return kept
