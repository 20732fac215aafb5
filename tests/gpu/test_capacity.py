"""The capacity planner against the engine's own account of its memory, on GPUs held to what a K80 die has.

Models have the shapes of real ones, few layers and random weights. What lies outside of PyTorch is the GPU's and its
driver's: the engine's figure for it is taken over, and all else must follow. Found and planned figures are printed.
"""

import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from ansible_collections.kepler.vllm.plugins.plugin_utils.capacity import (
    BLOCK_SIZE,
    CUBLAS_WORKSPACE,
    GIB,
    MIB,
    UTILIZATION,
    Options,
    figures_of,
    need,
    outside_bytes,
    storage_of,
)
from ansible_collections.kepler.vllm.plugins.plugin_utils.model_families import read, tensors_of
from serve_once import serve
from tiny_models import TinyModel

K80 = figures_of(yaml.safe_load(
    (Path(__file__).resolve().parents[2] / "profiles" / "k80" / "profile.yml").read_text()
)["gpu"])
GPUS = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(GPUS == 0, reason="needs an NVIDIA GPU")
TOLERANCE = 0.05
# PyTorch's workspace for cuBLAS is larger from Hopper on.
HOPPER_WORKSPACE = 32 * MIB
ACCOUNT = re.compile(
    r"model weights take ([\d.]+)GiB; non_torch_memory takes (-?[\d.]+)GiB; "
    r"PyTorch activation peak memory takes ([\d.]+)GiB"
)
BLOCKS = re.compile(r"# cuda blocks: (\d+)")

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
    "max_position_embeddings": 8192, "tie_word_embeddings": False, "torch_dtype": "float32", "bos_token_id": 0,
    "eos_token_id": 1,
}
GROUPED = {**LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256}
QWEN = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3584,
        "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}
MIXTRAL = {**LLAMA, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "intermediate_size": 4096,
           "num_hidden_layers": 2, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2}
GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 1600, "n_layer": 8, "n_head": 25,
        "n_positions": 2048, "vocab_size": 50257, "torch_dtype": "float32", "bos_token_id": 0, "eos_token_id": 1}
# name -> (config, max_model_len, max_num_seqs, dtype): what has the peak of the activations is in the name.
CASES = {
    "llama-7b-attention": (LLAMA, 4096, 256, "float32"),
    "llama-7b-feed-forward": (LLAMA, 4096, 16, "float32"),
    "llama-8b-sampler": (GROUPED, 2048, 256, "float32"),
    "llama-8b-few-rows": (GROUPED, 2048, 100, "float32"),
    "llama-8b-long": (GROUPED, 8192, 8, "float32"),
    "qwen2-7b-feed-forward": (QWEN, 8192, 32, "float32"),
    "mixtral-experts": (MIXTRAL, 8192, 16, "float32"),
    "gpt2-cut-vocabulary": (GPT2, 2048, 256, "float32"),
    "llama-7b-half": (LLAMA, 4096, 16, "half"),
    "qwen2-7b-half-tile": (QWEN, 2048, 8, "half"),
}

