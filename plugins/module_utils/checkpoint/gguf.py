"""Headers of GGUF files: their values and tensors, checked against the sizes of the files."""

import os
import re
import struct
from typing import Any, Dict, List, NamedTuple

from .errors import CorruptFileError, UnsupportedFileError, unfetched, unreadable

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
SUPPORTED_TYPES = "weights of the types %s" % ", ".join(sorted(kind[0] for kind in TYPES.values()))
# Values of a part of a split file: its number from 0 on, how many there are, and the tensors of all.
PART, PARTS, ALL_TENSORS = "split.no", "split.count", "split.tensors.count"
PART_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)$", re.IGNORECASE)
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
# struct's letters of the types of values: bytes and shorts, whole numbers and floats, a truth value.
VALUES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Of a header at most; damaged counts would take hours and all memory.
MOST_VALUES, MOST_TENSORS, MOST_MEMBERS, MOST_BYTES = 1 << 16, 1 << 20, 1 << 22, 1 << 27
# No tensor has more dimensions.
MOST_DIMENSIONS = 4
# The first bytes of a file that git left for git-lfs to fetch.
POINTER = b"version https://git-lfs"
MAGIC = b"GGUF"


class Tensor(NamedTuple):
    """A tensor of a file.

    Attributes:
        path: the file that holds it.
        offset: of its first byte in the file.
        kind: name of its type.
        shape: with the dimension whose elements lie side by side last.
    """

    path: str
    offset: int
    kind: str
    shape: List[int]


class Header(NamedTuple):
    """The header of a file, or of all parts of one that is split.

    Attributes:
        path: the file, or its first part.
        values: by their names; an array is a sequence.
        tensors: by their names.
    """

    path: str
    values: Dict[str, Any]
    tensors: Dict[str, Tensor]

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture"))


def elements_of(shape):
    """How many elements a tensor has."""
    count = 1
    for length in shape:
        count *= length
    return count


