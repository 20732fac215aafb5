"""Settings of every model on the port's platforms, and refusals of those that the port cannot serve."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch._dynamo
from vllm.logger import init_logger

from . import device, envs
from .checkpoint.files import read_header
from .checkpoint.limits import BLOCK_SIZE, BLOCK_SIZES
from .checkpoint.quantization import SUPPORTED_FORMATS
from .errors import SettingError, reject_if
from .quantization import METHOD

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.platforms.interface import _Backend

# Below `vllm`, whose handlers and level the server sets up.
logger = init_logger("vllm.kepler.settings")

BACKEND = "vllm_kepler.attention.backend.KeplerBackend"
PUNICA = "vllm_kepler.lora.KeplerPunica"
# Types of the KV cache: of the activations' dtype, or float16; by vLLM's names.
CACHE_DTYPES = ("auto", "half")
# Numbers of sequences that a graph is captured for, as far as launches still show: each, since products take time row
# by row, and a padded batch would take that of rows that nobody asked for.
CAPTURE_SIZES = tuple(range(1, 65))


def force_v0() -> None:
    """Choose the V0 engine, which runs eagerly, and latent attention with keys and values of every head."""
    os.environ["VLLM_USE_V1"], os.environ["VLLM_MLA_DISABLE"] = "0", "1"
    # Such as llguidance's masks, for which hosts have no compiler: by Triton for a GPU, by g++ for a CPU.
    torch._dynamo.config.disable = True


class KeplerSettings:
    """Base of the port's platforms, before upstream's platform."""

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        return [torch.float32]

    @classmethod
    def supports_v1(cls, model_config: object) -> bool:
        return False

    @classmethod
    def verify_quantization(cls, quant: str) -> None:
        """Raise SettingError for a method that is asked for by name and has no quantization_config in config.json."""
        if quant == "gguf":
            # Upstream takes a model that is a GGUF file for this method.
            raise SettingError(
                "model: found a GGUF file; expected its directory, with a config.json and a tokenizer beside it. The "
                "supervisor (vllm_serving) makes one of a file's header."
            )
        if quant != METHOD:
            raise SettingError(
                f"quantization: found {quant}, and no quantization_config in the model's config.json; expected one of: "
                f"{SUPPORTED_FORMATS}. Leave quantization out, or choose such a checkpoint of the model."
            )

    @classmethod
    def get_attn_backend_cls(
        cls,
        selected_backend: _Backend | None,
        head_size: int,
        dtype: torch.dtype,
        kv_cache_dtype: str | None,
        block_size: int,
        use_v1: bool,
        use_mla: bool,
    ) -> str:
        """Return the dotted name of the attention backend.

        Raises ModelError for attention of a kind that the port does not have.
        """
        reject_if(use_mla, "multi-head latent attention with VLLM_MLA_DISABLE=0")
        reject_if(use_v1, "the V1 engine")
        logger.info("Using Torch SDPA attention backend for %s.", cls.gpu().attention)
        return BACKEND

    @classmethod
    def gpu(cls) -> device.Gpu:
        """Return the GPUs whose place the device takes."""
        return device.USUAL

    @classmethod
    def get_punica_wrapper(cls) -> str:
        """Dotted name of what computes adapters: upstream's for GPUs needs Triton."""
        return PUNICA


def graphs_of(config: VllmConfig) -> bool:
    """Return whether decoding steps become CUDA graphs, and log what `cuda_graphs: auto` has come to.

    vLLM asks more than once for one engine; the line is written for a model alone.
    """
    graphs, why = envs.VLLM_KEPLER_CUDA_GRAPHS, envs.VLLM_KEPLER_CUDA_GRAPHS_AUTO
    model = config.model_config
    if not why or model is None:
        return graphs
    if graphs and (model.runner_type == "pooling" or config.lora_config is not None):
        graphs, why = False, "a model that generates no tokens, or has adapters"
    logger.info("cuda_graphs: auto: %s: %s.", "CUDA graphs" if graphs else "eager", why)
    return graphs


def apply_defaults(config: VllmConfig, graphs: bool = False) -> None:
    """Set the options the port requires: eager mode, float32 arithmetic, no custom all-reduce, no compilation.

    With `graphs`, decoding steps of few sequences are replayed as CUDA graphs; all else is eager.

    dtype half is how weights and KV cache are stored. vLLM calls this again with configs that it derives from one that
    has passed before.

    Raises SettingError, before any weight is read, for a setting that the port cannot serve.
    """
    # vllm.config itself asks for the platform while it is imported.
    from vllm.config import CompilationLevel, DecodingConfig

    model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
    if model is not None:
        if model.dtype not in (torch.float32, torch.float16):
            raise SettingError(
                f"dtype: found {str(model.dtype).removeprefix('torch.')}; expected float32 or half: the port "
                "computes in float32 and stores weights as float32 or float16. Leave dtype out for float32."
            )
        apply_storage(config)
        if graphs and (model.enforce_eager or model.runner_type == "pooling"):
            found = "enforce_eager: true" if model.enforce_eager else "a model that generates no tokens"
            raise SettingError(
                f"VLLM_KEPLER_CUDA_GRAPHS: found 1 and {found}; expected one of the two. Leave the variable out."
            )
        model.enforce_eager = not graphs
        model.disable_cascade_attn = True
    reject_with_stages(config, graphs)
    if config.lora_config is not None:
        apply_adapters(config, graphs)
    if config.scheduler_config.num_scheduler_steps > 1:
        raise SettingError(
            f"num_scheduler_steps: found {config.scheduler_config.num_scheduler_steps}; expected 1: the Kepler port "
            "schedules every step. Leave it out."
        )
    if parallel.enable_expert_parallel:
        raise SettingError(
            "enable_expert_parallel: found true; the Kepler port splits every expert over the ranks. Leave it out."
        )
    # Upstream's default hands what xgrammar cannot (numeric ranges, lengths) to outlines, which ignores some of it.
    if config.decoding_config.backend == DecodingConfig.backend:
        config.decoding_config.backend = "guidance"
    if cache is not None:
        if cache.block_size is None:
            cache.block_size = BLOCK_SIZE
        if cache.block_size not in BLOCK_SIZES:
            raise SettingError(
                f"block_size: found {cache.block_size}; expected one of {', '.join(map(str, BLOCK_SIZES))}."
            )
        if cache.cache_dtype not in CACHE_DTYPES:
            raise SettingError(
                f"kv_cache_dtype: found {cache.cache_dtype}; expected auto: the cache is float32, or with dtype: half "
                "float16."
            )
    parallel.disable_custom_all_reduce = True
    compilation, most = config.compilation_config, config.scheduler_config.max_num_seqs
    if config.speculative_config is not None:
        # The tokens that a step checks are rows of their own.
        most *= 1 + config.speculative_config.num_speculative_tokens
    compilation.level = CompilationLevel.NO_COMPILATION
    compilation.cudagraph_capture_sizes = list({min(size, most) for size in CAPTURE_SIZES}) if graphs else []
    # Again: upstream has done it for its own sizes before it asks the platform.
    compilation.init_with_cudagraph_sizes(compilation.cudagraph_capture_sizes)


