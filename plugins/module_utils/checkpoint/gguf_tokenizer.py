"""Tokenizers of GGUF files: tokenizer.json and tokenizer_config.json as their headers describe them."""

from typing import List, NamedTuple

from .errors import UnsupportedFileError

# Kinds of tokens.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
SPACE = u"\u2581"
# Characters of a token; the longest of known models has a few hundred, of spaces.
LONGEST_TOKEN = 4096
MODELS = {"llama": "SentencePiece's", "gpt2": "byte-level BPE"}
# Tokens that end an answer beside the one that the header names.
ENDINGS = (
    "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<|end|>", "<end_of_turn>", "<EOT>",
    "<|endofprompt|>", "<|user|>",
)
ENDING_IDS = ("eos_token_id", "eot_token_id", "eom_token_id")
# Words of byte-level BPE: the pattern that GPT-2's tokenizer brings, and those of others.
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = CONTRACTIONS + WORDS % "{1,3}", CONTRACTIONS + WORDS % ""
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASES = (
    r"[^\r\n\p{L}\p{N}]?" + UPPER + "*" + LOWER + r"+%s|[^\r\n\p{L}\p{N}]?" + UPPER + "+" + LOWER
    + r"*%s|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HAN = u"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
DEEPSEEK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)


class Words(NamedTuple):
    """How a byte-level tokenizer cuts a text into words.

    Attributes:
        patterns: one after the other.
        gpt2: whether GPT-2's pattern comes after these.
        whole: whether a word that is a token is never merged.
        begins: whether a text begins with the token of its begin, where the header does not say it.
        composed: whether characters are composed first.
    """

    patterns: List[str]
    gpt2: bool = False
    whole: bool = False
    begins: bool = False
    composed: bool = False


# By the names that a converter gives them.
WORDS_OF = {
    "llama-bpe": Words([LLAMA3], whole=True, begins=True),
    "dbrx": Words([LLAMA3]),
    "qwen2": Words([QWEN2], composed=True),
    "stablelm2": Words([QWEN2]),
    "gpt-2": Words([], gpt2=True),
    "starcoder": Words([r"\p{N}"], gpt2=True),
    "tekken": Words([CASES % ("", "", "")], whole=True, begins=True),
    "gpt-4o": Words([CASES % (CONTRACTIONS + "?", CONTRACTIONS + "?", "{1,3}")]),
    "deepseek-v3": Words([r"\p{N}{1,3}", HAN, DEEPSEEK]),
}
ALIKE = {
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "pixtral"),
    "dbrx": ("smaug-bpe", "glm4", "chatglm-bpe"),
    "qwen2": ("deepseek-r1-qwen", "megrez", "hunyuan"),
    "gpt-2": ("phi-2", "olmo", "mpt", "jais", "mellum", "exaone4", "trillion"),
    "starcoder": ("refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"),
    "gpt-4o": ("llama4",),
}
for _name, _others in ALIKE.items():
    WORDS_OF.update(dict.fromkeys(_others, WORDS_OF[_name]))


def _value(header, name):
    return header.values.get("tokenizer.ggml." + name)


def check_tokenizer(header):
    """Raise UnsupportedFileError for a tokenizer that the port cannot make of a header."""

    def refuse(found, expected):
        raise UnsupportedFileError(found, expected, header.path)

    model, tokens = _value(header, "model"), _value(header, "tokens")
    for name in ("model", "pre"):
        if not isinstance(_value(header, name), (str, type(None))):
            refuse("tokenizer.ggml.%s that is no text" % name, "a name: convert the model again")
    if model not in MODELS:
        refuse("a tokenizer of the kind %s" % model, " or ".join("%s (%s)" % pair for pair in sorted(MODELS.items())))
    if not isinstance(tokens, list) or not tokens:
        refuse("a tokenizer without tokens", "those of the model: convert it again")
    if model == "gpt2":
        words = _value(header, "pre")
        if words not in WORDS_OF:
            refuse("a tokenizer whose words are cut as %s says (tokenizer.ggml.pre)" % (words or "nothing"),
                   "one of %s" % ", ".join(sorted(WORDS_OF)))
        if not isinstance(_value(header, "merges"), list):
            refuse("a tokenizer without merges", "those of the model: convert it again")
    elif not isinstance(_value(header, "scores"), tuple) or len(_value(header, "scores")) != len(tokens):
        refuse("a tokenizer without a score for each token", "those of the model: convert it again")
    # Merges take time by the square of a token's length.
    longest = max(map(len, tokens))
    if longest > LONGEST_TOKEN:
        refuse("a token of %d characters" % longest, "%d at most: convert the model again" % LONGEST_TOKEN)
    kinds = _value(header, "token_type")
    if kinds is not None and not isinstance(kinds, tuple):
        refuse("tokenizer.ggml.token_type that is no array of numbers", "the kind of each token: convert it again")
    if kinds is not None and len(kinds) != len(tokens):
        refuse("%d kinds of tokens for %d tokens" % (len(kinds), len(tokens)), "as many")


def _kinds(header):
    return _value(header, "token_type") or [NORMAL] * len(_value(header, "tokens"))


def _token(header, name):
    """The text of a special token by the header's name for its id; None if there is none."""
    number, tokens = _value(header, name), _value(header, "tokens")
    return tokens[number] if isinstance(number, int) and 0 <= number < len(tokens) else None


