"""GGUF files by the format's specification: headers, and data that are zeros."""

import struct

from module_utils.checkpoint import gguf

Q4_0, Q8_0, Q4_K, Q6_K, F32 = 2, 8, 12, 14, 0
# Name, shape as a model has it, number of the type.
TENSORS = [
    ("token_embd.weight", (96, 256), Q6_K), ("blk.0.attn_q.weight", (256, 256), Q4_K),
    ("blk.1.attn_q.weight", (256, 256), Q4_K), ("blk.0.attn_norm.weight", (256,), F32),
    ("blk.0.ffn_down.weight", (256, 512), Q6_K), ("output_norm.weight", (256,), F32), ("rope_freqs.weight", (32,), F32),
]
VALUES = [("general.architecture", 8, "llama"), ("general.alignment", 4, 64), ("tokens", 9, (8, ["a", "bc"])),
          ("scores", 9, (6, [1.0, 2.0]))]


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value_bytes(kind, value):
    if kind == 8:
        return text(value)
    if kind == 9:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(value_bytes(inner, item) for item in items)
    return struct.pack("<" + gguf.VALUES[kind], value)


def write(path, tensors=TENSORS, values=VALUES, version=3, data=b""):
    """A file by the format's specification; after `data` are zeros."""
    infos, end = b"", 0
    for name, shape, number in tensors:
        _, columns, block = gguf.TYPES.get(number, ("", 1, 1))
        elements = 1
        for length in shape:
            elements *= length
        infos += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], number, end)
        end += -(-elements // columns * block // 64) * 64
    pairs = b"".join(text(name) + struct.pack("<I", kind) + value_bytes(kind, value) for name, kind, value in values)
    whole = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values)) + pairs + infos
    start = whole + bytes(-len(whole) % 64)
    path.write_bytes(start + data + bytes(end - len(data)))
    return path


UINT, FLOAT, BOOL, TEXT, ARRAY = 4, 6, 7, 8, 9
HIDDEN, HEADS, KV, INNER, VOCABULARY = 64, 4, 2, 96, 12
# Kinds of tokens: unknown, two that control, two that a user defined, a byte, and words.
TOKENS = ["<unk>", "<s>", "</s>", "  ", "<end_of_turn>", "<0x0A>", "\u2581", "a", "b", "ab", "\u2581ab", "\u2581a"]
KINDS = [2, 3, 3, 4, 3, 6, 1, 1, 1, 1, 1, 1]
SCORES = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -9.0, -10.0, -11.0, -1.0, -3.0, -2.0]
SENTENCEPIECE = [
    ("tokenizer.ggml.model", TEXT, "llama"), ("tokenizer.ggml.tokens", ARRAY, (TEXT, TOKENS)),
    ("tokenizer.ggml.scores", ARRAY, (FLOAT, SCORES)), ("tokenizer.ggml.token_type", ARRAY, (5, KINDS)),
    ("tokenizer.ggml.bos_token_id", UINT, 1), ("tokenizer.ggml.eos_token_id", UINT, 2),
    ("tokenizer.ggml.unknown_token_id", UINT, 0), ("tokenizer.chat_template", TEXT, "{{ messages }}"),
]
WORDS = ["a", "b", "c", "\u0120", "ab", "<|im_end|>"]
BYTES = [
    ("tokenizer.ggml.model", TEXT, "gpt2"), ("tokenizer.ggml.pre", TEXT, "qwen2"),
    ("tokenizer.ggml.tokens", ARRAY, (TEXT, WORDS)), ("tokenizer.ggml.token_type", ARRAY, (5, [1, 1, 1, 1, 1, 3])),
    ("tokenizer.ggml.merges", ARRAY, (TEXT, ["a b"])), ("tokenizer.ggml.eos_token_id", UINT, 5),
]


def header_values(architecture, tokenizer=SENTENCEPIECE, **differs):
    """Values of a header; None leaves one out."""
    numbers = {
        "context_length": (UINT, 512), "embedding_length": (UINT, HIDDEN), "block_count": (UINT, 1),
        "feed_forward_length": (UINT, INNER), "attention.head_count": (UINT, HEADS),
        "attention.head_count_kv": (UINT, KV), "attention.layer_norm_rms_epsilon": (FLOAT, 1e-5),
        "rope.freq_base": (FLOAT, 10000.0),
        **{name.replace("__", "."): value for name, value in differs.items()},
    }
    own = [(f"{architecture}.{name}", *value) for name, value in numbers.items() if value]
    return [("general.architecture", TEXT, architecture), ("general.alignment", UINT, 64), *own, *tokenizer]


def layer(*others, names=("attn_q", "attn_k", "attn_v", "attn_output")):
    own = {"attn_q": HIDDEN, "attn_k": HIDDEN // HEADS * KV, "attn_v": HIDDEN // HEADS * KV, "attn_output": HIDDEN}
    return [
        ("token_embd.weight", (VOCABULARY, HIDDEN), Q4_0), ("output_norm.weight", (HIDDEN,), F32),
        *[(f"blk.0.{name}.weight", (own[name], HIDDEN), Q4_0) for name in names], *others,
    ]
