"""The files of a model's directory: config.json, the index of the weights and the headers of safetensors."""

import json
import os
import re
import struct

from . import gguf_file

# The longest header that the format's own library accepts.
MAX_HEADER = 100 * 1000 * 1000
# Bits of an element.
BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
}
SAFETENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


class Fault(Exception):
    """A file that is not what it should be: what was found and what is expected."""

    def __init__(self, found, expected):
        super(Fault, self).__init__(found)
        self.found, self.expected = found, expected


def read_json(path):
    """The mapping that a file holds."""
    try:
        with open(path, "rb") as stream:
            value = json.loads(stream.read().decode("utf-8"))
    except OSError as error:
        raise Fault(error.strerror or "an error", "a file that can be read")
    # The parser gives up on what is nested too deeply.
    except (ValueError, RecursionError) as error:
        raise Fault("what is no JSON: %s" % error, "a JSON mapping")
    if not isinstance(value, dict):
        raise Fault("JSON that is no mapping", "a JSON mapping")
    return value


def is_sizes(value):
    return isinstance(value, list) and all(isinstance(size, int) and size >= 0 for size in value)


def header(path):
    """Tensors of one safetensors file: [(name, dtype, shape)], after its sizes were checked against the file's.

    Eight bytes give the length of a JSON mapping of name to dtype, shape and data_offsets; the data follow.
    """
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= MAX_HEADER or 8 + length > size:
                raise Fault("%d bytes that begin with no header" % size, "a whole safetensors file")
            text = stream.read(length)
    except OSError as error:
        raise Fault(error.strerror or "an error", "a file that can be read")
    try:
        entries = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        raise Fault("a header that is no JSON mapping", "a whole safetensors file")
    tensors, end = [], 0
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        entry = entry if isinstance(entry, dict) else {}
        offsets, shape, bits = entry.get("data_offsets"), entry.get("shape"), BITS.get(str(entry.get("dtype")))
        if not is_sizes(shape) or not is_sizes(offsets) or len(offsets) != 2 or bits is None:
            raise Fault("a header whose entry %s is malformed" % name, "dtype, shape and data_offsets")
        elements = 1
        for number in shape:
            elements *= number
        if offsets[1] - offsets[0] != (elements * bits + 7) // 8:
            raise Fault(
                "%d bytes for %s of shape %s in %s" % (offsets[1] - offsets[0], name, shape, entry["dtype"]),
                "%d bytes" % ((elements * bits + 7) // 8),
            )
        end = max(end, offsets[1])
        tensors.append((name, entry["dtype"], shape))
    if size != 8 + length + end:
        raise Fault("%d bytes" % size, "%d bytes, as its header says: copy the file again" % (8 + length + end))
    return tensors


def grouped(tensors):
    """Tensors of one form counted together: a layer's number in the name becomes *."""
    counts = {}
    for name, dtype, shape in tensors:
        key = (re.sub(r"(?<=\.)\d+(?=\.)", "*", re.sub(r"^\d+(?=\.)", "*", name)), dtype, tuple(shape))
        counts[key] = counts.get(key, 0) + 1
    return [
        {"name": name, "dtype": dtype, "shape": list(shape), "count": counts[name, dtype, shape]}
        for name, dtype, shape in sorted(counts)
    ]


def parts(directory, index):
    """({file: names of its tensors}) of an index."""
    weight_map = read_json(os.path.join(directory, index)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise Fault("an index without weight_map", "a mapping of tensor to file")
    files = {}
    for name, part in weight_map.items():
        # A name that leads out of the directory is no part of the model.
        if not isinstance(part, str) or os.path.basename(part) != part or part in ("", ".", ".."):
            raise Fault("the part %r" % (part,), "a file's name in the same directory")
        files.setdefault(part, set()).add(name)
    return files


def gguf_weights(directory, names):
    """As weights, of a directory whose weights are GGUF files."""
    path = os.path.join(directory, names[0])
    try:
        if len(names) > 1:
            path = directory
            raise Fault(", ".join(names), "one GGUF file: keep the one to serve, join one that is split")
        return gguf_file.header(path), []
    except gguf_file.Damaged:
        fault = Fault("%d bytes" % os.path.getsize(path), "a whole GGUF file: copy it again")
    except gguf_file.Unserved as error:
        fault = Fault(str(error), gguf_file.WORKS)
    except OSError as error:
        fault = Fault(error.strerror or "an error", "a file that can be read")
    except Fault as error:
        fault = error
    return [], [{"file": path, "found": fault.found, "expected": fault.expected}]


def weights(directory):
    """([(name, dtype, shape)], [faults]) of a directory; no tensors where the weights are no safetensors."""
    names = os.listdir(directory)
    safetensors = [name for name in names if name.endswith(".safetensors")]
    index = INDEX if INDEX in names else PICKLE_INDEX if PICKLE_INDEX in names and not safetensors else None
    # Where there is no index, vLLM takes all files that end so, safetensors before others.
    files = dict.fromkeys(safetensors or [name for name in names if name.endswith((".bin", ".pt"))])
    if not files and index is None:
        gguf = sorted(name for name in names if name.endswith(".gguf"))
        if gguf:
            return gguf_weights(directory, gguf)
        expected = "one of %s, or one GGUF file" % ", ".join((SAFETENSORS, INDEX, PICKLE, PICKLE_INDEX))
        return [], [{"file": directory, "found": "no weights", "expected": expected}]
    faults, tensors = [], []
    try:
        files = parts(directory, index) if index else files
    except Fault as fault:
        return [], [{"file": os.path.join(directory, index), "found": fault.found, "expected": fault.expected}]
    for name in sorted(files):
        path = os.path.join(directory, name)
        try:
            if not os.path.exists(path):
                raise Fault("no such file", "a part of the weights that %s names" % (index or "a link"))
            if not name.endswith(".safetensors"):
                if os.path.getsize(path) == 0:
                    raise Fault("an empty file", "weights")
                continue
            held = header(path)
            absent = sorted((files[name] or set()) - {entry[0] for entry in held})
            if absent:
                raise Fault("no tensor %s" % absent[0], "%d tensors that %s names there" % (len(files[name]), index))
            tensors += held
        except Fault as fault:
            faults.append({"file": path, "found": fault.found, "expected": fault.expected})
    return tensors, faults


def tokenizer_of(path):
    """Content of tokenizer_config.json in a directory; None if it cannot be read."""
    try:
        return read_json(os.path.join(path, "tokenizer_config.json"))
    except Fault:
        return None


def model_of(path):
    """Read a model from `path`, a directory or a config.json: {config, tokenizer, tensors, faults}.

    None where there is nothing.
    """
    if not os.path.exists(path):
        return None
    is_directory = os.path.isdir(path)
    if not is_directory and path.endswith(".gguf"):
        expected = "its directory, with the model's config.json and tokenizer beside it"
        fault = {"file": path, "found": "a GGUF file", "expected": expected}
        return {"config": None, "tokenizer": None, "tensors": [], "faults": [fault]}
    config_path = os.path.join(path, "config.json") if is_directory else path
    config, faults, tensors = None, [], []
    try:
        config = read_json(config_path)
    except Fault as fault:
        faults.append({"file": config_path, "found": fault.found, "expected": fault.expected})
    if is_directory:
        try:
            tensors, wrong = weights(path)
        except OSError as error:
            wrong = [{"file": path, "found": error.strerror or "an error", "expected": "a directory that can be read"}]
        faults += wrong
    tokenizer = tokenizer_of(path) if is_directory else None
    return {
        "config": config, "tokenizer": tokenizer, "tensors": [] if faults else grouped(tensors), "faults": faults,
    }


def cached_model(hub, model):
    """As model_of, for NAME@REVISION in the hub's cache; None where its config.json is not there yet.

    The cache has models--OWNER--NAME/snapshots/COMMIT, and the commit of a branch in refs/BRANCH.
    """
    name, _, revision = model.rpartition("@")
    if not hub or not name or ".." in model:
        return None
    directory = os.path.join(hub, "models--" + name.replace("/", "--"))
    try:
        with open(os.path.join(directory, "refs", revision)) as stream:
            revision = stream.read().strip()
    except (OSError, ValueError):  # a commit
        pass
    snapshot = os.path.join(directory, "snapshots", revision)
    if not os.path.isfile(os.path.join(snapshot, "config.json")):
        return None
    return dict(model_of(snapshot), faults=[])
