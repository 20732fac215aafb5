"""Check whether the engine can serve a model, by its files: for plan, preflight, fetch and start."""

import re
from typing import NamedTuple, Optional

from . import engine_models, engine_models_stock, gguf, stock, variants
from .config import overridden, parts_of, translate
from .errors import CheckpointError
from .quantization import SUPPORTED_FORMATS, mismatch, quantized_router, read_quantization


class Engine(NamedTuple):
    """What serves a model: `port` or `stock`, and the compute capability of the GPUs, such as 7.0; None if unknown."""

    name: str
    capability: Optional[str] = None

    @property
    def names(self):
        """Names and options that its vLLM knows."""
        return engine_models_stock if self.name == "stock" else engine_models


PORT = Engine("port")

# Types that the port refuses at start, or has no kernels for.
UNSUPPORTED_TYPES = dict(
    [(name, "state-space or linear attention layers, whose kernels need Triton") for name in (
        "mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "zamba2", "falcon_h1", "plamo2", "nemotron_h",
        "minimax_text_01", "minimax_m1", "granitemoehybrid",
    )],
    kimi_vl="multi-head latent attention beside images",
    gemma3n="a KV cache that layers share",
    llama4="attention in chunks of the context",
    llama4_text="attention in chunks of the context",
    mllama="cross-attention to images",
    phi3small="block-sparse attention",
)
DECODERS = "a decoder with plain attention in every layer, such as a Llama, Mistral, Qwen or Gemma"
# Classes of transformers 5 that the port gives transformers 4.
NEWER_TOKENIZERS = ("TokenizersBackend",)
TRUST = "trust-remote-code: true in extra_args, once its code was read, with the model in a directory of the host"
# Tensors that are no numbers by themselves: codes, or floats that want a scale.
CODED, MATRIX = re.compile(r"[IU]\d|F[468]_|F4$|C64|BOOL"), re.compile(r"\.(weight|weight_scale|scales)$")
# Endings of architectures that answer with a number, a label or a vector.
NO_TEXT = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM", "Model")


def judge(config, tensors=(), tokenizer=None, options=(), engine=PORT, in_gguf=False):
    """As refusals, of a model as an instance serves it and with what its tensors say.

    Args:
        config: content of config.json; no mapping is refused by those who read it.
        tensors: as read_model gives them; empty where nobody knows them.
        tokenizer: as refusals has it.
        options: the instance's options of vLLM; a tokenizer of its own and keys of the config count.
        in_gguf: as refusals has it, where the tensors are unknown.
    """
    options = dict(options)
    router = quantized_router(item["name"] for item in tensors)
    if router:
        return [("a quantized router (%s)" % router, "a checkpoint that leaves routers unquantized")]
    coded = next((item for item in tensors if MATRIX.search(item["name"]) and CODED.match(item["dtype"])), None)
    if coded:
        return [("%s of the type %s" % (coded["name"], coded["dtype"]),
                 "such a tensor in F32, F16 or BF16; %s" % SUPPORTED_FORMATS)]
    try:
        config = overridden(config, options)
    except CheckpointError as error:
        return [(error.found, error.expected)]
    if not isinstance(config, dict):
        return []
    if _lacks_head(config, [item["name"] for item in tensors]):
        return [("weights without a head (lm_head.weight) and tie_word_embeddings false",
                 "a head, or tie_word_embeddings true where the embedding is the head")]
    tokenizer = None if "tokenizer" in options else tokenizer
    in_gguf = in_gguf or any(item["dtype"] in gguf.BITS for item in tensors)
    found = refusals(config, tokenizer, options.get("trust-remote-code") is True, in_gguf, engine)
    return found or _mismatch(config, [item["name"] for item in tensors], in_gguf)


def _mismatch(config, names, in_gguf):
    """What the names of the tensors say against the quantization that the config names."""
    wrong = None if in_gguf else mismatch(read_quantization(config), names)
    return [wrong] if wrong else []


def _lacks_head(config, names):
    """Whether a config says that the head is no embedding, and of both the embedding alone is among the tensors."""
    tied = [part["tie_word_embeddings"] for _, part in parts_of(config) if part.get("tie_word_embeddings") is not None]
    return (False in tied and True not in tied and any(name.endswith("embed_tokens.weight") for name in names)
            and not any(re.search(r"(^|\.)(lm_head|embed_out|output|head)\.", name) for name in names))


