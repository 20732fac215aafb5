"""vLLM as it is released answers what transformers answers, token for token."""

import os

import pytest
import torch
from quantized_models import Kind, expected, fresh_model, quantized_model
from tiny_models import assert_same
from vllm import LLM, SamplingParams
from vllm import _custom_ops as operators
from vllm.model_executor.layers.quantization import cpu_wna16, gptq

# PyTorch's own operators: those that Inductor compiles on a GPU. Of the build for the CPU see the last test.
NATIVE = {"custom_ops": ["none"]}
# The prompt of 120 tokens comes in parts.
CHUNK = 64
# Less of what is slow in transformers: one layer with a window and one without.
DIFFERS = {"gemma3": {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}}
MIXTURES = {"lengths": (1, 7, 120), "tokens": 8}


@pytest.fixture
def engine():
    """Function that starts an engine with a model; it ends with the test."""
    started = []

    def start(model, **options):
        started.append(LLM(
            str(model.directory), skip_tokenizer_init=True, dtype="float32", max_model_len=model.context,
            disable_custom_all_reduce=True, enforce_eager=True, max_num_seqs=16, max_num_batched_tokens=CHUNK,
            compilation_config=NATIVE, **options,
        ))
        return started[-1]

    yield start
    for llm in started:
        llm.llm_engine.engine_core.shutdown()


def reference(family, directory, seed):
    """A tiny model of the family with fresh weights, and its answers."""
    model = fresh_model(family, seed, **DIFFERS.get(family, {}))
    model.save_pretrained(directory)
    return expected(model, directory, **(MIXTURES if family.startswith("mixtral") or "moe" in family else {}))


def answers(llm, model):
    sampling = SamplingParams(temperature=0, max_tokens=len(model.answers[0]), ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in model.prompts], sampling, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("family", [
    "llama", "qwen2", "qwen3", "gemma2", "gemma3", "granite", "phi3", "mistral", "mixtral", "qwen2-moe", "qwen3-moe",
])
def test_a_batch_of_mixed_lengths(engine, tmp_path, seed, family):
    model = reference(family, tmp_path, seed)
    llm = engine(model)
    assert_same(model, answers(llm, model))


@pytest.mark.skipif(not os.environ.get("STOCK_LONG"), reason="25 s; STOCK_LONG=1 runs it")
def test_two_ranks_answer_alike(engine, tmp_path, seed):
    model = reference("qwen3", tmp_path, seed)
    assert_same(model, answers(engine(model, tensor_parallel_size=2), model))


def unpacked(words, bits, dim):
    """Numbers of so many bits that lie in words of 32, along a dimension, as GPTQ's checkpoints have them."""
    words = words.movedim(dim, -1)
    parts = (words.unsqueeze(-1) >> torch.arange(0, 32, bits)) & (1 << bits) - 1
    return parts.flatten(-2).movedim(-1, dim)


class Reference:
    """What vLLM's GPTQ operators do, in PyTorch; the build for the CPU has none."""

    @staticmethod
    def gptq_shuffle(words, order, bits):
        """Bring the rows into the order of their groups. The GPU's order within a word is its kernel's own matter."""
        if len(order):
            rows = unpacked(words, bits, 0)[order.long()].unflatten(0, (-1, 32 // bits))
            words.copy_((rows << torch.arange(0, 32, bits).view(1, -1, 1)).sum(1).to(torch.int32))

    @staticmethod
    def gptq_gemm(x, words, zeros, scales, order, is_shuffled, is_v2, bits):
        assert is_shuffled
        codes, zeros = unpacked(words, bits, 0), unpacked(zeros, bits, 1) + (not is_v2)
        groups = torch.arange(len(codes)) // (len(codes) // len(scales))
        x = x[:, order.long()] if len(order) else x
        return x @ ((codes - zeros[groups]) * scales[groups])


@pytest.mark.parametrize("kind", [
    Kind("gptq", group=32), Kind("gptq", group=128, symmetric=True), Kind("gptq", group=32, act_order=True),
    Kind("gptq", bits=8, group=64, version="gptq_v2"),
], ids=["asymmetric", "symmetric", "act-order", "v2"])
def test_gptq_checkpoints_are_read_as_they_are_meant(engine, tmp_path, seed, monkeypatch, kind):
    """Loading and fused layers are vLLM's; its kernel for a GPU is not run."""
    for name in ("gptq_shuffle", "gptq_gemm"):
        monkeypatch.setattr(operators, name, getattr(Reference, name))
    monkeypatch.setattr(cpu_wna16.CPUGPTQConfig, "override_quantization_method", lambda *given: None)
    monkeypatch.setattr(gptq.GPTQConfig, "get_supported_act_dtypes", lambda *given: [torch.float32])
    model = quantized_model("llama", tmp_path, seed, kind)
    llm = engine(model, quantization="gptq")
    assert_same(model, answers(llm, model))


@pytest.mark.parametrize("rows", [1, 7])
def test_rms_norm_of_the_cpu_build_ignores_strides(rows):
    """Qwen 3 norms views of a larger matrix: wrong from the second row on. The GPU's operator takes the strides."""
    heads, size, eps = 4, 32, 1e-6
    view = torch.randn(rows, 2 * heads * size)[:, :heads * size].view(rows, heads, size)
    weight = torch.randn(size)
    exact = view.double() * torch.rsqrt(view.double().pow(2).mean(-1, keepdim=True) + eps) * weight.double()
    for given, is_right in ((view, rows == 1), (view.contiguous(), True)):
        out = torch.empty(rows, heads, size)
        operators.rms_norm(out, given, weight, eps)
        assert torch.allclose(out.double(), exact, atol=1e-5) == is_right
