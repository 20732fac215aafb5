"""The files of a model's directory: config.json, the index of the weights and the headers of the weight files."""

import json
import os
import re
import struct

from . import adapters, gguf, gguf_families, gguf_tokenizer
from .config import translate
from .errors import CheckpointError, CorruptFileError, FileError, UnsupportedFileError, faults_of, unfetched, unreadable

# The longest header that the format's own library accepts.
MAX_HEADER = 100 * 1000 * 1000
# Digits of the longest integer: 64 bits have 20, and tokenizers without an end say 31. No tensor has more dimensions.
MOST_DIGITS, MOST_DIMENSIONS = 40, 8
# Bits of an element.
BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
    "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6,
    "F4": 4,
}
SAFETENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Beginning of the names of GGUF files that turn images into a model's vectors.
PROJECTOR = "mmproj"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def whole_number(text):
    """An integer of JSON. Raises ValueError for one that no size is, and that Python may read for minutes."""
    if len(text) > MOST_DIGITS:
        raise ValueError("a number of %d digits" % len(text))
    return int(text)


def check_plain(path):
    """Raise FileError for what is no plain file: a pipe or a device may have no end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise CorruptFileError("what is no plain file", "a file", path)


def read_json(path):
    """The mapping that a file holds. Raises FileError."""
    check_plain(path)
    try:
        with open(path, "rb") as stream:
            text = stream.read(MAX_HEADER + 1)
    except OSError as error:
        raise unreadable(error, path)
    if len(text) > MAX_HEADER:
        raise CorruptFileError("more than %d MB" % (MAX_HEADER // 1000000), "a JSON mapping", path)
    try:
        value = json.loads(text.decode("utf-8"), parse_int=whole_number)
    # The parser gives up on deep nesting.
    except (ValueError, RecursionError) as error:
        raise CorruptFileError("what is no JSON: %s" % error, "a JSON mapping", path)
    if not isinstance(value, dict):
        raise CorruptFileError("JSON that is no mapping", "a JSON mapping", path)
    return value


def tried(errors, read, *arguments):
    """What a function that reads files returns; None if it raises a FileError, which is added to `errors`."""
    try:
        return read(*arguments)
    except FileError as error:
        errors.append(error)
        return None


def try_json(path):
    """As read_json; None if the file cannot be read."""
    return tried([], read_json, path)


def _is_sizes(value):
    return (
        isinstance(value, list) and len(value) <= MOST_DIMENSIONS
        and all(type(size) is int and size >= 0 for size in value)
    )


def read_header(path):
    """Tensors of one safetensors file: [(name, dtype, shape)], after its sizes were checked against the file's.

    Eight bytes give the length of a JSON mapping of name to dtype, shape and data_offsets; the data follow.
    Raises FileError.
    """
    check_plain(path)
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if start == gguf.POINTER[:8]:
                raise unfetched(path)
            if not 2 <= length <= MAX_HEADER or 8 + length > size:
                raise CorruptFileError("%d bytes that begin with no header" % size, "a whole safetensors file", path)
            text = stream.read(length)
    except OSError as error:
        raise unreadable(error, path)
    try:
        entries = json.loads(text.decode("utf-8"), parse_int=whole_number)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        raise CorruptFileError("a header that is no JSON mapping", "a whole safetensors file", path)
    tensors, places = [], []
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        entry = entry if isinstance(entry, dict) else {}
        offsets, shape, bits = entry.get("data_offsets"), entry.get("shape"), BITS.get(str(entry.get("dtype")))
        if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2 or bits is None:
            raise CorruptFileError("a header whose entry %s is malformed" % name, "dtype, shape and data_offsets", path)
        size_of_data = (gguf.elements_of(shape) * bits + 7) // 8
        if offsets[1] - offsets[0] != size_of_data:
            raise CorruptFileError(
                "%d bytes for %s of shape %s in %s" % (offsets[1] - offsets[0], name, shape, entry["dtype"]),
                "%d bytes" % size_of_data, path,
            )
        places.append(offsets)
        tensors.append((name, entry["dtype"], shape))
    end = 0
    for first, after in sorted(places):
        # The format's own library refuses tensors that overlap, and bytes of none between them.
        if first != end:
            raise CorruptFileError(
                "a tensor that begins at byte %d of the data" % first, "byte %d, where the one before ends" % end, path
            )
        end = after
    if size != 8 + length + end:
        raise CorruptFileError("%d bytes" % size, "%d bytes, as its header says" % (8 + length + end), path)
    return tensors


def numbered(name):
    """A tensor's name with a layer's number as *."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", re.sub(r"^\d+(?=\.)", "*", name))