def reject_with_stages(config: VllmConfig, graphs: bool) -> None:
    """Raise SettingError for what nobody has compared over the stages of a pipeline."""
    model, parallel = config.model_config, config.parallel_config
    stages = parallel.pipeline_parallel_size
    if stages == 1:
        return
    beside = {
        "VLLM_KEPLER_CUDA_GRAPHS: found 1": graphs,
        "enable_lora: found true": config.lora_config is not None,
        "task: found a model that generates no tokens": model is not None and model.runner_type == "pooling",
        "distributed_executor_backend: found one for a single host": not parallel.use_ray,
    }
    for found, is_asked in beside.items():
        if is_asked:
            raise SettingError(f"{found} beside pipeline_parallel_size {stages}; expected a server of one host.")
    layers = stages if model is None else model.hf_text_config.num_hidden_layers
    if layers < stages:
        raise SettingError(
            f"pipeline_parallel_size: found {stages}; expected at most {layers}, the model's layers. Name fewer hosts."
        )


def apply_adapters(config: VllmConfig, graphs: bool) -> None:
    """Keep LoRA adapters in float32, without room for tokens of their own.

    Raises SettingError for what the port does not compute, and for a model that vLLM has no adapters for.
    """
    from vllm.model_executor.model_loader.utils import get_model_architecture
    from vllm.model_executor.models import supports_lora

    lora = config.lora_config
    for name in ("fully_sharded_loras", "bias_enabled", "long_lora_scaling_factors"):
        if getattr(lora, name):
            raise SettingError(f"{name}: found {getattr(lora, name)}; the Kepler port does not have it. Leave it out.")
    if graphs:
        raise SettingError("VLLM_KEPLER_CUDA_GRAPHS: found 1 and enable_lora; expected one of the two: which adapter a "
                           "token has changes from step to step. Leave VLLM_KEPLER_CUDA_GRAPHS out.")
    # Such room would change the order of the logits over several ranks.
    lora.lora_dtype, lora.lora_extra_vocab_size = torch.float32, 0
    if config.model_config is not None:
        model, architecture = get_model_architecture(config.model_config)
        if not supports_lora(model):
            raise SettingError(f"enable_lora: found true and {architecture}, which vLLM has no adapters for. Merge the "
                               "adapter into its model.")


def apply_storage(config: VllmConfig) -> None:
    """Set how the model's weights and the KV cache are stored, and which loader reads them.

    Raises ValueError for damaged weight files, SettingError for ranks that a quantized checkpoint cannot be split over.
    """
    from vllm.config import LoadFormat

    from .quantization import gguf
    from .quantization.config import KeplerConfig
    from .quantization.loader import KeplerLoader

    model, ranks = config.model_config, config.parallel_config.tensor_parallel_size
    directory = Path(model.model)
    # A name's files are fetched later, by vLLM.
    if directory.is_dir():
        for path in sorted(directory.glob("*.safetensors")):
            read_header(path)
        gguf.use_gguf(config, directory)
    load = config.load_config
    if load.load_format == LoadFormat.AUTO:
        load.load_format = KeplerLoader
    elif load.load_format != LoadFormat.DUMMY and not isinstance(load.load_format, type):
        # Other loaders do not notice a missing tensor of a quantized checkpoint.
        raise SettingError(
            f"load_format: found {getattr(load.load_format, 'value', load.load_format)}; expected auto, which reads "
            "safetensors, PyTorch's files and GGUF, or dummy. Leave it out."
        )
    if model.dtype == torch.float16:
        model.dtype = torch.float32
        config.quant_config = config.quant_config or KeplerConfig()
        config.quant_config.half = True
        if config.cache_config.cache_dtype == "auto":
            config.cache_config.cache_dtype = "half"
        logger.info("dtype: half: weights and KV cache are stored as float16, activations and arithmetic are float32.")
    checkpoint = getattr(config.quant_config, "checkpoint", None)
    if checkpoint is None:
        return
    if ranks > 1 and checkpoint.act_order:
        raise SettingError(
            f"tensor_parallel_size: found {ranks} and {checkpoint.method} with act-order (desc_act); expected 1: the "
            "columns of a group lie on all ranks. Choose a checkpoint without act-order, or one GPU."
        )
    logger.info("%s checkpoint: weights are unpacked by the port's own kernels.", checkpoint.method)