def _adds(header, end):
    """Whether a text gets the token of its begin, or of its end."""
    value = _value(header, "add_%s_token" % end)
    if value is not None:
        return bool(value)
    if end != "bos":
        return False
    return _value(header, "model") == "llama" or WORDS_OF[_value(header, "pre")].begins


def tokenizer_config_of(header):
    """The content of tokenizer_config.json. Raises UnsupportedFileError."""
    check_tokenizer(header)
    section = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        "model_max_length": header.values.get("%s.context_length" % header.architecture),
    }
    for key, name in (("bos_token", "bos_token_id"), ("eos_token", "eos_token_id"), ("unk_token", "unknown_token_id"),
                      ("pad_token", "padding_token_id")):
        token = _token(header, name)
        if token is not None:
            section[key] = token
    template = header.values.get("tokenizer.chat_template")
    if isinstance(template, str):
        section["chat_template"] = template
    return section


def generation_config_of(header):
    """The content of generation_config.json: the tokens that end an answer. No defaults of sampling are known."""
    tokens, kinds = _value(header, "tokens"), _kinds(header)
    ids = [_value(header, name) for name in ENDING_IDS]
    ids += [number for number, token in enumerate(tokens) if kinds[number] == CONTROL and token in ENDINGS]
    return {"eos_token_id": list(dict.fromkeys(number for number in ids if isinstance(number, int)))}


def tokenizer_of(header):
    """The content of tokenizer.json. Raises UnsupportedFileError."""
    check_tokenizer(header)
    kinds, is_bytes = _kinds(header), _value(header, "model") == "gpt2"
    # Tokens that a user defined are looked for in the text as it is.
    tokens = [
        token.replace(SPACE, " ") if kinds[number] == USER_DEFINED and not is_bytes else token
        for number, token in enumerate(_value(header, "tokens"))
    ]
    added = [
        {"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kinds[number] != USER_DEFINED}
        for number, token in enumerate(tokens) if kinds[number] in (UNKNOWN, CONTROL, USER_DEFINED) and token
    ]
    vocabulary = {}
    for number, token in enumerate(tokens):
        vocabulary.setdefault(token, number)
    made = _byte_level(header) if is_bytes else _sentencepiece(header, tokens, kinds, vocabulary)
    made["model"]["vocab"] = vocabulary
    return dict(
        made, version="1.0", truncation=None, padding=None, added_tokens=added, post_processor=_template(header, tokens)
    )


def _template(header, tokens):
    """The post-processor that adds the tokens of a text's begin and end; None if there are none."""
    ends = []
    for end in ("bos", "eos"):
        number = _value(header, end + "_token_id") if _adds(header, end) else None
        ends.append(number if isinstance(number, int) and number < len(tokens) else None)
    if ends == [None, None]:
        return None

    def sequence(name, kind):
        first, last = ([] if number is None else [{"SpecialToken": {"id": tokens[number], "type_id": kind}}]
                       for number in ends)
        return first + [{"Sequence": {"id": name, "type_id": kind}}] + last

    return {
        "type": "TemplateProcessing", "single": sequence("A", 0), "pair": sequence("A", 0) + sequence("B", 1),
        "special_tokens": {
            tokens[number]: {"id": tokens[number], "ids": [number], "tokens": [tokens[number]]}
            for number in ends if number is not None
        },
    }


def _byte_level(header):
    words = WORDS_OF[_value(header, "pre")]
    steps = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in words.patterns
    ]
    bytes_alone = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": words.gpt2}
    return {
        "normalizer": {"type": "NFC"} if words.composed else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps + [bytes_alone]},
        "decoder": dict(bytes_alone, use_regex=True),
        "model": _model(unk_token=None, merges=_pairs(header), ignore_merges=words.whole),
    }


def _pairs(header):
    """Pairs of tokens that are merged, from the first on."""
    pairs = []
    for text in _value(header, "merges"):
        # A space may begin the first token.
        cut = text.find(" ", 1)
        pairs.append([text[:cut], text[cut + 1:]])
    return pairs


def _model(unk_token, merges, ignore_merges=False, byte_fallback=False):
    return {
        "type": "BPE", "dropout": None, "unk_token": unk_token, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": byte_fallback, "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges, "merges": merges,
    }


def _sentencepiece(header, tokens, kinds, vocabulary):
    prefix = _value(header, "add_space_prefix")
    prefix = True if prefix is None else bool(prefix)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    decoders = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = [token for number, token in enumerate(tokens) if kinds[number] == UNKNOWN]
    merges = _merges(tokens, kinds, _value(header, "scores"), vocabulary)
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps + [spaces]}, "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _model(_token(header, "unknown_token_id") or (unknown[0] if unknown else None), merges,
                        byte_fallback=BYTE in kinds),
    }


def _merges(tokens, kinds, scores, vocabulary):
    """Pairs of tokens that are merged: those of the token with the highest score first."""
    normal = {token for number, token in enumerate(tokens) if kinds[number] == NORMAL}
    ranked = []
    for number, token in enumerate(tokens):
        if kinds[number] != NORMAL or len(token) < 2:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in normal and right in normal:
                ranked.append((-scores[number], vocabulary[left], vocabulary[right], left, right))
    ranked.sort()
    return [[left, right] for _, _, _, left, right in ranked]
