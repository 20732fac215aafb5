"""The header of a GGUF file: its tensors, checked against the file's size."""

import os
import re
import struct
from typing import Dict, NamedTuple, Tuple

from .errors import CorruptFileError, FileError, UnsupportedFileError

# Number of a type in the file: its name, columns of a block, bytes of a block.
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
}
# Names of the types that the port has no kernels for.
OTHER_TYPES = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}
# Bits of the codes in which the port keeps a type; it keeps the others as an unquantized model's weights.
BITS = {"Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "Q5_0": 8, "Q5_1": 8, "Q5_K": 8, "Q8_0": 8}
# Of these, groups have no zero point of their own.
SYMMETRIC = ("Q4_0", "Q5_0", "Q8_0")
# Columns that share a scale once a file's blocks are unpacked.
GROUP = 32
# Architectures of files, and the model types that they go with. Converters change the weights of others.
ARCHITECTURES = {"llama": ("llama", "mistral"), "qwen2": ("qwen2",), "qwen3": ("qwen3",)}
SUPPORTED_FILES = (
    "a directory with one GGUF file of a Llama, Mistral, Qwen2 or Qwen3 in %s, its config.json and its tokenizer"
    % ", ".join(sorted(kind[0] for kind in TYPES.values()))
)
# Names of a model's tensors by the file's; of a layer's after blk.N.
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
# config.json says the same.
ROPE_FACTORS = "rope_freqs.weight"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
# struct's letters of the types of values: bytes and shorts, whole numbers and floats, a truth value.
VALUES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# No name or text of a file is longer, and no tensor has more dimensions.
LONGEST_TEXT, MOST_DIMENSIONS = 1 << 24, 4
# The first bytes of a file that git left for git-lfs to fetch.
POINTER = b"version https://git-lfs"


class Header(NamedTuple):
    """A file's header.

    Attributes:
        architecture: one of ARCHITECTURES.
        tensors: the model's name, type and shape by the file's name.
        has_rope_factors: whether the file holds scaled rotary frequencies.
    """

    architecture: str
    tensors: Dict[str, Tuple[str, str, list]]
    has_rope_factors: bool


class _Reader(object):
    """Reads a header's values one after the other."""

    def __init__(self, path, stream):
        self.path, self.stream, self.size = path, stream, os.path.getsize(path)

    def refuse(self, found, expected=SUPPORTED_FILES):
        raise UnsupportedFileError(found, expected, self.path)

    def corrupt(self):
        return CorruptFileError("%d bytes" % self.size, "a whole GGUF file: copy it again", self.path)

    def check(self, is_whole):
        if not is_whole:
            raise self.corrupt()

    def number(self, letter):
        width = struct.calcsize("<" + letter)
        data = self.stream.read(width)
        self.check(len(data) == width)
        return struct.unpack("<" + letter, data)[0]

    def text(self):
        length = self.number("Q")
        self.check(length <= LONGEST_TEXT)
        data = self.stream.read(length)
        self.check(len(data) == length)
        return data.decode("utf-8", "replace")

    def skip(self, count):
        self.check(self.stream.tell() + count <= self.size)
        self.stream.seek(count, os.SEEK_CUR)

    def value(self, kind):
        """A value; None for an array, which is skipped."""
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            inner, count = self.number("I"), self.number("Q")
            self.check(inner in VALUES or inner == STRING)
            if inner in VALUES:
                self.skip(count * struct.calcsize("<" + VALUES[inner]))
            else:
                for _ in range(count):
                    self.skip(self.number("Q"))
            return None
        self.check(kind in VALUES)
        return self.number(VALUES[kind])

    def magic(self):
        """Read the file's first bytes."""
        start = self.stream.read(len(POINTER))
        if start == POINTER:
            raise FileError("a pointer of git-lfs", "the file itself: run git lfs pull", self.path)
        self.stream.seek(4)
        self.check(start.startswith(b"GGUF"))
        version = self.number("I")
        if version not in VERSIONS:
            self.check(version)
            swapped = struct.unpack(">I", struct.pack("<I", version))[0]
            kind = "a big-endian GGUF file" if swapped in VERSIONS else "a GGUF file of version %d" % version
            self.refuse(kind, "a little-endian one of version 2 or 3: convert the model again")

    def header(self):
        """Read the whole header."""
        self.magic()
        tensor_count, value_count = self.number("Q"), self.number("Q")
        values = {}
        for _ in range(value_count):
            name = self.text()
            values[name] = self.value(self.number("I"))
        architecture = values.get("general.architecture")
        if architecture not in ARCHITECTURES:
            self.refuse("the architecture %s" % architecture)
        alignment, parts = values.get("general.alignment", 32), values.get("split.count", 1)
        self.check(isinstance(parts, int) and isinstance(alignment, int) and alignment > 0)
        if parts > 1:
            self.refuse("a part of a split file (join it with llama-gguf-split --merge)")
        tensors, end = {}, 0
        for _ in range(tensor_count):
            name, dimensions = self.text(), self.number("I")
            self.check(dimensions <= MOST_DIMENSIONS)
            # In the file the fastest dimension comes first.
            shape = [self.number("Q") for _ in range(dimensions)][::-1]
            number, offset = self.number("I"), self.number("Q")
            if number not in TYPES:
                kind = OTHER_TYPES.get(number, "number %d" % number)
                self.refuse("weights of the type %s (%s)" % (kind, name))
            kind, columns, block = TYPES[number]
            elements = 1
            for length in shape:
                elements *= length
            end = max(end, offset + elements // columns * block)
            tensors[name] = (name if name == ROPE_FACTORS else self.model_name(name), kind, shape)
        start = -(-self.stream.tell() // alignment) * alignment
        self.check(start + end <= self.size)
        return Header(architecture, tensors, tensors.pop(ROPE_FACTORS, None) is not None)

    def model_name(self, name):
        """The model's name for a tensor."""
        match = re.match(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)$", name)
        layer, own, kind = match.groups() if match else (None, None, None)
        names = NAMES if layer is None else LAYER_NAMES
        if own not in names:
            self.refuse("a tensor %s" % name)
        return "%s%s.%s" % ("" if layer is None else "model.layers.%s." % layer, names[own], kind)


def read_header(path):
    """The Header of a file. Raises FileError."""
    try:
        with open(path, "rb") as stream:
            return _Reader(path, stream).header()
    except OSError as error:
        raise FileError(error.strerror or "an error", "a file that can be read", path)


def check_model(path, header, model_type, scales_rope):
    """Raise UnsupportedFileError if a file is not one of the model that config.json describes.

    scales_rope: whether config.json has a rope_scaling.
    """
    if model_type not in ARCHITECTURES[header.architecture]:
        raise UnsupportedFileError(
            "the architecture %s beside a config.json of a %s" % (header.architecture, model_type), SUPPORTED_FILES,
            path,
        )
    if header.has_rope_factors and not scales_rope:
        raise UnsupportedFileError(
            "scaled rotary frequencies (%s) and no rope_scaling in config.json" % ROPE_FACTORS,
            "the config.json of the very model that the file was made of", path,
        )
