"""Whether the engine knows what a model's files name: its type, its architecture, its tokenizer."""

from .engine_models import GENERATORS, MODEL_TYPES, OTHERS, TOKENIZERS

TRUST = "trust-remote-code: true in extra_args, once its code was read, with the model in a directory of the host"
# Endings of architectures that answer with a number, a label or a vector.
NO_TEXT = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM", "Model")


def unknown(config, tokenizer=None, trusts=False, in_gguf=False):
    """Parts of a model that the engine does not know: [(found, expected)].

    Args:
        config: what config.json holds.
        tokenizer: what tokenizer_config.json holds; None where there is none.
        trusts: whether the engine runs code that comes with the model.
        in_gguf: whether the weights are a GGUF file, whose architecture the engine takes from the type.
    """
    found = _types(config, trusts)
    # The architecture of an unknown type is unknown as well: report it once.
    if not found and not in_gguf:
        found = _architectures(config, trusts)
    return found + _tokenizer(tokenizer, trusts)


def _has_code(said, key):
    own = said.get("auto_map")
    return isinstance(own, dict) and key in own


def _types(config, trusts):
    if trusts and _has_code(config, "AutoConfig"):
        return []
    parts = [("model_type", config)]
    if isinstance(config.get("text_config"), dict) and "model_type" in config["text_config"]:
        parts.append(("text_config.model_type", config["text_config"]))
    for key, part in parts:
        said = part.get("model_type")
        if not said:
            return [("a config.json without %s" % key, "one, by which transformers chooses the model's class")]
        if said not in MODEL_TYPES:
            if _has_code(config, "AutoConfig"):
                return [("the %s %s, which comes with code of its own (auto_map)" % (key, said), TRUST)]
            return [("the %s %s" % (key, said), "a type that the locked vLLM or transformers knows")]
    return []


def _architectures(config, trusts):
    said = config.get("architectures")
    if not isinstance(said, list) or not said or not all(isinstance(name, str) for name in said):
        return [("a config.json without architectures", "a list of them, such as [\"LlamaForCausalLM\"]")]
    if any(name in GENERATORS for name in said) or (trusts and _has_code(config, "AutoModel")):
        return []
    names = ", ".join(said)
    if any(name in OTHERS or name.endswith(NO_TEXT) for name in said):
        return [("the architecture %s, which generates no text" % names, "an architecture that does")]
    if _has_code(config, "AutoModelForCausalLM") and not trusts:
        return [("the architecture %s, which comes with code of its own (auto_map)" % names, TRUST)]
    return [("the architecture %s" % names, "one that the locked vLLM has, such as LlamaForCausalLM")]


def _tokenizer(said, trusts):
    name = said.get("tokenizer_class") if isinstance(said, dict) else None
    if not name or name in TOKENIZERS or "%sFast" % name in TOKENIZERS or (trusts and _has_code(said, "AutoTokenizer")):
        return []
    if _has_code(said, "AutoTokenizer"):
        return [("tokenizer_class %s in tokenizer_config.json, which comes with code of its own (auto_map)" % name,
                 TRUST)]
    return [("tokenizer_class %s in tokenizer_config.json" % name,
             "a class that the locked transformers knows: PreTrainedTokenizerFast, where tokenizer.json is there")]
