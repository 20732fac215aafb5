"""GGUF files (llama.cpp): a directory with one of them, or its parts, beside a config.json and a tokenizer.

Upstream's loader and kernels have no part. What the file's converter did to a family's tensors is undone here. Codes of
4 and 8 bits are repacked for the port's kernels; what these cannot hold is stored as dtype says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy
import torch
from gguf import GGMLQuantizationType as Type
from vllm.config import ModelConfig, VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe import FusedMoE
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.models.utils import is_pp_missing_parameter

from ..checkpoint.errors import UnsupportedFileError
from ..checkpoint.files import find_gguf
from ..checkpoint.gguf import read_header
from ..checkpoint.gguf_families import Family, Part, check_model, family_of, parts_of
from ..errors import ModelError
from .config import KeplerConfig
from .gguf_experts import GgufExpertsMethod
from .gguf_linear import GgufLinearMethod
from .loader import KeplerLoader, fused_of

logger = init_logger("vllm.kepler.gguf")

FLOAT_TYPES = {Type.F32: numpy.float32, Type.F16: numpy.float16}
# Tensors that the port keeps as floats, by the file's names; besides, vectors.
FLOATS = re.compile(r"^(token_embd|output)\.|\.ffn_gate_inp(_shexp)?\.")


@dataclass(frozen=True)
class GgufFile:
    """Tensors of a GGUF file, or of all parts of one that is split.

    Attributes:
        path: the file, or its first part.
        parts: the model's tensors, by the model's names.
        family: of the file.
        heads: of queries and of keys, by the part of a tensor's name that tells them.
        targets: what the files are links to, for ranks of hosts that lack a directory made on the first one.
    """

    path: Path
    parts: Mapping[str, Part]
    family: Family
    heads: Mapping[str, int]
    targets: Mapping[str, Path]

    def type_of(self, name: str) -> Type:
        """How a tensor is stored, by the model's name. Raises ModelError if the file lacks it."""
        if name not in self.parts:
            raise ModelError(
                f"{self.path}: found no weights for {name}; expected all of the model's. Fetch the model again, or "
                "choose another file of it."
            )
        return Type[self.parts[name].tensor.kind]


def read(path: Path, model: ModelConfig) -> GgufFile:
    """Read the file for the model that config.json describes.

    Raises ModelError for what the port does not have.
    """
    header, config = read_header(str(path)), model.hf_config
    check_model(header, config.model_type, bool(getattr(config, "rope_scaling", None)))
    # Without a head of its own a file's model uses the embedding.
    if "output.weight" not in header.tensors:
        config.tie_word_embeddings = True
    heads = {".attn_q.": config.num_attention_heads, ".attn_k.": config.num_key_value_heads}
    parts = {part.name: part for part in parts_of(header)}
    links = {Path(part.tensor.path) for part in parts.values()}
    targets = {str(link): link.parent / link.readlink() for link in links if link.is_symlink()}
    return GgufFile(path, parts, family_of(header), heads, targets)


def check_places(file: GgufFile, model: torch.nn.Module, fused: Mapping[str, list[str]]) -> None:
    """Raise UnsupportedFileError for a tensor that the model has no place for: some of vLLM's classes pass over it.

    A stage of a pipeline passes over those of the others.

    fused: the model's names of what vLLM makes one of, by vLLM's name.
    """
    places = {name for name, _ in model.named_parameters()}
    own = {part: name for name, parts in fused.items() for part in parts}
    for name, part in file.parts.items():
        if is_pp_missing_parameter(name, model):
            continue
        parent, _, kind = name.rpartition(".")
        before, _, last = parent.rpartition(".")
        if part.expert is None and name not in places and f"{before}.{own.get(last, last)}.{kind}" not in places:
            raise UnsupportedFileError(
                f"a tensor {part.file_name}, for which the model of config.json has no place",
                "the config.json of the very model that the file was made of", file.path,
            )


