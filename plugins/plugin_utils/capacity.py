"""Memory that a model needs on the GPUs of a profile, from its config.json and, if known, the shapes of its tensors.

The engine is vLLM 0.9.2's V0 as the port runs it: before the KV cache is allocated, a batch of dummy prompts measures
the peak of the activations; weights, that peak and what lies outside of PyTorch are taken from
gpu_memory_utilization · memory, and the rest becomes blocks of the KV cache. docs/capacity.md has the formulas.

Sizes are bytes of one GPU, unless a name says otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..module_utils.checkpoint import adapters, speculation
from ..module_utils.checkpoint.engine import PORT, Engine, judge
from ..module_utils.checkpoint.limits import (
    BLOCK_SIZE,
    CHECKED_BYTES,
    COLUMNS,
    EXPERT_ALIGNMENT,
    EXPERT_BYTES,
    GROUPS,
    HEAD_MULTIPLE,
    LARGEST_HEAD,
    TEMPORARY_BLOCK_SIZE,
    TILE,
    WHOLE_ROW,
)
from . import engine_options
from .model_families import (
    HEAD,
    CapacityError,
    Model,
    Quantization,
    Tensor,
    read,
    tensors_of,
    uncounted,
)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# Defaults of vLLM 0.9.2: CacheConfig, EngineArgs._set_default_args_v0, DEFAULT_MAX_NUM_BATCHED_TOKENS and that of
# models with images.
UTILIZATION = 0.9
MAX_NUM_SEQS = 256
BATCHED_TOKENS = 2048
IMAGE_TOKENS = 5120
CHUNKED_ABOVE = 32768
VOCABULARY_PADDING = 64
# Memory of torch.sort for each float32 logit while top-k and top-p are sampled (Sort.cu, CUB): logits, values and
# indices 16, then either indices and CUB's second buffers 20, or, below 128 rows, two pairs of integers, keys and
# CUB's second buffers 32.
SORT_BYTES, SORT_BYTES_FEW_ROWS, FEW_ROWS = 36, 48, 128
# Token ids, positions, slots and what the temporary cache is addressed with: eight int64 a token.
TOKEN_BYTES = 64
# PyTorch's workspace for cuBLAS before Hopper, which counts as an activation: 2 of 4,096 KiB and 8 of 16 KiB.
CUBLAS_WORKSPACE = 8320 * KIB
# Bytes of a scale and of a zero point.
SCALE_BYTES, ZERO_BYTES = 2, 2
# Memory outside of PyTorch that comes after the engine's first look at the memory. Estimates, not measured:
# kernels that are loaded on first use, and with several GPUs the buffers of two NCCL communicators.
KERNEL_BYTES = 64 * MIB
NCCL_BYTES = 192 * MIB


@dataclass(frozen=True)
class Storage:
    """Formats of weights and KV cache in memory.

    Attributes:
        bits: of a number in a layer's matrix. 32 and 16 are float32 and float16; less are codes.
        group: columns of a row that share a scale; 0 where there are none, WHOLE_ROW for all.
        beside: bytes of a group's scale and zero point.
        act_order: whether the columns of a group lie scattered over the row.
        table: bytes of a number in embedding and head, and in a matrix that a quantized checkpoint leaves as it was.
        cache: bytes of a number in the KV cache.
    """

    bits: int
    group: int
    beside: int
    table: int
    cache: int
    act_order: bool = False


# Storages that a plan compares. Codes are planned with `dtype: half`; if the checkpoint has none, in groups of 128 with
# a zero point each.
STORAGES = {
    "fp32": Storage(32, 0, 0, 4, 4),
    "fp16": Storage(16, 0, 0, 2, 2),
    "int8": Storage(8, 128, SCALE_BYTES + ZERO_BYTES, 2, 2),
    "int4": Storage(4, 128, SCALE_BYTES + ZERO_BYTES, 2, 2),
}
# Values of an instance's dtype: bytes of a number. Arithmetic and activations are float32 with either.
DTYPES = {"float32": 4, "half": 2}


def storage_of(dtype: str, quantization: Quantization | None) -> Storage:
    """The storage of a checkpoint by an instance."""
    size = DTYPES[dtype]
    if quantization is None:
        return Storage(8 * size, 0, 0, size, size)
    return Storage(
        quantization.main.bits, quantization.main.group, SCALE_BYTES + (ZERO_BYTES if quantization.zeros else 0), size,
        size, quantization.act_order,
    )


NORM = re.compile(r"norm|(^|\.)ln_")
EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|lm_head|embed_out)\.")
REPLICATED = re.compile(r"(^|\.)(wpe|embed_positions|gate|router|shared_expert_gate|project_in|project_out)\.")
# Matrices whole on each GPU, though they are stored like others.
WHOLE = re.compile(r"(^|\.)(q_a_proj|kv_a_proj_with_mqa)\.")
KEYS_AND_VALUES = re.compile(r"(^|\.)[kv]_proj\.")
FUSED_QKV = re.compile(r"(^|\.)(qkv_proj|query_key_value|c_attn|Wqkv)\.")
# Matrices whose columns are split over the GPUs; the rows of others are.
ROW = re.compile(
    r"(^|\.)(o_proj|out_proj|dense|down_proj|dense_4h_to_h|c_proj|fc2|fc_out|w2)\.weight$"
)
# Biases of these are added before the sum over the GPUs, each GPU its own part.
COLUMN = re.compile(r"(^|\.)(q_proj|gate_proj|up_proj|gate_up_proj|fc1|fc_in|c_fc|dense_h_to_4h)\.")


def share(tensor: Tensor, model: Model, gpus: int) -> float:
    """Elements of a tensor that one of `gpus` keeps."""
    if any(pattern.search(tensor.name) for pattern in (NORM, REPLICATED, WHOLE)):
        return tensor.elements
    if EMBEDDING.search(tensor.name) and tensor.shape[0] == model.vocabulary:
        padded = -(-model.vocabulary // VOCABULARY_PADDING) * VOCABULARY_PADDING
        return tensor.elements / model.vocabulary * padded / gpus
    kv = model.kv_heads_of(gpus)
    if KEYS_AND_VALUES.search(tensor.name):
        return tensor.elements * kv / model.kv_heads
    if FUSED_QKV.search(tensor.name):
        return tensor.elements * (model.heads / gpus + 2 * kv) / (model.heads + 2 * model.kv_heads)
    if len(tensor.shape) < 2 and not COLUMN.search(tensor.name):
        return tensor.elements
    return tensor.elements / gpus


def is_matrix(tensor: Tensor) -> bool:
    """Return whether it is a matrix of a layer: these are stored with a Storage's `bits`."""
    return len(tensor.shape) > 1 and not any(pattern.search(tensor.name) for pattern in (NORM, REPLICATED, EMBEDDING))


