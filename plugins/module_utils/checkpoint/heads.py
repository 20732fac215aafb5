"""A model that is not there yet: a directory of its files in their sizes, of which those parts are there that say what
the model is. The reader takes it for the model itself."""

import os
import re
import struct

from . import adapters, gguf, gguf_families
from .errors import CorruptFileError, FileError, UnsupportedFileError
from .files import INDEX, MAX_HEADER, PICKLE_INDEX

# Files that are read whole. They are fetched before the weights, too.
CONFIGS = ("config.json", "tokenizer_config.json")
WHOLE = CONFIGS + (INDEX, PICKLE_INDEX, adapters.CONFIG)
# Of a model's files those that a server reads: configuration, tokenizer, weights.
TEXTS = (".json", ".txt", ".model", ".jinja", ".tiktoken")
OTHER_FORMATS = (".gguf", ".ggml", ".pt", ".pth", ".onnx", ".h5", ".msgpack", ".npz")
# Names of the weights, and those of the same in another precision, as transformers writes both.
PLAIN = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors\Z")
VARIANT = re.compile(r"model(\.\w+(-\d{5}-of-\d{5})?|-\d{5}-of-\d{5}\.\w+)\.safetensors\Z")
# Bytes from the begin of a weight file on that are asked for until its header is in them.
BEGIN = 1 << 17
STEPS = (1 << 20, 1 << 24, 1 << 26)
# Answers of a hub that has too much to do, and the seconds after which it is asked again where it does not say.
BUSY, WAIT = (429, 503), 5.0


def wait_of(status, headers, longest):
    """Seconds after which a busy hub may be asked again, at most `longest`; None for any other answer."""
    if status not in BUSY:
        return None
    wanted = headers.get("Retry-After") or ""
    return min(float(wanted) if re.match(r"[0-9]+\Z", wanted) else WAIT, longest)


def choose(names, file=""):
    """Files to fetch of those that a repository has. Raises FileError.

    file: a GGUF file of it, of which all parts are chosen and nothing else; else texts, and weights as safetensors or
        as PyTorch's.
    """
    if file:
        parts = gguf.all_parts(file)
        missing = sorted(set(parts) - set(names))
        if missing:
            others = sorted(name for name in names if name.lower().endswith(".gguf"))
            raise FileError("no such file", "a GGUF file of the repository: %s" % (
                ", ".join(others[:20]) or "it has none"), missing[0])
        return parts
    own = [name for name in names if "/" not in name]
    weights = [name for name in own if name.endswith(".safetensors") and not name.startswith("consolidated")]
    # The engine reads all that are there: no adapter, and no second precision beside the first.
    weights = [name for name in weights if name != adapters.WEIGHTS]
    if any(PLAIN.match(name) for name in weights):
        weights = [name for name in weights if not VARIANT.match(name)]
    if not weights:
        weights = [name for name in own if name.startswith("pytorch_model") and name.endswith(".bin")]
    if not weights:
        others = sorted({os.path.splitext(name)[1] for name in names if name.endswith(OTHER_FORMATS)})
        raise UnsupportedFileError(
            "weights as %s" % ", ".join(others) if others else "no weights",
            "*.safetensors or pytorch_model*.bin, or the name of a GGUF file of it: OWNER/NAME/FILE.gguf",
            "the repository",
        )
    return sorted([name for name in own if name.endswith(TEXTS)] + weights)


def lay_out(directory, sizes, read):
    """Write the files, and into them what says what the model is. Raises FileError.

    Args:
        directory: an empty one.
        sizes: bytes of each file, by its name in the repository.
        read: function from a file's name, its first byte and the one after the last to these bytes.
    """
    def have(name, first, last):
        # What the hub sends beyond its own sizes is no part of the file.
        content = read(name, first, last)[:last - first]
        with open(place_of(directory, name), "r+b") as stream:
            stream.seek(first)
            stream.write(content)

    for name, size in sizes.items():
        with open(place_of(directory, name), "wb") as stream:
            stream.truncate(size)
        if name in WHOLE:
            if size > MAX_HEADER:
                raise CorruptFileError("%d bytes" % size, "a JSON mapping", name)
            have(name, 0, size)
        elif name.endswith(".safetensors"):
            _read_header(directory, name, size, have)
    parts = {name: size for name, size in sizes.items() if gguf.PART_NAME.match(name) or name.endswith(".gguf")}
    if parts:
        _read_gguf(directory, parts, have)


def place_of(directory, name):
    """Path of a file there: names of a repository may have directories."""
    return os.path.join(directory, os.path.basename(name))


def _read_header(directory, name, size, have):
    """The header of a safetensors file, whose length its first eight bytes say."""
    have(name, 0, min(size, BEGIN))
    with open(place_of(directory, name), "rb") as stream:
        start = stream.read(8)
    end = 8 + struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if BEGIN < end <= min(size, 8 + MAX_HEADER):
        have(name, BEGIN, end)


def _read_gguf(directory, sizes, have):
    """The header of a GGUF file, or of all parts of one: nobody knows its length before it is read."""
    there = dict.fromkeys(sizes, 0)
    first = place_of(directory, min(sizes))
    for ahead in STEPS:
        for name, size in sizes.items():
            if there[name] < min(ahead, size):
                have(name, there[name], min(ahead, size))
                there[name] = min(ahead, size)
        try:
            header = gguf.read_header(first)
        except FileError:
            if ahead == STEPS[-1] or there == sizes:
                raise
            continue
        begins = {}
        for tensor in header.tensors.values():
            begins[tensor.path] = min(begins.get(tensor.path, tensor.offset), tensor.offset)
        # What is not there yet reads as zeros, of which a header may seem to end.
        if all(begins.get(place_of(directory, name), 0) <= there[name] for name in sizes):
            break
    for tensor in (header.tensors[name] for name in gguf_families.FACTORS if name in header.tensors):
        name = next(name for name in sizes if place_of(directory, name) == tensor.path)
        have(name, tensor.offset, min(tensor.offset + 4 * gguf.elements_of(tensor.shape), sizes[name]))
