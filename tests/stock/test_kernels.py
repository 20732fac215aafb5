"""The released vLLM's own Triton kernels compile for compute capability 7.0: no GPU, nothing is launched."""

import inspect
import types

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

SM = 70
# Bytes that a block can have of a V100's multiprocessor.
SHARED = 96 << 10


class Driver:
    """A driver of a GPU that is not there."""

    launcher_cls = None
    utils = types.SimpleNamespace(get_device_properties=lambda device: {"max_shared_mem": SHARED})

    def get_current_target(self):
        return GPUTarget("cuda", SM, 32)

    def get_current_device(self):
        return 0

    def set_current_device(self, device):
        pass

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_interface(self):
        return torch.cpu

    def get_device_capability(self, device=None):
        return (7, 0)

    def get_benchmarker(self):
        return None

    def map_python_to_cpp_type(self, kind):
        return "int"


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """The kernels that are compiled instead of launched, in order."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found, run = [], triton.runtime.JITFunction.run

    def compile_only(function, *arguments, grid, warmup, **options):
        found.append(run(function, *arguments, grid=grid, warmup=True, **options))

    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    monkeypatch.setattr(triton.runtime.JITFunction, "run", compile_only)
    return found


def taken(function, values):
    """Those of the values that a function takes."""
    return {name: value for name, value in values.items() if name in inspect.signature(function).parameters}


def check(kernels):
    assert kernels
    for kernel in kernels:
        ptx = kernel.asm["ptx"]
        assert f".target sm_{SM}" in ptx
        assert "mma." not in ptx and "wgmma" not in ptx
        assert kernel.metadata.shared <= SHARED
        assert kernel.asm["cubin"]


@pytest.mark.parametrize("head", [64, 128, 256])
def test_attention_compiles(compiled, head):
    from vllm.attention.ops.triton_unified_attention import unified_attention

    heads, kv, block, blocks = 32, 8, 16, 8
    for lengths in ([5, 1], [1]):
        tokens, count = sum(lengths), len(lengths)
        starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
        cache = torch.zeros(blocks, block, kv, head, dtype=torch.float16)
        unified_attention(**taken(unified_attention, {
            "q": torch.zeros(tokens, heads, head, dtype=torch.float16), "k": cache, "v": cache,
            "out": torch.zeros(tokens, heads, head, dtype=torch.float16), "cu_seqlens_q": starts,
            "max_seqlen_q": max(lengths), "seqused_k": torch.full((count,), 20, dtype=torch.int32),
            "max_seqlen_k": 20, "softmax_scale": 0.1, "causal": True, "window_size": (-1, -1),
            "block_table": torch.zeros(count, blocks, dtype=torch.int32), "softcap": 0, "q_descale": None,
            "k_descale": torch.ones(count, kv), "v_descale": torch.ones(count, kv),
        }))
    check(compiled)


@pytest.mark.parametrize("tokens", [1, 4, 512])
def test_experts_compile(compiled, tokens):
    from vllm.model_executor.layers.fused_moe import fused_moe

    experts, n, k, top = 8, 512, 256, 2
    config = fused_moe.get_default_config(tokens, experts, n, k, top, None)
    invoke = fused_moe.invoke_fused_moe_kernel
    invoke(**taken(invoke, {
        "A": torch.zeros(4, k, dtype=torch.float16), "B": torch.zeros(experts, n, k, dtype=torch.float16),
        "C": torch.zeros(4, top, n, dtype=torch.float16), "topk_weights": torch.ones(4, top),
        "sorted_token_ids": torch.zeros(512, dtype=torch.int32),
        "expert_ids": torch.zeros(512 // config["BLOCK_SIZE_M"] + 1, dtype=torch.int32),
        "num_tokens_post_padded": torch.tensor([512], dtype=torch.int32), "mul_routed_weight": False, "top_k": top,
        "config": config, "compute_type": triton.language.float16, "per_channel_quant": False,
        "A_scale": None, "B_scale": None, "B_zp": None, "block_shape": None, "B_bias": None,
        "use_fp8_w8a8": False, "use_int8_w8a8": False, "use_int8_w8a16": False, "use_int4_w4a16": False,
    }))
    check(compiled)