def held_bytes(tensor: Tensor, model: Model, gpus: int, storage: Storage) -> float:
    """Bytes of a tensor on one of `gpus`: norms, biases, routers and positions are float32 in every storage."""
    elements = share(tensor, model, gpus)
    if not is_matrix(tensor):
        is_table = EMBEDDING.search(tensor.name) and not NORM.search(tensor.name) and len(tensor.shape) > 1
        return elements * (storage.table if is_table else 4)
    if tensor.plain:
        return elements * storage.table
    size = elements * storage.bits / 8
    if not storage.group:
        return size
    if storage.group == WHOLE_ROW:
        rows = tensor.shape[0] * tensor.count
        groups = rows if ROW.search(tensor.name) else rows * elements / tensor.elements
    else:
        # If GPUs part a group, each has the scale of its piece.
        pieces = math.gcd(storage.group, tensor.shape[1] // gpus) if ROW.search(tensor.name) else storage.group
        groups = elements / pieces
    return size + groups * storage.beside


def weight_bytes(model: Model, tensors: list[Tensor], gpus: int, storage: Storage) -> int:
    """Weights of one GPU, the table of the rotary embedding with them."""
    kept = sum(held_bytes(tensor, model, gpus, storage) for tensor in tensors)
    return int(kept) + 4 * model.rotary


def adapter_layers(tensors: Iterable[Tensor]) -> dict[str, tuple[int, int]]:
    """(rows, columns) of the matrices that a LoRA adapter may change, by their names without .weight."""
    return {
        tensor.name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1]) for tensor in tensors
        if len(tensor.shape) == 2 and ".experts." not in tensor.name
        and not NORM.search(tensor.name) and not EMBEDDING.search(tensor.name)
    }