THIRTEEN = {**LLAMA, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
            "num_attention_heads": 40, "num_key_value_heads": 40, "max_position_embeddings": 4096,
            "torch_dtype": "float16"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


def account(directory, config, gpus, max_model_len, max_num_seqs, dtype):
    """(weights, outside, activations, blocks) as the engine reports them, sizes in bytes; and the memory of the GPU.

    Ranks differ in what they hold outside of PyTorch; the one with the least room left decides how many blocks there
    are.
    """
    (directory / "config.json").write_text(json.dumps(config))
    model = TinyModel(directory, [[3, 4, 5]], [[0]], [[1.0]], 0.0, max_model_len)
    memory = torch.cuda.mem_get_info()[1]
    first = gpus * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    done = serve(
        model,
        {"VLLM_KEPLER_DEVICE": "", "VLLM_KEPLER_VERIFY": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
         "CUDA_VISIBLE_DEVICES": ",".join(str((first + rank) % GPUS) for rank in range(gpus))},
        load_format="dummy", tensor_parallel_size=gpus, max_num_seqs=max_num_seqs, swap_space=0, dtype=dtype,
        gpu_memory_utilization=UTILIZATION * K80["memory"] / memory,
    )
    assert done.status == 0, done.printed[-8000:]
    ranks = [tuple(float(number) * GIB for number in numbers) for numbers in ACCOUNT.findall(done.printed)]
    assert len(ranks) == gpus, done.printed[-8000:]
    (blocks,) = BLOCKS.findall(done.printed)
    return max(ranks, key=sum), int(blocks), memory


@pytest.mark.parametrize("gpus", [1, 2, 4])
@pytest.mark.parametrize("case", CASES)
def test_the_engine_needs_what_was_planned(tmp_path, case, gpus):
    config, max_model_len, max_num_seqs, dtype = CASES[case]
    model = read(config)
    if gpus > GPUS or model.heads % gpus:
        pytest.skip(f"needs {gpus} GPUs and heads that they divide")
    (weights, outside, activations), blocks, memory = account(
        tmp_path, config, gpus, max_model_len, max_num_seqs, dtype
    )
    options = Options(
        max_num_seqs=max_num_seqs, gpu_memory_utilization=UTILIZATION * K80["memory"] / memory, memory=memory,
        bandwidth=K80["bandwidth"], outside=int(outside),
        workspace=HOPPER_WORKSPACE if torch.cuda.get_device_capability() >= (9, 0) else CUBLAS_WORKSPACE,
    )
    planned = need(model, tensors_of(model), gpus, max_model_len, options, storage_of(dtype, None))
    # What the blocks may differ by is what the need may differ by.
    slack = TOLERANCE * (weights + activations) / planned.block
    rows = {
        "weights, GiB": (weights / GIB, planned.weights / GIB, TOLERANCE * weights / GIB),
        "activations, GiB": (activations / GIB, planned.activations / GIB, TOLERANCE * activations / GIB),
        "blocks": (blocks, planned.blocks, slack),
    }
    print(f"\n{case}, {gpus} GPU(s); outside of PyTorch {outside / GIB:.2f} GiB")
    for name, (found, plan, _) in rows.items():
        print(f"  {name:<17} found {found:>9.2f}  planned {plan:>9.2f}  planned / found {plan / found:.3f}")
    assert {name: row for name, row in rows.items() if abs(row[1] - row[0]) > row[2]} == {}


@pytest.mark.parametrize(
    ("changes", "length"), [({}, 2000), ({"quantization_config": AWQ}, 4064)], ids=["half", "int4"]
)
def test_thirteen_billion_parameters_on_four_gpus(tmp_path, changes, length):
    """Eight sequences at once, the context 4,096 tokens, the cache as large as it is planned for K80 gpus.

    In float16 the cache holds four sequences of full length; eight are of half of it. PyTorch may take what a K80 die
    has and no more; what NCCL takes for NVLink, which a K80 has not, comes on top.
    """
    if GPUS < 4:
        pytest.skip("needs 4 GPUs")
    config = {**THIRTEEN, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    prompts = [[3 + number, *[5] * (length - 1)] for number in range(8)]
    model = TinyModel(tmp_path, prompts, [[0] * 32], [[1.0]], 0.0, 4096)
    shape = read(config)
    planned = need(
        shape, tensors_of(shape), 4, 4096, Options(**K80, max_num_seqs=8), storage_of("half", shape.quantization)
    ).blocks
    memory = torch.cuda.mem_get_info()[1]
    done = serve(
        model,
        {"VLLM_KEPLER_DEVICE": "", "VLLM_KEPLER_VERIFY": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
         "PYTORCH_CUDA_ALLOC_CONF": f"per_process_memory_fraction:{(K80['memory'] - outside_bytes(4)) / memory:.4f}"},
        load_format="dummy", tensor_parallel_size=4, max_num_seqs=8, swap_space=0, dtype="half",
        gpu_memory_utilization=0.5, num_gpu_blocks_override=planned,
    )
    assert done.status == 0, done.printed[-8000:]
    assert [len(ids) for ids in done.ids] == [32] * 8
    # All at once: the cache holds them, and none had to leave it.
    assert planned * BLOCK_SIZE >= 8 * (length + 32)
    assert done.preemptions == 0
    print(f"{planned} blocks; weights, outside, activations in GiB: {ACCOUNT.findall(done.printed)}")
