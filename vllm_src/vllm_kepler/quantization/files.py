"""Whether a checkpoint's weight files are whole, told by their headers alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

# Length of a safetensors header, in bytes: a little-endian number of 8 bytes before it; its own limit is 100 MB.
LENGTH_BYTES = 8
MOST_HEADER = 100_000_000


def check_files(directory: Path) -> None:
    """Raise ValueError for the first safetensors file of a model that is cut short or damaged."""
    for path in sorted(directory.glob("*.safetensors")):
        fault = fault_of(path)
        if fault:
            raise ValueError(f"{path}: found {fault}. Fetch the model again.")


def fault_of(path: Path) -> str | None:
    """What is wrong with a safetensors file, and what was expected; None where its sizes agree."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if size < LENGTH_BYTES or length > min(MOST_HEADER, size - LENGTH_BYTES):
            return f"{size} bytes, of which the header says to be {length}; expected a safetensors file"
        try:
            header = json.loads(file.read(length))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            end = max((entry["data_offsets"][1] for entry in tensors), default=0)
            counts = [math.prod(entry["shape"]) for entry in tensors]
            filled = [entry["data_offsets"][1] - entry["data_offsets"][0] for entry in tensors]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "a header that is no safetensors header; expected one"
    if any((count == 0) != (nbytes == 0) for count, nbytes in zip(counts, filled, strict=True)):
        return "a tensor whose shape does not fit its bytes; expected a safetensors file"
    expected = LENGTH_BYTES + length + end
    return None if size == expected else f"{size} bytes; expected {expected}, as its header says"
