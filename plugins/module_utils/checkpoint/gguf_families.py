"""Models of GGUF files: the config that follows from a header, and the model's names for the file's tensors."""

import math
import re
from typing import Any, List, Mapping, NamedTuple, Optional

from .errors import UnsupportedFileError
from .gguf import BITS, SUPPORTED_TYPES, SYMMETRIC, Tensor, read_floats

# Names of a model's tensors by the file's.
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# Those of a layer, after blk.N. and model.layers.N.; families differ from these as they say.
LAYER_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
QUERY_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
# Of stacks of experts each one has a name, with its number for the asterisk.
MIXTRAL_NAMES = {
    "ffn_gate_inp": "block_sparse_moe.gate", "ffn_gate_exps": "block_sparse_moe.experts.*.w1",
    "ffn_up_exps": "block_sparse_moe.experts.*.w3", "ffn_down_exps": "block_sparse_moe.experts.*.w2",
}
QWEN_EXPERTS = {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.*.gate_proj", "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
}
SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate", "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj", "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
# Two of the file's matrices are one of the model's.
GRANITE_SHARED = {
    "ffn_gate_shexp": "shared_mlp.input_linear", "ffn_up_shexp": "shared_mlp.input_linear",
    "ffn_down_shexp": "shared_mlp.output_linear",
}
GEMMA_NORMS = {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# Factors of the frequencies of rotary embeddings: of Llama 3, and of long RoPE.
ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
FACTORS = (ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS)
# What a converter takes for Llama 3 where config.json does not say it.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class Family(NamedTuple):
    """Files of one architecture.

    Attributes:
        model_types: those of a config.json that the files go with; the first is that of a config made of the header.
        model_class: name of the class in `architectures`.
        names: of a layer's tensors, where LAYER_NAMES has others or none; None for a tensor that it lacks.
        permuted: whether the rows of queries and keys lie as llama.cpp rotates them.
        norms_from_one: whether 1 was added to the weights of norms.
        values: keys of the config that are the same for all of the family.
        numbers: keys of the config by the header's, after the architecture, beside NUMBERS.
        head_size: whether the config may give the size of a head.
    """

    model_types: List[str]
    model_class: str
    names: Mapping[str, Optional[str]]
    permuted: bool = False
    norms_from_one: bool = False
    values: Mapping[str, Any] = {}
    numbers: Mapping[str, str] = {}
    head_size: bool = True


NUMBERS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
WINDOW = {"attention.sliding_window": "sliding_window"}
GELU = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
GRANITE = {
    "attention.scale": "attention_multiplier", "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier", "logit_scale": "logits_scaling",
}
EXPERTS = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
EXPERTS_OF_QWEN = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}
EVERY_LAYER = {"decoder_sparse_step": 1, "mlp_only_layers": []}
FAMILIES = {
    "llama": Family(["llama", "mistral"], "LlamaForCausalLM", {}, permuted=True),
    "mixtral": Family(["mixtral"], "MixtralForCausalLM", MIXTRAL_NAMES, permuted=True,
                      values={"sliding_window": None}, numbers=EXPERTS),
    "qwen2": Family(["qwen2"], "Qwen2ForCausalLM", {}, head_size=False),
    "qwen3": Family(["qwen3"], "Qwen3ForCausalLM", QUERY_NORMS),
    "qwen2moe": Family(["qwen2_moe"], "Qwen2MoeForCausalLM", dict(QWEN_EXPERTS, **SHARED_EXPERT),
                       values=dict(EVERY_LAYER, norm_topk_prob=False), numbers=EXPERTS_OF_QWEN, head_size=False),
    "qwen3moe": Family(["qwen3_moe"], "Qwen3MoeForCausalLM", dict(QWEN_EXPERTS, **QUERY_NORMS),
                       values=dict(EVERY_LAYER, norm_topk_prob=True), numbers=EXPERTS_OF_QWEN),
    "gemma": Family(["gemma"], "GemmaForCausalLM", {}, norms_from_one=True, values=GELU),
    "gemma2": Family(["gemma2"], "Gemma2ForCausalLM", GEMMA_NORMS, norms_from_one=True, values=GELU,
                     numbers=dict(WINDOW, attn_logit_softcapping="attn_logit_softcapping",
                                  final_logit_softcapping="final_logit_softcapping")),
    "gemma3": Family(["gemma3_text"], "Gemma3ForCausalLM", dict(GEMMA_NORMS, **QUERY_NORMS), norms_from_one=True,
                     values=GELU, numbers=WINDOW),
    "phi3": Family(["phi3"], "Phi3ForCausalLM", {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj",
                                                 "attn_q": None, "attn_k": None, "attn_v": None, "ffn_gate": None},
                   numbers=dict(WINDOW, **{"rope.scaling.original_context_length": "original_max_position_embeddings"}),
                   head_size=False),
    "granite": Family(["granite"], "GraniteForCausalLM", {}, permuted=True, numbers=GRANITE),
    "granitemoe": Family(["granitemoe"], "GraniteMoeForCausalLM", MIXTRAL_NAMES, permuted=True,
                         numbers=dict(GRANITE, **EXPERTS), head_size=False),
    "granitemoeshared": Family(["granitemoeshared"], "GraniteMoeSharedForCausalLM",
                               dict(MIXTRAL_NAMES, **GRANITE_SHARED), permuted=True, head_size=False,
                               numbers=dict(
                                   GRANITE, expert_shared_feed_forward_length="shared_intermediate_size", **EXPERTS)),
    "starcoder2": Family(["starcoder2"], "Starcoder2ForCausalLM",
                         {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj", "ffn_gate": None},
                         values={"hidden_act": "gelu_pytorch_tanh", "use_bias": True, "sliding_window": None},
                         numbers={"attention.layer_norm_epsilon": "norm_epsilon"}, head_size=False),
    "olmo2": Family(["olmo2"], "Olmo2ForCausalLM", dict(QUERY_NORMS, **{
        "post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
        "attn_norm": None, "ffn_norm": None}), head_size=False),
    "glm4": Family(["glm4"], "Glm4ForCausalLM", {
        "post_attention_norm": "post_self_attn_layernorm", "ffn_norm": "post_attention_layernorm",
        "post_ffw_norm": "post_mlp_layernorm", "ffn_up": "mlp.gate_up_proj", "ffn_gate": None}),
}
# Families whose files have the architecture of another one.
VARIANTS = {"mixtral", "granitemoeshared"}
SUPPORTED_MODELS = "a model of one of the architectures %s" % ", ".join(sorted(set(FAMILIES) - VARIANTS))
SUPPORTED_FILES = "GGUF: %s, of %s" % (SUPPORTED_MODELS, SUPPORTED_TYPES)
# Families whose layers may rotate a part of each head.
PARTIAL = ("phi3", "glm4")
# Layers of the models whose queries are divided by another root than that of the size of a head.
DIVIDED_BY_HIDDEN = {"gemma2": 46, "gemma3": 62}


class Part(NamedTuple):
    """A tensor of the model.

    Attributes:
        name: the model's.
        file_name: the file's.
        tensor: the file's.
        shape: of this part.
        expert: its place in a stack of experts; None for a whole tensor.
        below: the file's tensor whose rows come below those of `tensor`; None where that is all.
    """

    name: str
    file_name: str
    tensor: Tensor
    shape: List[int]
    expert: Optional[int]
    below: Optional[Tensor] = None


def family_of(header):
    """The Family of a file. Raises UnsupportedFileError."""
    architecture = header.architecture
    if architecture not in FAMILIES:
        raise UnsupportedFileError("the architecture %s" % architecture, SUPPORTED_MODELS, header.path)
    if architecture == "llama" and header.values.get("llama.expert_count"):
        return FAMILIES["mixtral"]
    if architecture == "granitemoe" and header.values.get("granitemoe.expert_shared_feed_forward_length"):
        return FAMILIES["granitemoeshared"]
    return FAMILIES[architecture]


def parts_of(header):
    """The model's tensors: [Part]. Raises UnsupportedFileError for one that the family does not have."""
    family, found = family_of(header), {}
    for file_name, tensor in sorted(header.tensors.items()):
        if file_name in FACTORS:
            continue
        name = _name_of(header, family, file_name)
        if "*" not in name:
            # A matrix of one row is a vector in the file.
            is_row = ".ffn_gate_inp_shexp." in file_name and len(tensor.shape) == 1
            shape = [1] + tensor.shape if is_row else tensor.shape
            found[name] = (_joined(found[name], tensor) if name in found
                           else Part(name, file_name, tensor, shape, None))
            continue
        if len(tensor.shape) != 3:
            raise UnsupportedFileError("%s of shape %s" % (file_name, tensor.shape), "a stack of matrices", tensor.path)
        for expert in range(tensor.shape[0]):
            own = name.replace("*", str(expert))
            found[own] = Part(own, file_name, tensor, tensor.shape[1:], expert)
    return list(found.values())


def _joined(part, tensor):
    """A part with a tensor's rows below its own. Raises UnsupportedFileError for one that is stored otherwise."""
    if (tensor.kind, tensor.shape[1:]) != (part.tensor.kind, part.tensor.shape[1:]):
        raise UnsupportedFileError(
            "%s of the type %s beside %s" % (part.file_name, part.tensor.kind, tensor.kind),
            "one type for both: the engine makes one matrix of them", tensor.path,
        )
    return part._replace(below=tensor, shape=[part.shape[0] + tensor.shape[0]] + part.shape[1:])


def kind_of(header, part):
    """Name of the type as which a part counts: an expert's gate and the matrix beside it are one in memory."""
    pair = [part.file_name.replace(*names) for names in (("_up_exps.", "_gate_exps."), ("_gate_exps.", "_up_exps."))]
    kinds = [part.tensor.kind] + [header.tensors[name].kind for name in pair if name in header.tensors]
    return max(kinds, key=lambda kind: (kind not in BITS, BITS.get(kind, 0), kind not in SYMMETRIC))


def _name_of(header, family, file_name):
    match = re.match(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)$", file_name)
    layer, own, kind = match.groups() if match else (None, None, None)
    names = NAMES if layer is None else dict(LAYER_NAMES, **family.names)
    name = names.get(own)
    if name is None:
        raise UnsupportedFileError(
            "a tensor %s" % file_name, "one that a model of the architecture %s has" % header.architecture, header.path
        )
    return "%s%s.%s" % ("" if layer is None else "model.layers.%s." % layer, name, kind)


class _Values(object):
    """The values of a header about the model."""

    def __init__(self, header):
        self.header = header

    def get(self, name, default=None):
        """A number or a text, by its name after the architecture. Raises UnsupportedFileError for another kind."""
        full = "%s.%s" % (self.header.architecture, name)
        value = self.header.values.get(full, default)
        if isinstance(value, (list, tuple)):
            raise UnsupportedFileError("%s that differs from layer to layer" % full, "one number", self.header.path)
        return value

    def number(self, name, default=None, least=0.0):
        """A number from `least` on; `default` if the header has none. Raises UnsupportedFileError."""
        value = self.get(name, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (is_number and least <= value < float("inf")):
            raise UnsupportedFileError(
                "%s.%s %s" % (self.header.architecture, name, value), "a number from %g on" % least, self.header.path
            )
        return value

    def count(self, name, default=None):
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise UnsupportedFileError(
                "%s.%s %s" % (self.header.architecture, name, "missing" if value is None else value),
                "a number above 0", self.header.path,
            )
        return value


def config_of(header):
    """The content of config.json of the model of a file. Raises UnsupportedFileError."""
    family, values, tensors = family_of(header), _Values(header), header.tensors
    if "token_embd.weight" not in tensors or "blk.0.attn_output.weight" not in tensors:
        raise UnsupportedFileError("no token_embd.weight or no layer", "all of a model's weights", header.path)
    heads = values.count("attention.head_count")
    hidden = values.count("embedding_length")
    head_size = values.count("attention.key_length", hidden // heads)
    config = {
        "architectures": [family.model_class], "model_type": family.model_types[0], "torch_dtype": "float32",
        "hidden_size": hidden, "intermediate_size": values.count("feed_forward_length", 4 * hidden),
        "num_hidden_layers": values.count("block_count"), "num_attention_heads": heads,
        "num_key_value_heads": values.count("attention.head_count_kv", heads),
        "max_position_embeddings": values.count("context_length"), "vocab_size": tensors["token_embd.weight"].shape[0],
        "rope_theta": values.number("rope.freq_base", 10000.0, 1.0),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors or "blk.0.attn_qkv.bias" in tensors,
    }
    if config["model_type"] == "llama":
        config["mlp_bias"] = "blk.0.ffn_down.bias" in tensors
    config.update(family.values)
    for name, key in dict(NUMBERS, **family.numbers).items():
        value = values.number(name)
        if value is not None:
            config[key] = value
    if family.head_size:
        config["head_dim"] = head_size
    elif head_size * heads != hidden:
        raise UnsupportedFileError(
            "%d heads of %d columns" % (heads, head_size), "%d, as %s divides its %d" % (
                hidden // heads, family.model_class, hidden), header.path)
    for name, key in (("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id"),
                      ("padding_token_id", "pad_token_id")):
        value = header.values.get("tokenizer.ggml." + name)
        # The engine's classes take an id of padding for a row of the embedding.
        if isinstance(value, int) and 0 <= value < config["vocab_size"]:
            config[key] = value
    _add_rotary(header, values, config, head_size)
    _add_own(header, values, config, head_size)
    return config


def _add_own(header, values, config, head_size):
    """Keys that one family alone has."""
    architecture, tensors = header.architecture, header.tensors
    if architecture in ("gemma2", "gemma3"):
        # llama.cpp knows the largest models by their layers.
        by_hidden = config["num_hidden_layers"] == DIVIDED_BY_HIDDEN[architecture]
        config["query_pre_attn_scalar"] = (
            config["hidden_size"] // config["num_attention_heads"] if by_hidden else head_size
        )
    if architecture == "gemma3":
        config["rope_local_base_freq"] = values.number("rope.freq_base_swa", 10000.0, 1.0)
        config["sliding_window_pattern"] = values.count("attention.sliding_window_pattern", 6)
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            config[key] = values.number(key)
    if architecture in ("qwen2moe", "qwen3moe"):
        # Of experts old files have no sizes but those of their matrices.
        for name, key in (("ffn_down_exps", "moe_intermediate_size"),
                          ("ffn_down_shexp", "shared_expert_intermediate_size")):
            tensor = tensors.get("blk.0.%s.weight" % name)
            if tensor is not None:
                config[key] = tensor.shape[-1]
    window = config.get("sliding_window")
    if architecture == "phi3" and window is not None and window >= config["max_position_embeddings"]:
        config["sliding_window"] = None


def _add_rotary(header, values, config, head_size):
    """Rotary embeddings: the part of a head that is rotated, and how their frequencies are scaled."""
    rotated = values.count("rope.dimension_count", head_size)
    if rotated != head_size:
        if header.architecture not in PARTIAL:
            raise UnsupportedFileError(
                "%d rotated columns in heads of %d" % (rotated, head_size), "all of them, as %s rotates"
                % config["architectures"][0], header.path,
            )
        config["partial_rotary_factor"] = float(rotated) / head_size
    elif header.architecture in PARTIAL:
        config["partial_rotary_factor"] = 1.0
    kind = values.get("rope.scaling.type", "none")
    if LONG_FACTORS in header.tensors and SHORT_FACTORS in header.tensors and header.architecture == "phi3":
        config["rope_scaling"] = {
            "type": "longrope", "long_factor": read_floats(header, LONG_FACTORS),
            "short_factor": read_floats(header, SHORT_FACTORS),
        }
    elif ROPE_FACTORS in header.tensors:
        config["rope_scaling"] = _llama3(header, config["rope_theta"], head_size)
    elif kind == "linear":
        config["rope_scaling"] = {"rope_type": "linear", "factor": values.number("rope.scaling.factor", 1.0, 1e-3)}
    elif kind == "yarn":
        config["rope_scaling"] = {
            "rope_type": "yarn", "factor": values.number("rope.scaling.factor", 1.0, 1e-3),
            "original_max_position_embeddings": values.count("rope.scaling.original_context_length"),
        }
    elif kind != "none" or set(FACTORS) & set(header.tensors):
        raise UnsupportedFileError(
            "rotary embeddings scaled by %s" % (kind if kind != "none" else sorted(set(FACTORS) & set(header.tensors))),
            "linear, yarn, Llama 3's, or Phi-3's long RoPE", header.path,
        )


def _llama3(header, base, head_size):
    """The rope_scaling that gives the factors of a file. Raises UnsupportedFileError if none does."""
    found = read_floats(header, ROPE_FACTORS)
    if not all(0 < value < float("inf") for value in found):
        raise UnsupportedFileError(
            "factors of rotary frequencies (%s) of 0 or less, or no number" % ROPE_FACTORS, "numbers above 0",
            header.path,
        )
    scaling = dict(LLAMA3, rope_type="llama3", factor=max(found))
    original = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    expected = []
    for index in range(head_size // 2):
        turns = original / (2 * math.pi * base ** (2.0 * index / head_size))
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        expected.append(1 / ((1 - share) / scaling["factor"] + share))
    if len(found) != len(expected) or any(
            abs(value - expected[index]) > 1e-4 * value for index, value in enumerate(found)):
        raise UnsupportedFileError(
            "factors of rotary frequencies (%s) that are not Llama 3's" % ROPE_FACTORS,
            "those of a low factor 1, a high factor 4 and 8192 positions", header.path,
        )
    return scaling


def check_model(header, model_type, scales_rope):
    """Raise UnsupportedFileError if a file is not one of the model that config.json describes.

    scales_rope: whether config.json has a rope_scaling.
    """
    family = family_of(header)
    if model_type not in family.model_types:
        raise UnsupportedFileError(
            "the architecture %s beside a config.json of a %s" % (header.architecture, model_type),
            "a config.json of a %s, or none: the file's header says the same" % " or ".join(family.model_types),
            header.path,
        )
    factors = sorted(set(FACTORS) & set(header.tensors))
    if factors and not scales_rope:
        raise UnsupportedFileError(
            "scaled rotary frequencies (%s) and no rope_scaling in config.json" % factors[0],
            "the config.json of the very model that the file was made of", header.path,
        )
