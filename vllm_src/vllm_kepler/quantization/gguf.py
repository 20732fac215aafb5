"""GGUF files (llama.cpp): a directory with one of them beside the config.json and the tokenizer of its model.

Names come from upstream's GGUF loader; its kernels have no part. Codes of 4 and 8 bits are repacked for the port's
kernels; what these cannot hold is stored as dtype says.
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

from .config import KeplerConfig
from .gguf_linear import BITS, GgufLinearMethod
from .loader import KeplerLoader
from .scheme import refuse

logger = init_logger("vllm.kepler.gguf")

# Architectures of files, and the model types of config.json that they go with: each is tested. Converters change the
# weights of others.
ARCHITECTURES = {"llama": ("llama", "mistral"), "qwen2": ("qwen2",), "qwen3": ("qwen3",)}
TYPES = (*BITS, Type.Q6_K, Type.F32, Type.F16, Type.BF16)
EMBEDDINGS = ("token_embd.weight", "output.weight")
# What the file has beside the model's weights: config.json says the same.
DERIVED = "rope_freqs.weight"
# What gguf raises for a file that is no GGUF file, or not a whole one.
DAMAGE = (IndexError, KeyError, OverflowError, TypeError, ValueError)


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file holds.

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


def find(directory: Path) -> Path | None:
    """The GGUF file of a directory; None where it has none, or weights that vLLM prefers.

    Raises ValueError for several.
    """
    files = sorted(directory.glob("*.gguf"))
    if not files or any(path.suffix in (".safetensors", ".bin", ".pt") for path in directory.iterdir()):
        return None
    if len(files) > 1:
        raise ValueError(
            f"{directory}: found {', '.join(path.name for path in files)}; expected one GGUF file. Keep the one to "
            "serve, and join one that is split (llama-gguf-split --merge)."
        )
    return files[0]


def open_file(path: Path) -> gguf.GGUFReader:
    """The file, mapped into memory.

    Raises ValueError for one that is damaged.
    """
    try:
        return gguf.GGUFReader(path)
    except DAMAGE as error:
        raise ValueError(
            f"{path}: found a file that is cut short or damaged ({error}); expected a whole GGUF file. Fetch the model "
            "again."
        ) from None


def read(path: Path, model: ModelConfig) -> GgufFile:
    """What the file holds for the model that config.json describes.

    Raises ValueError for what the port does not have.
    """
    reader, config = open_file(path), model.hf_config
    if "split.count" in reader.fields and reader.fields["split.count"].contents() > 1:
        refuse(f"a part of a split GGUF file ({path.name}; join it with llama-gguf-split --merge)")
    field = reader.fields.get("general.architecture")
    architecture = field.contents() if field else "none"
    if config.model_type not in ARCHITECTURES.get(architecture, ()):
        refuse(f"a GGUF file of the architecture {architecture} and a config.json of a {config.model_type}")
    for tensor in reader.tensors:
        if tensor.tensor_type not in TYPES:
            refuse(f"a GGUF file with weights of the type {tensor.tensor_type.name} ({tensor.name})")
    held = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    if DERIVED in held and not getattr(config, "rope_scaling", None):
        raise ValueError(
            f"{path}: found scaled rotary frequencies ({DERIVED}) and no rope_scaling in config.json; expected both. "
            "Take the config.json of the very model that the file was made of."
        )
    # Upstream knows an architecture by the type of the model.
    named = copy.copy(config)
    named.model_type = architecture
    known = GGUFModelLoader(LoadConfig(load_format=LoadFormat.GGUF))._get_gguf_weights_map(
        SimpleNamespace(hf_config=named, trust_remote_code=model.trust_remote_code)
    )
    strange = sorted(held.keys() - known.keys() - {DERIVED})
    if strange:
        raise ValueError(
            f"{path}: found a tensor {strange[0]}, for which the model of config.json has no place. Take the "
            "config.json of the very model that the file was made of."
        )
    # Without a head of its own a file's model uses the embedding.
    if EMBEDDINGS[1] not in held:
        config.tie_word_embeddings = True
    names = {name: known[name] for name in held if name != DERIVED}
    heads = {".attn_q.": config.num_attention_heads, ".attn_k.": config.num_key_value_heads}
    permuted = {name: count for name in names for part, count in heads.items() if part in name}
    return GgufFile(
        path, names, {names[name]: held[name] for name in names}, permuted if architecture == "llama" else {}
    )


def tensors(file: GgufFile) -> Generator[tuple[str, torch.Tensor], None, None]:
    """The file's tensors by the model's names: matrices of linear layers as they are stored, others as floats."""
    for tensor in open_file(file.path).tensors:
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


def settle(config: VllmConfig, directory: Path) -> None:
    """Let the GGUF file of a model's directory be loaded, where it has one.

    Raises ValueError for one that the port does not have.
    """
    path = find(directory)
    if path is None or isinstance(config.quant_config, GgufConfig):
        return
    if config.quant_config is not None:
        raise ValueError(
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
                raise ValueError(
                    f"{self.file.path}: found no weights for {name}; expected all of the model's. Fetch the model "
                    "again, or choose another file of it."
                )
            types.append(self.file.types[name])
        return GgufLinearMethod(prefix, types, self.half)
