"""Checkpoints of a few bytes, written by hand."""

import json
import struct


def entries(tensors):
    """The header of float16 tensors: mapping of name to shape."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors.items():
        size = 2
        for number in shape:
            size *= number
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    return header, end


def packed(header, data):
    """A safetensors file: eight bytes of length, the header, `data` bytes."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def write(directory, tensors, name="model.safetensors"):
    """A whole file; returns its path."""
    path = directory / name
    path.write_bytes(packed(*entries(tensors)))
    return path


def write_index(directory, parts):
    """An index and its whole files: mapping of file to tensors."""
    weight_map = {tensor: name for name, tensors in parts.items() for tensor in tensors}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for name, tensors in parts.items():
        write(directory, tensors, name)