def _grouped(tensors):
    """Tensors of one form counted together: a layer's number in the name becomes *."""
    counts = {}
    for name, dtype, shape in tensors:
        key = (numbered(name), dtype, tuple(shape))
        counts[key] = counts.get(key, 0) + 1
    return [
        {"name": name, "dtype": dtype, "shape": list(shape), "count": counts[name, dtype, shape]}
        for name, dtype, shape in sorted(counts)
    ]


def _read_index(path):
    """{file: names of its tensors} of an index. Raises FileError."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptFileError("an index without weight_map", "a mapping of tensor to file", path)
    files = {}
    for name, part in weight_map.items():
        # A name that leads out of the directory is no part of the model.
        if not isinstance(part, str) or os.path.basename(part) != part or part in ("", ".", ".."):
            raise CorruptFileError("the part %r" % (part,), "a file's name in the same directory", path)
        files.setdefault(part, set()).add(name)
    return files


def find_gguf(directory):
    """Path of the GGUF file of a directory, or of its first part; None if it has none, or weights that vLLM prefers.

    Raises FileError.
    """
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise unreadable(error, directory, "directory")
    # What reads images stands beside the model that reads text.
    found = sorted(
        name for name in names if name.lower().endswith(".gguf") and not name.lower().startswith(PROJECTOR)
    )
    if not found or any(name.endswith((".safetensors", ".bin", ".pt")) for name in names):
        return None
    first = gguf.part_path(found[0], 1)
    if first is None or any(gguf.part_path(name, 1) != first for name in found):
        if len(found) > 1:
            raise UnsupportedFileError(
                ", ".join(found), "one GGUF file, or the parts of one: name the one to serve as the model", directory
            )
        first = found[0]
    return os.path.join(directory, first)


def find_gguf_alone(path):
    """The GGUF file that a path is, or that a directory without config.json has, or its first part; None if neither.

    Raises FileError.
    """
    if not os.path.isdir(path):
        return path if gguf.is_gguf(path) else None
    return None if os.path.exists(os.path.join(path, "config.json")) else find_gguf(path)


def _tensors_of(header):
    return [(part.name, gguf_families.kind_of(header, part), part.shape) for part in gguf_families.parts_of(header)]


def _read_gguf(path, config):
    """Tensors of a GGUF file, as read_header gives them, after they were checked against a translated config."""
    header = gguf.read_header(path)
    if config is not None:
        gguf_families.check_model(header, config.get("model_type"), bool(config.get("rope_scaling")))
    return _tensors_of(header)


def _read_gguf_alone(path):
    """As read_model, of a GGUF file whose header has all that there is. Raises FileError."""
    header = gguf.read_header(path)
    found = _facts(gguf_families.config_of(header), gguf_tokenizer.tokenizer_config_of(header),
                   gguf_tokenizer.generation_config_of(header), _tensors_of(header))
    return dict(found, alone=True)


def _facts(config=None, tokenizer=None, generation=None, tensors=(), errors=()):
    """What read_model returns."""
    return {
        "config": config, "tokenizer": tokenizer, "generation": generation,
        "tensors": [] if errors else _grouped(tensors), "faults": faults_of(errors),
    }


def _read_part(path, names, index):
    """Tensors of one of a model's files, none of a pickled one; `names`: those that the index has there."""
    if not os.path.exists(path):
        raise FileError("no such file", "a part of the weights that %s names" % (index or "a link"), path)
    if not path.endswith(".safetensors"):
        if os.path.getsize(path) == 0:
            raise CorruptFileError("an empty file", "weights", path)
        return []
    tensors = read_header(path)
    absent = sorted((names or set()) - {entry[0] for entry in tensors})
    if absent:
        raise CorruptFileError("no tensor %s" % absent[0], "%d tensors that %s names there" % (len(names), index), path)
    return tensors