def adapter_bytes(model: Model, tensors: list[Tensor], gpus: int, adapters: int, rank: int) -> int:
    """LoRA adapters of one GPU: float32, a column of lora_A and a row of lora_B for each rank.

    A layer split by its columns splits lora_A, any other one lora_B; the other half is whole on each GPU.
    """
    layers = adapter_layers(tensors)
    total = 0.0
    for tensor in tensors:
        if len(tensor.shape) == 2 and tensor.name.removesuffix(".weight") in layers:
            rows, columns = tensor.shape
            mine = share(tensor, model, gpus) / tensor.elements
            total += tensor.count * (rows + columns * mine if ROW.search(tensor.name) else rows * mine + columns)
    return int(4 * adapters * rank * total)


def read_bytes(model: Model, tensors: list[Tensor], gpus: int, storage: Storage) -> int:
    """Bytes of weights that one GPU reads for a token: chosen experts only; no embedding unless tied to the head."""
    total = 0.0
    for tensor in tensors:
        size = held_bytes(tensor, model, gpus, storage)
        if EMBEDDING.search(tensor.name) and not NORM.search(tensor.name) and not HEAD.search(tensor.name):
            size = size if model.tied else 0
        if ".experts." in tensor.name and model.experts:
            size *= model.chosen / model.experts
        total += size
    return int(total)


def token_bytes(model: Model, gpus: int, storage: Storage) -> int:
    """KV cache of one token on one GPU. V0 keeps every token, also behind a sliding window."""
    return 2 * model.layers * model.kv_heads_of(gpus) * model.head_size * storage.cache


@dataclass(frozen=True)
class Options:
    """The engine options that decide the memory; None for vLLM's default.

    Attributes:
        memory: of a GPU.
        bandwidth: bytes a second that a GPU reads.
        outside: bytes outside of PyTorch, where they are known.
        adapters: LoRA adapters that a batch may have.
        adapter_rank: rank that each has room for.
        beside: bytes of what speculates on the first GPU: a draft model's weights, and the check of its proposals.
        beside_token: KV cache of one token of a draft model.
        stages: hosts that share the layers.
        divided: whether each of as many batches in flight has its own part of the cache: V0's have, V1's share it.
    """

    memory: int
    bandwidth: float
    max_num_seqs: int = MAX_NUM_SEQS
    max_num_batched_tokens: int | None = None
    enable_chunked_prefill: bool | None = None
    block_size: int = BLOCK_SIZE
    gpu_memory_utilization: float = UTILIZATION
    outside: int | None = None
    workspace: int = CUBLAS_WORKSPACE
    adapters: int = 0
    adapter_rank: int = 0
    beside: int = 0
    beside_token: int = 0
    stages: int = 1
    divided: bool = True

    @property
    def parts(self) -> int:
        """Parts that the cache is divided into."""
        return self.stages if self.divided else 1

    def is_chunked(self, model: Model, max_model_len: int) -> bool:
        """Whether a prompt may be spread over several batches."""
        if self.enable_chunked_prefill is not None:
            return self.enable_chunked_prefill
        return max_model_len > CHUNKED_ABOVE and not (model.window or model.multimodal or self.adapters or self.beside)

    def batched_tokens(self, model: Model, max_model_len: int) -> int:
        """Tokens of the batch that measures the activations."""
        if self.max_num_batched_tokens is not None:
            return self.max_num_batched_tokens
        tokens = BATCHED_TOKENS if self.is_chunked(model, max_model_len) else max(max_model_len, BATCHED_TOKENS)
        return min(self.max_num_seqs * max_model_len, max(tokens, IMAGE_TOKENS if model.multimodal else 0))


# What the V1 engine of a released vLLM does otherwise: it spreads every prompt over batches.
V1: dict[str, Any] = {"enable_chunked_prefill": True, "divided": False}


def figures_of(gpu: dict[str, Any]) -> dict[str, Any]:
    """Memory and bandwidth of a GPU, as Options has them, of a profile's `gpu`."""
    return {"memory": gpu["memory_mib"] * MIB, "bandwidth": gpu["bandwidth"]}