class _Reader(object):
    """Reads a header's values one after the other."""

    def __init__(self, path, stream):
        self.path, self.stream, self.size = path, stream, os.path.getsize(path)

    def refuse(self, found, expected):
        raise UnsupportedFileError(found, expected, self.path)

    def corrupt(self):
        return CorruptFileError("%d bytes" % self.size, "a whole GGUF file: copy it again", self.path)

    def check(self, is_whole):
        if not is_whole:
            raise self.corrupt()

    def bytes(self, count):
        # Not more than there is: a damaged count would ask for all of the memory.
        self.check(count <= min(self.size, MOST_BYTES) - self.stream.tell())
        return self.stream.read(count)

    def numbers(self, letter, count):
        form = "<%d%s" % (count, letter)
        return struct.unpack(form, self.bytes(struct.calcsize(form)))

    def number(self, letter):
        return self.numbers(letter, 1)[0]

    def text(self):
        return self.bytes(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind):
        """A value; a sequence for an array."""
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            inner, count = self.number("I"), self.number("Q")
            self.check(count <= MOST_MEMBERS)
            if inner == STRING:
                return [self.text() for _ in range(count)]
            self.check(inner in VALUES)
            return self.numbers(VALUES[inner], count)
        self.check(kind in VALUES)
        return self.number(VALUES[kind])

    def magic(self):
        """Read the first eight bytes: the format's name and its version."""
        start = self.stream.read(len(POINTER))
        if start == POINTER:
            raise unfetched(self.path)
        self.stream.seek(len(MAGIC))
        self.check(start.startswith(MAGIC))
        version = self.number("I")
        if version not in VERSIONS:
            self.check(version)
            swapped = struct.unpack(">I", struct.pack("<I", version))[0]
            kind = "a big-endian GGUF file" if swapped in VERSIONS else "a GGUF file of version %d" % version
            self.refuse(kind, "a little-endian one of version 2 or 3: convert the model again")

    def header(self):
        """Read the whole header of one file."""
        self.magic()
        tensor_count, value_count = self.number("Q"), self.number("Q")
        self.check(tensor_count <= MOST_TENSORS and value_count <= MOST_VALUES)
        values = {}
        for _ in range(value_count):
            name = self.text()
            values[name] = self.value(self.number("I"))
        alignment = values.get("general.alignment", 32)
        self.check(isinstance(alignment, int) and alignment > 0)
        self.check(all(isinstance(values.get(name, 0), int) for name in (PART, PARTS, ALL_TENSORS)))
        found, end = [], 0
        for _ in range(tensor_count):
            name, dimensions = self.text(), self.number("I")
            self.check(dimensions <= MOST_DIMENSIONS)
            # In the file the fastest dimension comes first.
            shape = list(self.numbers("Q", dimensions))[::-1]
            number, offset = self.number("I"), self.number("Q")
            if number not in TYPES:
                kind = OTHER_TYPES.get(number, "number %d" % number)
                self.refuse("weights of the type %s (%s)" % (kind, name), SUPPORTED_TYPES)
            kind, columns, block = TYPES[number]
            self.check(shape and all(shape) and shape[-1] % columns == 0)
            end = max(end, offset + elements_of(shape) // columns * block)
            found.append((name, offset, kind, shape))
        start = -(-self.stream.tell() // alignment) * alignment
        self.check(start + end <= self.size)
        tensors = {name: Tensor(self.path, start + offset, kind, shape) for name, offset, kind, shape in found}
        self.check(len(tensors) == len(found))
        return Header(self.path, values, tensors)


def _read_file(path):
    try:
        with open(path, "rb") as stream:
            return _Reader(path, stream).header()
    except OSError as error:
        raise unreadable(error, path)


def part_path(path, number):
    """Path of a part, from 1 on, of the split file of which `path` is one; None if the name is not a part's."""
    match = PART_NAME.match(path)
    return "%s-%05d-of-%s%s" % (match.group(1), number, match.group(3), match.group(4)) if match else None


def all_parts(path):
    """Paths of all parts of the file of which `path` is one, by its name; of a whole file the path alone."""
    match = PART_NAME.match(path)
    return [part_path(path, number) for number in range(1, int(match.group(3)) + 1)] if match else [path]


def read_header(path):
    """The Header of a file, or of all parts of the split file that it is the first of. Raises FileError."""
    first = _read_file(path)
    match, count, number = PART_NAME.match(path), first.values.get(PARTS, 1), first.values.get(PART, 0)
    if count <= 1:
        if match is not None and int(match.group(3)) > 1:
            raise UnsupportedFileError("a whole file", "part %d of %d, as its name says" % (
                int(match.group(2)), int(match.group(3))), path)
        return first
    if match is None or int(match.group(3)) != count or int(match.group(2)) != number + 1:
        raise UnsupportedFileError(
            "part %d of %d of a split file" % (number + 1, count),
            "the name that gguf-split gave it: NAME-%05d-of-%05d.gguf" % (number + 1, count), path,
        )
    if number:
        raise UnsupportedFileError("part %d of a split file" % (number + 1), part_path(path, 1), path)
    tensors = dict(first.tensors)
    for other in range(2, count + 1):
        part = _read_file(part_path(path, other))
        place = (part.values.get(PART, 0) + 1, part.values.get(PARTS, 1))
        if place != (other, count):
            raise UnsupportedFileError("part %d of %d" % place, "part %d of %d: fetch it again" % (other, count),
                                       part.path)
        twice = sorted(set(tensors) & set(part.tensors))
        if twice:
            raise UnsupportedFileError(
                "a tensor %s, which %s has too" % (twice[0], os.path.basename(tensors[twice[0]].path)),
                "parts of one file", part.path,
            )
        tensors.update(part.tensors)
    expected = first.values.get(ALL_TENSORS, len(tensors))
    if len(tensors) != expected:
        raise UnsupportedFileError(
            "%d tensors in its %d parts" % (len(tensors), count),
            "%d, as its header says: parts of one file" % expected, path,
        )
    return first._replace(tensors=tensors)


def read_floats(header, name):
    """The numbers of a small tensor of the type F32. Raises FileError."""
    tensor = header.tensors[name]
    if tensor.kind != "F32":
        raise UnsupportedFileError("%s of the type %s" % (name, tensor.kind), "F32", tensor.path)
    count = elements_of(tensor.shape)
    with open(tensor.path, "rb") as stream:
        stream.seek(tensor.offset)
        return list(struct.unpack("<%df" % count, stream.read(4 * count)))


def is_gguf(path):
    """Whether a file is a GGUF file, by its name or its first bytes."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as stream:
            return path.lower().endswith(".gguf") or stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