def _read_weights(directory, config):
    """([(name, dtype, shape)], [errors]) of a directory; no tensors if the weights are pickled."""
    tensors, errors = [], []
    try:
        path = find_gguf(directory)
        if path:
            return _read_gguf(path, config), []
        names = os.listdir(directory)
        safetensors = [name for name in names if name.endswith(".safetensors")]
        index = INDEX if INDEX in names else PICKLE_INDEX if PICKLE_INDEX in names and not safetensors else None
        # Without an index vLLM takes all files that end so, safetensors before others.
        files = dict.fromkeys(safetensors or [name for name in names if name.endswith((".bin", ".pt"))])
        if index:
            files = _read_index(os.path.join(directory, index))
        if not index and adapters.WEIGHTS in files:
            raise UnsupportedFileError(
                "the weights of an adapter beside a model's", "a directory for each, since the engine reads all files",
                os.path.join(directory, adapters.WEIGHTS),
            )
        if not files:
            expected = "one of %s, or one GGUF file" % ", ".join((SAFETENSORS, INDEX, PICKLE, PICKLE_INDEX))
            raise FileError("no weights", expected, directory)
    except FileError as error:
        return [], [error]
    except OSError as error:
        return [], [unreadable(error, directory, "directory")]
    owners = {}
    for name in sorted(files):
        part = tried(errors, _read_part, os.path.join(directory, name), files[name], index) or []
        twice = next((tensor[0] for tensor in part if tensor[0] in owners), None)
        if twice is not None:
            errors.append(UnsupportedFileError(
                "a tensor %s, which %s has too" % (twice, owners[twice]),
                "one set of weights, since the engine reads all files: move the other set away",
                os.path.join(directory, name),
            ))
        owners.update((tensor[0], name) for tensor in part)
        tensors += part
    return tensors, errors


def read_model(path):
    """Read a model from `path`, a directory, a GGUF file or a config.json.

    Returns {config, tokenizer, generation, tensors, faults}, or None if there is nothing.
    """
    if not os.path.exists(path):
        return None
    try:
        alone = find_gguf_alone(path)
        if alone:
            return _read_gguf_alone(alone)
    except FileError as error:
        return _facts(errors=[error])
    errors = []
    if not os.path.isdir(path):
        return _facts(tried(errors, read_json, path), errors=errors)
    config = tried(errors, read_json, os.path.join(path, "config.json"))
    try:
        translated = translate(config)
    except CheckpointError:  # for those who ask whether the engine understands it
        translated = None
    tensors, wrong = _read_weights(path, translated)
    tokenizer, generation = (
        try_json(os.path.join(path, name)) for name in ("tokenizer_config.json", "generation_config.json")
    )
    return _facts(config, tokenizer, generation, tensors, errors + wrong)


def read_adapter(path):
    """Read a LoRA adapter from the directory `path`: {config, tensors (name to shape), faults}."""
    errors = []
    config = tried(errors, read_json, os.path.join(path, adapters.CONFIG))
    tensors = tried(errors, read_header, os.path.join(path, adapters.WEIGHTS)) or []
    return {
        "config": config, "tensors": {name: shape for name, _, shape in tensors}, "faults": faults_of(errors),
    }


def split_name(name):
    """(OWNER/NAME, path of a file in it or "") of a model of the hub."""
    parts = name.split("/")
    return "/".join(parts[:2]), "/".join(parts[2:])


def snapshot_of(hub, name, revision):
    """Directory of a model of the hub in its cache, or the file of it that the name names; it need not be there.

    The cache has models--OWNER--NAME/snapshots/COMMIT, and the commit of a branch in refs/BRANCH.
    """
    repository, file = split_name(name)
    directory = os.path.join(hub, "models--" + repository.replace("/", "--"))
    try:
        with open(os.path.join(directory, "refs", revision)) as stream:
            revision = stream.read().strip()
    except (OSError, ValueError):  # a commit
        pass
    return os.path.join(directory, "snapshots", revision, *file.split("/") if file else ())


def read_cached_model(hub, model):
    """As read_model, for NAME@REVISION in the hub's cache; None if its config.json or GGUF file is not there yet."""
    name, _, revision = model.rpartition("@")
    if not hub or not name or ".." in model:
        return None
    snapshot = snapshot_of(hub, name, revision)
    if split_name(name)[1]:
        return read_model(snapshot) if all(os.path.exists(part) for part in gguf.all_parts(snapshot)) else None
    if not os.path.isfile(os.path.join(snapshot, "config.json")):
        return None
    return dict(read_model(snapshot), faults=[])
