"""GGUF files (llama.cpp): a directory with one of them beside the config.json and the tokenizer of its model.

Upstream's GGUF loader says which tensors the model has; its kernels have no part. Codes of 4 and 8 bits are repacked
for the port's kernels; what these cannot hold is stored as dtype says.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy
import torch
from gguf import GGMLQuantizationType as Type
from vllm.config import LoadConfig, LoadFormat, ModelConfig, VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.model_loader.gguf_loader import GGUFModelLoader

from ..checkpoint.errors import UnsupportedFileError
from ..checkpoint.files import find_gguf
from ..checkpoint.gguf import check_model, read_header
from ..errors import ModelError
from .config import KeplerConfig
from .gguf_linear import GgufLinearMethod
from .loader import KeplerLoader

logger = init_logger("vllm.kepler.gguf")

EMBEDDINGS = ("token_embd.weight", "output.weight")


@dataclass(frozen=True)
class GgufFile:
    """Tensors of a GGUF file.

    Attributes:
        path: of the file.
        names: the model's name for each of the file's tensors.
        types: how each tensor is stored, by the model's name.
        permuted: heads of the layers whose rows the converter has permuted, by the file's name.
    """

    path: Path
    names: Mapping[str, str]
    types: Mapping[str, Type]
    permuted: Mapping[str, int]


def read(path: Path, model: ModelConfig) -> GgufFile:
    """Read the file for the model that config.json describes.

    Raises ModelError for what the port does not have.
    """
    header, config = read_header(path), model.hf_config
    check_model(path, header, config.model_type, bool(getattr(config, "rope_scaling", None)))
    # Upstream knows an architecture by the type of the model.
    named = copy.copy(config)
    named.model_type = header.architecture
    known = GGUFModelLoader(LoadConfig(load_format=LoadFormat.GGUF))._get_gguf_weights_map(
        SimpleNamespace(hf_config=named, trust_remote_code=model.trust_remote_code)
    )
    strange = sorted(header.tensors.keys() - known.keys())
    if strange:
        raise UnsupportedFileError(
            f"a tensor {strange[0]}, for which the model of config.json has no place",
            "the config.json of the very model that the file was made of", path,
        )
    # Without a head of its own a file's model uses the embedding.
    if EMBEDDINGS[1] not in header.tensors:
        config.tie_word_embeddings = True
    heads = {".attn_q.": config.num_attention_heads, ".attn_k.": config.num_key_value_heads}
    permuted = {name: count for name in header.tensors for part, count in heads.items() if part in name}
    return GgufFile(
        path,
        {name: own for name, (own, _, _) in header.tensors.items()},
        {own: Type[kind] for own, kind, _ in header.tensors.values()},
        permuted if header.architecture == "llama" else {},
    )


def tensors(file: GgufFile) -> Generator[tuple[str, torch.Tensor], None, None]:
    """The file's tensors by the model's names: matrices of linear layers as they are stored, others as floats."""
    for tensor in gguf.GGUFReader(file.path).tensors:
        if tensor.name not in file.names:
            continue
        data = tensor.data
        if tensor.name in EMBEDDINGS or data.ndim == 1:
            data = gguf.dequantize(data, tensor.tensor_type)
        # A copy, of one tensor: torch takes no arrays that cannot be written.
        rows = torch.from_numpy(numpy.array(data))
        heads = file.permuted.get(tensor.name)
        if heads:
            # llama.cpp rotates neighboring rows of a head, transformers and vLLM a row of each half.
            rows = rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        yield file.names[tensor.name], rows


def use_gguf(config: VllmConfig, directory: Path) -> None:
    """Let the GGUF file of a model's directory be loaded, if it has one.

    Raises ModelError for one that the port does not have.
    """
    found = find_gguf(directory)
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


class GgufLoader(KeplerLoader):
    """Loads the GGUF file of a directory."""

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig) -> torch.nn.Module:
        self._file = vllm_config.quant_config.file
        return super().load_model(vllm_config, model_config)

    def _get_weights_iterator(self, source: object) -> Generator[tuple[str, torch.Tensor], None, None]:
        return tensors(self._file)


class GgufConfig(KeplerConfig):
    """The weights of a model are those of a GGUF file."""

    def __init__(self, file: GgufFile) -> None:
        super().__init__()
        self.file = file

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if not isinstance(layer, LinearBase):
            return super().get_quant_method(layer, prefix)
        parent, _, own = prefix.rpartition(".")
        types = []
        for part in self.packed_modules_mapping.get(own, [own]):
            name = f"{parent}.{part}.weight" if parent else f"{part}.weight"
            if name not in self.file.types:
                raise ModelError(
                    f"{self.file.path}: found no weights for {name}; expected all of the model's. Fetch the model "
                    "again, or choose another file of it."
                )
            types.append(self.file.types[name])
        return GgufLinearMethod(prefix, types, self.half)
