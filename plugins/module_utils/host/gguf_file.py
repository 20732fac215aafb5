"""The header of a GGUF file: its tensors, checked against the file's size."""

import os
import re
import struct

# Number of a type in the file: its name, columns of a block, bytes of a block.
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
}
# Bits of the codes in which the port keeps a type; it keeps the others as an unquantized model's weights.
BITS = {"Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "Q5_0": 8, "Q5_1": 8, "Q5_K": 8, "Q8_0": 8}
# Of these, groups have no zero point of their own.
SYMMETRIC = ("Q4_0", "Q5_0", "Q8_0")
ARCHITECTURES = ("llama", "qwen2", "qwen3")
WORKS = "a GGUF file of a Llama, Mistral, Qwen2 or Qwen3 in %s" % ", ".join(sorted(kind[0] for kind in TYPES.values()))
# Names of a model's tensors by the file's; of a layer's after blk.N.
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
# config.json says the same.
DERIVED = "rope_freqs.weight"
STRING, ARRAY = 8, 9
# struct's letters of the types of values: bytes and shorts, whole numbers and floats, a truth value.
VALUES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# No name or text of a file is longer, and no tensor has more dimensions.
LONGEST_TEXT, MOST_DIMENSIONS = 1 << 24, 4


class Damaged(Exception):
    """A file that is no whole GGUF file."""


class Unserved(Exception):
    """A file that the port does not serve; the text says what was found."""


class Header(object):
    """Reads a header's values one after the other."""

    def __init__(self, stream, size):
        self.stream, self.size = stream, size

    def number(self, letter):
        width = struct.calcsize("<" + letter)
        data = self.stream.read(width)
        if len(data) != width:
            raise Damaged()
        return struct.unpack("<" + letter, data)[0]

    def text(self):
        length = self.number("Q")
        if length > LONGEST_TEXT:
            raise Damaged()
        data = self.stream.read(length)
        if len(data) != length:
            raise Damaged()
        return data.decode("utf-8", "replace")

    def skip(self, count):
        if self.stream.tell() + count > self.size:
            raise Damaged()
        self.stream.seek(count, os.SEEK_CUR)

    def value(self, kind):
        """A value; None of an array, which is skipped."""
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if inner in VALUES:
                self.skip(count * struct.calcsize("<" + VALUES[inner]))
            elif inner == STRING:
                for _ in range(count):
                    self.skip(self.number("Q"))
            else:
                raise Damaged()
            return None
        if kind not in VALUES:
            raise Damaged()
        return self.number(VALUES[kind])


def model_name(name):
    """The model's name for a tensor of the file. Raises Unserved."""
    found = re.match(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)$", name)
    layer, own, kind = found.groups() if found else (None, None, None)
    names = NAMES if layer is None else LAYER_NAMES
    if own not in names:
        raise Unserved("a tensor %s" % name)
    return "%s%s.%s" % ("" if layer is None else "model.layers.%s." % layer, names[own], kind)


def header(path):
    """Tensors of a file: [(the model's name, type, shape)].

    Raises Damaged and Unserved.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as stream:
        read = Header(stream, size)
        if stream.read(4) != b"GGUF" or read.number("I") not in (2, 3):
            raise Damaged()
        tensor_count, value_count = read.number("Q"), read.number("Q")
        values = {}
        for _ in range(value_count):
            name = read.text()
            values[name] = read.value(read.number("I"))
        if values.get("general.architecture") not in ARCHITECTURES:
            raise Unserved("the architecture %s" % values.get("general.architecture"))
        alignment, parts = values.get("general.alignment", 32), values.get("split.count", 1)
        if not isinstance(parts, int) or not isinstance(alignment, int) or alignment < 1:
            raise Damaged()
        if parts > 1:
            raise Unserved("a part of a split file (join it with llama-gguf-split --merge)")
        tensors, end = [], 0
        for _ in range(tensor_count):
            name, dimensions = read.text(), read.number("I")
            if dimensions > MOST_DIMENSIONS:
                raise Damaged()
            # In the file the fastest dimension comes first.
            shape = [read.number("Q") for _ in range(dimensions)][::-1]
            number, offset = read.number("I"), read.number("Q")
            if number not in TYPES:
                raise Unserved("weights of the type number %d (%s)" % (number, name))
            kind, columns, block = TYPES[number]
            elements = 1
            for length in shape:
                elements *= length
            end = max(end, offset + elements // columns * block)
            if name != DERIVED:
                tensors.append((model_name(name), kind, shape))
        start = -(-stream.tell() // alignment) * alignment
    if start + end > size:
        raise Damaged()
    return tensors