def activation_bytes(
    model: Model, gpus: int, max_model_len: int, options: Options, storage: Storage = STORAGES["fp32"]
) -> int:
    """Peak of the activations while the memory is measured: in attention, in a feed-forward layer or in the sampler.

    Activations are float32 whatever the weights are stored in. A product with another matrix takes a float32 tile of
    it, and where columns are scattered its input once more, in their order.
    """
    tokens, seqs = options.batched_tokens(model, max_model_len), options.max_num_seqs
    hidden, q = model.hidden, model.heads * model.head_size // gpus
    kv, inner = model.kv_heads_of(gpus) * model.head_size, model.intermediate // gpus
    reduced = tokens * hidden if gpus > 1 else 0

    def tile(rows: int, columns: int) -> int:
        ordered = tokens * columns if storage.act_order else 0
        return 0 if storage.bits == 32 else min(TILE, rows * columns) + ordered

    # Input and residual of a layer, the fused projection, its output, and keys and values in blocks: each of the
    # sequences fills its last block in part.
    slots = (tokens // TEMPORARY_BLOCK_SIZE + seqs) * TEMPORARY_BLOCK_SIZE
    projected = 2 * hidden + 2 * q + 2 * kv + (q + kv if model.query_norm else 0)
    projected += model.heads * model.latent // gpus
    attention = max(
        tokens * (2 * hidden + q + 2 * kv) + tile(q + 2 * kv, hidden),
        tokens * projected + 2 * slots * kv,
        tokens * (projected + hidden) + max(tile(hidden, q), reduced),
    )
    feed_forward = 0
    if model.experts:
        size = model.expert_intermediate // gpus
        part = min(tokens, max(1, EXPERT_BYTES // (4 * model.chosen * (3 * size + hidden))))
        products = part * model.chosen * (3 * size + hidden) + tokens * hidden
        # The parts and their whole; then the sum over the GPUs beside what each has.
        joined = tokens * hidden * (1 if part == tokens and gpus == 1 else 2)
        feed_forward = tokens * (3 * hidden + model.experts + 3 * model.chosen) + max(products, joined)
        # Output of the shared experts, and the sum times its factor.
        feed_forward += 2 * tokens * hidden if model.latent else 0
    if not model.experts or model.latent:
        # The layer's input, the residual and what attention gave; the first product, its activation, the second.
        first = 2 * inner if model.gated else inner
        kept = first if model.fused_kept else 0
        feed_forward = max(
            feed_forward,
            tokens * (3 * hidden + first) + tile(first, hidden),
            tokens * (3 * hidden + first + inner),
            tokens * (4 * hidden + kept + inner) + max(tile(hidden, inner), reduced),
        )
    per_logit = SORT_BYTES_FEW_ROWS if seqs < FEW_ROWS else SORT_BYTES
    # If padding was cut off, the sort works on a copy.
    per_logit += 4 if model.vocabulary % VOCABULARY_PADDING else 0
    sampler = seqs * model.vocabulary * per_logit + 4 * (tokens + seqs) * hidden
    layer = max(attention, feed_forward) + tokens * model.kept * hidden
    return max(4 * layer, sampler) + tokens * TOKEN_BYTES + options.workspace


@dataclass(frozen=True)
class Need:
    """Memory of one GPU for one engine with a given max_model_len; `cache` may be negative."""

    max_model_len: int
    weights: int
    activations: int
    outside: int
    cache: int
    block: int
    block_size: int
    parts: int = 1

    @property
    def blocks(self) -> int:
        return max(0, self.cache // self.block)

    @property
    def tokens(self) -> int:
        """Tokens that the KV cache holds, or its part for one of the batches that pass the stages."""
        return self.blocks // self.parts * self.block_size

    @property
    def fits(self) -> bool:
        """Return whether a sequence of max_model_len fits: V0 does not start otherwise."""
        return self.tokens >= self.max_model_len

    @property
    def sequence(self) -> int:
        """KV cache of one sequence of max_model_len, in each part of it."""
        return -(-self.max_model_len // self.block_size) * self.block * self.parts

    @property
    def needed(self) -> int:
        """Bytes for an engine that holds one sequence of max_model_len."""
        return self.weights + self.activations + self.outside + self.sequence


def outside_bytes(gpus: int) -> int:
    return KERNEL_BYTES + (NCCL_BYTES if gpus > 1 else 0)


def need(
    model: Model, tensors: list[Tensor], gpus: int, max_model_len: int, options: Options, storage: Storage
) -> Need:
    """Memory of one of `gpus` GPUs."""
    weights = weight_bytes(model, tensors, gpus, storage) + options.beside
    weights += adapter_bytes(model, tensors, gpus, options.adapters, options.adapter_rank)
    activations = activation_bytes(model, gpus, max_model_len, options, storage)
    outside = outside_bytes(gpus) if options.outside is None else options.outside
    budget = int(options.memory * options.gpu_memory_utilization)
    return Need(
        max_model_len=max_model_len, weights=weights, activations=activations, outside=outside,
        cache=budget - weights - activations - outside,
        block=(token_bytes(model, gpus, storage) + options.beside_token) * options.block_size,
        block_size=options.block_size, parts=options.parts,
    )


# Hosts that a model is planned over at most.
MOST_HOSTS = 16
# A tensor of a layer, by its number or by the star that stands for all.
LAYER = re.compile(r"\.(\*|\d+)\.")


def stage_of(model: Model, tensors: list[Tensor], stages: int) -> tuple[Model, list[Tensor]]:
    """The largest stage of a model: its share of the layers, rounded up, and one table, embedding or head."""
    if stages == 1:
        return model, tensors
    layers = -(-model.layers // stages)
    part = layers / model.layers
    kept = [
        replace(tensor, count=max(1, math.ceil(tensor.count * part))) if LAYER.search(tensor.name) else tensor
        for tensor in tensors if not HEAD.search(tensor.name)
    ]
    return replace(model, layers=layers), kept


def longest_context(model: Model, tensors: list[Tensor], gpus: int, options: Options, storage: Storage) -> int:
    """Largest max_model_len that fits, at most the model's positions; 0 where none does."""
    limit = model.positions or CHUNKED_ABOVE

    def fits(length: int) -> bool:
        return need(model, tensors, gpus, length, options, storage).fits

    # Activations grow with the length up to where prefill is chunked, and not from there on.
    for low, high in ((CHUNKED_ABOVE + 1, limit), (1, min(limit, CHUNKED_ABOVE))):
        if low > high or not fits(low):
            continue
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return low
    return 0


def checked_bytes(model: Model, settings: dict[str, Any], options: Options) -> int:
    """Bytes that the check of proposed tokens takes, for a well-formed speculative_config."""
    tokens = settings["num_speculative_tokens"]
    most = min(options.max_num_seqs, speculation.most_sequences(tokens, settings.get("disable_by_batch_size")))
    return CHECKED_BYTES * (tokens + 1) * most * model.vocabulary


def size_faults(model: Model, gpus: int, tensors: Iterable[Tensor] = (), storage: Storage | None = None) -> list[str]:
    """Reason why the model cannot be split over `gpus`; empty if it can.

    Args:
        tensors, storage: where they are given, groups are checked too.
    """
    faults = []
    if model.heads % gpus:
        faults.append(f"{model.heads} attention heads")
    if max(model.kv_heads, gpus) % min(model.kv_heads, gpus):
        faults.append(f"{model.kv_heads} heads of keys and values")
    inner = model.expert_intermediate if model.experts else model.intermediate
    if inner % gpus:
        faults.append(f"feed-forward layers of {inner}")
    if (-(-model.vocabulary // VOCABULARY_PADDING) * VOCABULARY_PADDING) % gpus:
        faults.append(f"a vocabulary of {model.vocabulary}")
    return faults or (group_faults(gpus, tensors, storage) if storage and storage.group else [])


def group_faults(gpus: int, tensors: Iterable[Tensor], storage: Storage) -> list[str]:
    """Matrices of codes that the groups do not divide, or whose columns the kernels cannot split, with the numbers."""
    if gpus > 1 and storage.act_order:
        return ["columns in the order of their activations (act-order), whose groups are scattered over all GPUs"]
    whole = COLUMNS if storage.group == WHOLE_ROW else storage.group
    faults: dict[str, str] = {}
    for tensor in tensors:
        if not is_matrix(tensor) or tensor.plain:
            continue
        name, columns = tensor.name.split("*.")[-1].removesuffix(".weight"), tensor.shape[1]
        mine = columns // (gpus if ROW.search(tensor.name) else 1)
        if columns % whole:
            better = " or ".join(str(size) for size in GROUPS if columns % size == 0)
            faults[name] = f"{name}'s {columns} columns in groups of {whole} ({better or 'no size'} would do)"
        elif mine % COLUMNS:
            faults[name] = f"{name}'s {columns} columns ({mine} a GPU: no multiple of {COLUMNS})"
    return list(faults.values())


def sizes_that_divide(
    model: Model, most: int, tensors: Iterable[Tensor] = (), storage: Storage | None = None
) -> list[int]:
    tensors = list(tensors)
    return [gpus for gpus in range(1, most + 1) if not size_faults(model, gpus, tensors, storage)]


def gpus_needed(
    model: Model, tensors: list[Tensor], max_model_len: int, options: Options, storage: Storage, most: int = 64
) -> int | None:
    """Fewest GPUs on which a sequence of max_model_len fits; None if `most` are too few."""
    for gpus in sizes_that_divide(model, most, tensors, storage):
        if need(model, tensors, gpus, max_model_len, options, storage).fits:
            return gpus
    return None


def hosts_needed(
    model: Model, tensors: list[Tensor], gpus: int, max_model_len: int, options: Options, storage: Storage
) -> int | None:
    """Fewest hosts of so many GPUs each on which a sequence of max_model_len fits; None if MOST_HOSTS are too few."""
    for stages in range(2, min(MOST_HOSTS, model.layers) + 1):
        stage, kept = stage_of(model, tensors, stages)
        if need(stage, kept, gpus, max_model_len, replace(options, stages=stages), storage).fits:
            return stages
    return None


def model_faults(model: Model, gpus: int, storage: Storage) -> list[tuple[str, str]]:
    """Parts of a model that the port's kernels cannot take: (found, expected)."""
    found = []
    if model.experts and storage.act_order:
        found.append(("experts in GPTQ with act-order (desc_act)", "a checkpoint of it without act-order"))
    if model.head_size % HEAD_MULTIPLE or model.head_size > LARGEST_HEAD:
        found.append((f"heads of size {model.head_size}", f"a multiple of {HEAD_MULTIPLE} up to {LARGEST_HEAD}"))
    if model.experts and (model.hidden % EXPERT_ALIGNMENT or model.expert_intermediate // gpus % EXPERT_ALIGNMENT):
        found.append((
            f"experts of {model.hidden} by {model.expert_intermediate} over {gpus} GPUs",
            f"multiples of {EXPERT_ALIGNMENT} on each GPU",
        ))
    return found


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


# -- The plan ---------------------------------------------------------------------------------------------------------


def plan(
    config: Any, recorded: Iterable[dict[str, Any]], context: int | None, options: Options, sizes: list[int],
    tokenizer: dict[str, Any] | None = None, engine: Engine = PORT, predict: Callable[..., Any] | None = None,
    hosts: int = 1,
) -> dict[str, Any]:
    """Every layout and storage of a model, as JSON can hold it.

    Args:
        context: tokens of one sequence; None for 4,096, or the model's positions where they are fewer.
        sizes: numbers of GPUs that are compared.
        tokenizer: what tokenizer_config.json holds, where it is there.
        predict: throughput.predicted for the profile; None where it has no figures.
        hosts: over how many the model is spread too, on the largest number of GPUs of each.

    Raises CapacityError if the model cannot be planned.
    """
    recorded = list(recorded)
    refused = judge(config, recorded, tokenizer, engine=engine)
    # Files that are refused say nothing about the checkpoint that would be served.
    recorded = [] if refused else recorded
    try:
        model = read(config, recorded)
        tensors = tensors_of(model, recorded)
    except CapacityError as error:
        if not refused:
            raise
        raise CapacityError(*refused[0]) from error
    parameters = sum(tensor.elements for tensor in tensors)
    in_gguf = model.quantization is not None and model.quantization.method == "gguf"
    counted = "config" if not recorded else "a GGUF file" if in_gguf else "safetensors"
    if context is None:
        context = min(4096, model.positions or 4096)
    if model.positions is not None and context > model.positions:
        raise CapacityError(f"plan_context {context}", f"at most the model's {model.positions} positions")
    storages = {**STORAGES, **own_storage(model)}
    rows = [
        plan_row(model, tensors, gpus, context, options, name, storage, predict)
        for gpus in sizes for name, storage in storages.items()
    ]
    if hosts > 1:
        rows += [
            plan_row(model, tensors, sizes[-1], context, replace(options, stages=hosts), name, storage)
            for name, storage in storages.items()
        ]
    if refused:
        rows = [{**row, "served": False} for row in rows]
        conclusion = [f"Expected: {expected}." for _, expected in refused]
    else:
        conclusion = _conclusion(model, tensors, context, options, rows, storages, sizes)
    return {
        "architecture": model.architecture, "parameters": parameters,
        "counted": counted, "uncounted": uncounted(model.config, recorded),
        "positions": model.positions, "context": context,
        "max_num_seqs": options.max_num_seqs, "gpu_memory_utilization": options.gpu_memory_utilization,
        "die": options.memory, "bandwidth": options.bandwidth,
        "budget": int(options.memory * options.gpu_memory_utilization),
        "refused": [found for found, _ in refused], "layouts": rows, "conclusion": conclusion,
    }


def own_storage(model: Model) -> dict[str, Storage]:
    """The storage of a quantized checkpoint itself, by its name in STORAGES; nothing for others."""
    if model.quantization is None:
        return {}
    return {f"int{model.quantization.main.bits}": storage_of("half", model.quantization)}


def plan_row(
    model: Model, tensors: list[Tensor], gpus: int, context: int, options: Options, name: str, storage: Storage,
    predict: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """One line of a plan."""
    own, stages = own_storage(model), options.stages
    faults = size_faults(model, gpus, tensors, storage) + [found for found, _ in model_faults(model, gpus, storage)]
    if stages > model.layers:
        faults.append(f"{model.layers} layers over {stages} hosts")
    row: dict[str, Any] = {
        "hosts": stages, "dies": gpus, "storage": name, "checkpoint": checkpoint_of(storage),
        # This checkpoint first, then others of the same model.
        "served": name in own if own else storage.bits >= 16, "faults": faults,
    }
    if faults:
        return {**row, "fits": False}
    stage, kept = stage_of(model, tensors, stages)
    at = need(stage, kept, gpus, context, options, storage)
    sequences = options.parts * min(options.max_num_seqs, at.tokens // context)
    return {
        **row, "fits": at.fits, "weights": at.weights, "activations": at.activations, "outside": at.outside,
        "predicted": predict(model, tensors, gpus, storage, context, sequences) if predict else [],
        "cache": max(0, at.cache), "token": at.block // at.block_size, "needed": at.needed, "blocks": at.blocks,
        "longest": longest_context(stage, kept, gpus, options, storage),
        "sequences": sequences,
        # A token passes the stages one after the other.
        "tokens_per_second": options.bandwidth / read_bytes(model, tensors, gpus, storage),
    }


def spelled(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as "fp32 on 4 GPU(s) of 2 hosts, fp16 on 2 or 4 GPU(s), fp16 on 4 GPU(s) of 2 hosts"."""
    by_place: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        by_place.setdefault((row["storage"], row["hosts"]), []).append(str(row["dies"]))
    order = list(STORAGES)
    return ", ".join(
        f"{name} on {' or '.join(gpus)} GPU(s)" + on_hosts(hosts)
        for (name, hosts), gpus in sorted(by_place.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    )


def on_hosts(hosts: int) -> str:
    """The end of a text about GPUs of each of so many hosts; nothing for one host."""
    return f" of each of {hosts} hosts" if hosts > 1 else ""


def checkpoint_of(storage: Storage) -> str:
    """The checkpoint of a model that is stored so."""
    if storage.bits >= 16:
        return "an unquantized checkpoint"
    return f"a checkpoint in {storage.bits} bits, " + (
        "a scale for each row" if storage.group == WHOLE_ROW else f"groups of {storage.group}"
    )


def _conclusion(
    model: Model, tensors: list[Tensor], context: int, options: Options, rows: list[dict[str, Any]],
    storages: dict[str, Storage], sizes: list[int],
) -> list[str]:
    """Next step for the operator."""
    budget = int(options.memory * options.gpu_memory_utilization)
    served = [row for row in rows if row["served"] and row["fits"]]
    other = [row for row in rows if not row["served"] and row["fits"]]
    if served:
        best = served[-1]
        return [
            f"Served in {spelled(served)}; in {best['storage']} on {best['dies']}{on_hosts(best['hosts'])}: "
            f"{best['sequences']} sequence(s) of {context} tokens, or one of up to {best['longest']}."
        ]
    # The smallest storage that this checkpoint can have.
    possible = [row["storage"] for row in rows if row["served"] and not row["faults"]]
    name = (possible or [row["storage"] for row in rows if row["served"]])[-1]
    lines = []
    for row in rows:
        if row["storage"] == name and not row["faults"]:
            lines.append(
                f"{row['dies']} GPU(s){on_hosts(row['hosts'])}, {name}: one sequence of {context} tokens needs "
                f"{gib(row['needed'])} a GPU; {gib(budget)} are there"
                + (f", enough for {row['longest']} tokens." if row["longest"] else ".")
            )
    for row in rows:
        if row["faults"] and row["storage"] == name:
            reason = f"{' and '.join(row['faults'])} cannot be split or served."
            lines.append(f"{row['dies']} GPU(s){on_hosts(row['hosts'])}: {reason}")
    count = gpus_needed(model, tensors, context, options, storages[name]) if possible else None
    if possible and (enough := hosts_needed(model, tensors, sizes[-1], context, options, storages[name])):
        lines.append(f"In {name} it fits {sizes[-1]} GPU(s){on_hosts(enough)}: plan_hosts={enough} shows it.")
    return [
        f"It fits no layout of {', '.join(map(str, sizes))} GPUs.", *lines,
        f"In {name} it would take {count} GPUs." if count else f"In {name} no number of GPUs up to 64 will do.",
        f"Another checkpoint of it would fit: {spelled(other)}." if other else "No other storage of it fits either.",
        f"{sizes[-1]} GPUs hold {sizes[-1] * budget * 8 / storages[name].bits / 1e9:.0f} billion numbers of "
        f"{storages[name].bits} bits, were there no cache and no activations: choose a smaller model, a shorter "
        "plan_context or a smaller plan_max_num_seqs.",
    ]


def table(made: dict[str, Any]) -> list[str]:
    """A plan for people, line by line."""
    # The column of the hosts, if there are several.
    several = any(row["hosts"] > 1 for row in made["layouts"])
    lines = [
        f"{made['architecture'] or 'model'}: {made['parameters'] / 1e6:,.1f} million parameters (counted from "
        f"{made['counted']}), context of {made['context']} tokens, max_num_seqs {made['max_num_seqs']}.",
        f"A GPU: {gib(made['die'])}, of which the server takes {made['gpu_memory_utilization']:.0%} = "
        f"{gib(made['budget'])}. Sizes are GiB a GPU; tok/s is the bound of {made['bandwidth'] / 1e9:.0f} GB/s a GPU.",
        f"{'hosts ' if several else ''}"
        f"{'GPUs':>4} {'storage':>7} {'weights':>8} {'activ.':>7} {'other':>6} {'cache':>6} {'KiB/tok':>8} "
        f"{'longest':>8} {'seqs':>5} {'tok/s':>6}  remark",
    ]
    for row in made["layouts"]:
        place = (f"{row['hosts']:>5} " if several else "") + f"{row['dies']:>4} {row['storage']:>7}"
        if row["faults"]:
            lines.append(f"{place} cannot be split or served: {', '.join(row['faults'])}")
            continue
        sizes = [row[key] / GIB for key in ("weights", "activations", "outside", "cache")]
        remark = [] if row["served"] or made["refused"] else [f"takes {row['checkpoint']}"]
        if not row["fits"]:
            remark.append(f"does not fit: needs {gib(row['needed'])}")
        lines.append(
            f"{place} {sizes[0]:>8.2f} {sizes[1]:>7.2f} {sizes[2]:>6.2f} {sizes[3]:>6.2f} "
            f"{row['token'] / KIB:>8.1f} {row['longest']:>8} {row['sequences']:>5} {row['tokens_per_second']:>6.1f}  "
            f"{'; '.join(remark)}".rstrip()
        )
    if made["uncounted"]:
        lines.append(f"Not counted: the weights of {', '.join(made['uncounted'])}. Name a directory with the model's "
                     "safetensors, and they are.")
    return lines + [f"Refused at start: {found}." for found in made["refused"]] + made["conclusion"]


# Fields of Options that options of vLLM set, and those that count beside adapters alone.
NUMBERS = {name: name for name in ("max_num_seqs", "max_num_batched_tokens", "block_size")}
ADAPTER_NUMBERS = {"adapters": "max_loras", "adapter_rank": "max_lora_rank"}


def options_of(instance: dict[str, Any], gpu: dict[str, Any], ranks: Iterable[int] = ()) -> Options:
    """The options that an instance sets, by key or in extra_args; what is no number is left to vLLM.

    gpu: the profile's. ranks: of the instance's adapters.
    """
    found: dict[str, Any] = {}
    extra = engine_options.meant(instance.get("extra_args") or {}, instance.get("engine"))
    if instance.get("engine") == "stock":
        found.update(V1)
    numbers = NUMBERS
    if named := instance.get("adapters"):
        found.update(adapters=len(named), adapter_rank=adapters.room_for(list(ranks)))
        numbers = {**NUMBERS, **ADAPTER_NUMBERS}
    for key, option in numbers.items():
        value = extra.get(option)
        # vLLM reads a text of digits as a number.
        value = int(value) if isinstance(value, str) and value.isdecimal() else value
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            found[key] = value
    if isinstance(extra.get("enable_chunked_prefill"), bool):
        found["enable_chunked_prefill"] = extra["enable_chunked_prefill"]
    if instance.get("gpu_memory_utilization") is not None:
        found["gpu_memory_utilization"] = float(instance["gpu_memory_utilization"])
    return Options(**figures_of(gpu), **found)