def refusals(config, tokenizer=None, trusts=False, in_gguf=False, engine=PORT):
    """Reasons why no start of the engine can serve a model: [(found, expected)].

    Args:
        config: content of config.json, a mapping.
        tokenizer: content of tokenizer_config.json; None if there is none.
        trusts: whether the engine runs code that comes with the model.
        in_gguf: whether the weights are a GGUF file, whose architecture the engine takes from the type.
        engine: an Engine.
    """
    is_stock = engine.name == "stock"
    if is_stock and in_gguf:
        return [("a GGUF file and engine: stock", "safetensors" + stock.PORT)]
    found = [] if is_stock else _attention(config)
    if found:
        return found
    # The architecture of an unknown type is unknown as well, and its keys may mean something else: report one.
    found = _types(config, trusts, engine.names)
    if not found and not in_gguf:
        found = _architectures(config, trusts, engine.names)
    if not found:
        found = stock.refusals(config, engine.capability) if is_stock else _values(config)
    return (found or _quantization(config, engine)) + _tokenizer(tokenizer, trusts, engine)


def _attention(config):
    """Reasons that lie in layers that the port has no kernels for."""
    for _, part in parts_of(config):
        model_type = str(part.get("model_type", ""))
        if part.get("is_encoder_decoder"):
            return [("the encoder-decoder %s" % model_type, DECODERS)]
        if model_type in UNSUPPORTED_TYPES:
            return [("the model type %s: %s" % (model_type, UNSUPPORTED_TYPES[model_type]), DECODERS)]
        if part.get("dual_chunk_attention_config"):
            return [("dual_chunk_attention_config: attention in chunks of the context", DECODERS)]
        # "vision" means the tokens of an image alone.
        if part.get("use_bidirectional_attention") in (True, "all") or part.get("is_causal") is False:
            return [("attention to later tokens (use_bidirectional_attention, is_causal)", DECODERS)]
    return []


def _values(config):
    """Reasons that lie in the values of a config of a known type; what translate refuses is reported by others."""
    try:
        parts = parts_of(translate(config))
    except CheckpointError:
        return []
    return [reason for _, part in parts for reason in variants.refusals(part)][:1]


def _quantization(config, engine):
    try:
        # Configs are translated for the port alone.
        read_quantization(config if engine.name == "stock" else translate(config))
    except CheckpointError as error:
        return [(error.found, error.expected)]
    return []


def _has_code(section, key):
    own = section.get("auto_map")
    return isinstance(own, dict) and key in own


def _types(config, trusts, names):
    if trusts and _has_code(config, "AutoConfig"):
        return []
    for prefix, part in parts_of(config):
        key, model_type = prefix + "model_type", part.get("model_type")
        # The class of the whole model knows the type of its language model.
        if prefix and "model_type" not in part:
            continue
        if not model_type:
            return [("a config.json without %s" % key, "one, by which transformers chooses the model's class")]
        if str(model_type) not in names.MODEL_TYPES:
            if _has_code(config, "AutoConfig"):
                return [("the %s %s, which comes with code of its own (auto_map)" % (key, model_type), TRUST)]
            return [("the %s %s" % (key, model_type), "a type that the locked vLLM or transformers knows")]
    return []


def _architectures(config, trusts, known):
    architectures = config.get("architectures")
    if (not isinstance(architectures, list) or not architectures
            or not all(isinstance(name, str) for name in architectures)):
        return [("a config.json without architectures", "a list of them, such as [\"LlamaForCausalLM\"]")]
    if any(name in known.GENERATORS for name in architectures) or (trusts and _has_code(config, "AutoModel")):
        return []
    names = ", ".join(architectures)
    if any(name in known.UNLOADABLE for name in architectures):
        return [("the architecture %s, whose code in vLLM needs a package or version that is not there" % names,
                 "one that the serving environment can load, such as LlamaForCausalLM")]
    if any(name in known.OTHERS or name.endswith(NO_TEXT) for name in architectures):
        return [("the architecture %s, which generates no text" % names, "an architecture that does")]
    if _has_code(config, "AutoModelForCausalLM") and not trusts:
        return [("the architecture %s, which comes with code of its own (auto_map)" % names, TRUST)]
    return [("the architecture %s" % names, "one that the locked vLLM has, such as LlamaForCausalLM")]


def _tokenizer(section, trusts, engine):
    known = engine.names.TOKENIZERS.union(NEWER_TOKENIZERS if engine.name == "port" else ())
    name = str(section.get("tokenizer_class") or "") if isinstance(section, dict) else ""
    has_code = bool(name) and _has_code(section, "AutoTokenizer")
    if not name or name in known or "%sFast" % name in known or (trusts and has_code):
        return []
    if has_code:
        return [("tokenizer_class %s in tokenizer_config.json, which comes with code of its own (auto_map)" % name,
                 TRUST)]
    return [("tokenizer_class %s in tokenizer_config.json" % name,
             "a class that the locked transformers knows: PreTrainedTokenizerFast, where tokenizer.json is there")]
