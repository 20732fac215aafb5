"""A directory as the engine reads it, for a GGUF file that stands alone: what follows from its header, and links."""

import json
import os
import shutil

from .gguf import read_header
from .gguf_families import config_of, parts_of
from .gguf_tokenizer import generation_config_of, tokenizer_config_of, tokenizer_of


def write_model(path, directory):
    """Write the files of the model of a GGUF file, or of the first of its parts, and links to these.

    A directory that is there is replaced. Raises FileError, before anything is written.
    """
    header = read_header(path)
    parts_of(header)
    contents = {
        "config.json": config_of(header), "tokenizer_config.json": tokenizer_config_of(header),
        "tokenizer.json": tokenizer_of(header), "generation_config.json": generation_config_of(header),
    }
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory, 0o700)
    for name, content in contents.items():
        with open(os.path.join(directory, name), "w", encoding="utf-8") as stream:
            json.dump(content, stream, ensure_ascii=False)
    for file in sorted({tensor.path for tensor in header.tensors.values()} | {path}):
        name = os.path.basename(file)
        # A file may be named without the ending.
        os.symlink(os.path.abspath(file), os.path.join(directory, name if name.lower().endswith(".gguf")
                                                       else name + ".gguf"))