def tensors(file: GgufFile) -> Generator[tuple[str, torch.Tensor], None, None]:
    """The model's tensors by their names: matrices of linear layers as they are stored, others as floats."""
    maps: dict[str, numpy.ndarray] = {}
    for name, part in file.parts.items():
        for path in {tensor.path for tensor in (part.tensor, part.below) if tensor} - set(maps):
            there = path if Path(path).exists() else file.targets.get(path, path)
            maps[path] = numpy.memmap(there, numpy.uint8, "r")
        rows = rows_of(maps[part.tensor.path], part)
        if part.below:
            below = part._replace(tensor=part.below, below=None)
            rows = torch.cat((rows, rows_of(maps[part.below.path], below)))
        if "norm." in part.file_name and part.file_name.endswith("weight") and file.family.norms_from_one:
            # llama.cpp multiplies by the weight, transformers and vLLM by what it is above -1.
            rows = rows - 1
        heads = next((heads for key, heads in file.heads.items() if key in part.file_name), None)
        if heads and file.family.permuted:
            # llama.cpp rotates neighboring rows of a head, transformers and vLLM a row of each half.
            rows = rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        yield name, rows


def rows_of(whole: numpy.ndarray, part: Part) -> torch.Tensor:
    """A copy of one tensor of a file's bytes: uint8 [n, bytes] of codes, or floats of its shape."""
    kind, shape = Type[part.tensor.kind], part.shape if part.expert is not None else part.tensor.shape
    block_columns, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    nbytes = math.prod(shape) // block_columns * block_bytes
    begin = part.tensor.offset + (part.expert or 0) * nbytes
    # torch takes no arrays that cannot be written.
    data = numpy.array(whole[begin : begin + nbytes]).reshape(*shape[:-1], -1)
    if len(shape) == 1 or FLOATS.search(part.file_name):
        data = gguf.dequantize(data, kind).reshape(part.shape)
    elif kind in FLOAT_TYPES:
        data = data.view(FLOAT_TYPES[kind])
    return torch.from_numpy(data)


def use_gguf(config: VllmConfig, directory: Path) -> None:
    """Let the GGUF file of a model's directory be loaded, if it has one.

    Raises ModelError for one that the port does not have.
    """
    found = find_gguf(str(directory))
    if found is None or isinstance(config.quant_config, GgufConfig):
        return
    path = Path(found)
    if config.quant_config is not None:
        raise ModelError(
            f"{directory}: found the quantized weights of {path.name} and a quantization_config in config.json; "
            "expected one of them. Take the config.json of the model before it was quantized."
        )
    config.quant_config = GgufConfig(read(path, config.model_config))
    config.load_config.load_format = GgufLoader
    logger.info("%s: weights are unpacked by the port's own kernels.", path)


def expert_matrices(prefix: str) -> tuple[str, str, str]:
    """A model's names of an expert's gate, of the matrix beside it, and of the last."""
    return ("w1", "w3", "w2") if "block_sparse_moe" in prefix else ("gate_proj", "up_proj", "down_proj")


class GgufLoader(KeplerLoader):
    """Loads the GGUF file of a directory."""

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig) -> torch.nn.Module:
        self._file = vllm_config.quant_config.file
        return super().load_model(vllm_config, model_config)

    def load_weights(self, model: torch.nn.Module, model_config: ModelConfig) -> None:
        fused = fused_of(model)
        check_places(self._file, model, fused)
        # Some of vLLM's classes make layers without telling them their names.
        for prefix, layer in model.named_modules():
            if isinstance(method := getattr(layer, "quant_method", None), GgufLinearMethod):
                parent, _, own = prefix.rpartition(".")
                parts = [own] if f"{prefix}.weight" in self._file.parts else fused.get(own, [own])
                names = [f"{parent}.{part}.weight" if parent else f"{part}.weight" for part in parts]
                method.set_types(layer, prefix, [self._file.type_of(name) for name in names])
        super().load_weights(model, model_config)

    def _get_weights_iterator(self, source: object) -> Generator[tuple[str, torch.Tensor], None, None]:
        return tensors(self._file)


class GgufConfig(KeplerConfig):
    """The weights of a model are those of a GGUF file."""

    def __init__(self, file: GgufFile) -> None:
        super().__init__()
        self.file = file

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if isinstance(layer, FusedMoE):
            gate, up, down = (self.file.type_of(f"{prefix}.0.{part}.weight") for part in expert_matrices(prefix))
            return GgufExpertsMethod(layer, prefix, (gate, up), down, self.half)
        if not isinstance(layer, LinearBase):
            return super().get_quant_method(layer, prefix)
        return GgufLinearMethod(self.half)
