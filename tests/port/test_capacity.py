"""The capacity planner's formulas against the checkpoints that transformers writes, and the weights that vLLM keeps."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers
from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint import files
from ansible_collections.kepler.vllm.plugins.plugin_utils import model_families
from ansible_collections.kepler.vllm.plugins.plugin_utils.capacity import (
    Options,
    activation_bytes,
    storage_of,
    weight_bytes,
)
from quantized_models import Kind, quantized_model
from test_latent import SIZES as LATENT
from tiny_models import CONTEXT, FAMILIES, MULTI_HEAD, SHAPE, TinyModel
from vllm.model_executor.models import ModelRegistry, supports_lora

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"

# What the planner knows beside the families of the engine's tests: name -> (model type, what differs from SHAPE).
OTHERS = {
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "olmo2": ("olmo2", {}),
    "gemma3": ("gemma3_text", {"head_dim": 32}),
    "phi": ("phi", MULTI_HEAD),
    "gpt-neox": ("gpt_neox", MULTI_HEAD),
    "gptj": ("gptj", {**MULTI_HEAD, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_inner": None,
                      "n_positions": 512, "rotary_dim": 16, "tie_word_embeddings": False}),
    "opt": ("opt", {**MULTI_HEAD, "ffn_dim": 192, "word_embed_proj_dim": 128}),
    "falcon-7b": ("falcon", {"multi_query": True, "parallel_attn": True}),
    "falcon-40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "multi_query": True}),
    "falcon-rw": ("falcon", {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True}),
    "qwen2-moe": ("qwen2_moe", {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 64,
                                "shared_expert_intermediate_size": 96, "decoder_sparse_step": 2}),
    "deepseek-v3": ("deepseek_v3", {**LATENT, "q_lora_rank": 48}),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
}
ALL = {**FAMILIES, **OTHERS}

QUANTIZED = {
    "gptq": Kind("gptq", group=32),
    "gptq-symmetric-8": Kind("gptq", bits=8, group=128, symmetric=True),
    "gptq-row": Kind("gptq", group=-1),
    "awq-some": Kind("awq", group=64, kept=("down_proj",)),
    "compressed-tensors": Kind("compressed-tensors", group=32, symmetric=True),
    "compressed-tensors-row-8": Kind("compressed-tensors", bits=8, group=-1),
    "experts": Kind("gptq", group=32, kept=("moe.gate",)),
    "experts-row-8": Kind("compressed-tensors", bits=8, group=-1, symmetric=True, kept=("moe.gate",)),
}
# What is asked of the reference, which no test here looks at.
ASKED = {"lengths": (1,), "tokens": 1}

TOKENS = CONTEXT - 32
PLAIN = {"hidden_size": 512, "num_hidden_layers": 3, "num_attention_heads": 8, "vocab_size": 320,
         "max_position_embeddings": CONTEXT, "torch_dtype": "float32", "tie_word_embeddings": False}
# Name -> (config, rows of the feed-forward layer's size that the CPU's reference of its activation takes beside its
# result; the kernel takes none).
PEAKS = {
    "feed-forward": ({**PLAIN, "model_type": "llama", "architectures": ["LlamaForCausalLM"],
                      "intermediate_size": 1376}, 0),
    # Holds the product that its activation was made of.
    "qwen2": ({**PLAIN, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 8,
               "intermediate_size": 1376}, 0),
    "attention": ({**PLAIN, "model_type": "llama", "architectures": ["LlamaForCausalLM"],
                   "intermediate_size": 256}, 0),
    "gpt2": ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 512, "n_layer": 3, "n_head": 8,
              "n_positions": CONTEXT, "vocab_size": 320, "torch_dtype": "float32"}, 1),
}


def save(name, directory):
    """A tiny model of a family with the planner's view of it: (model, tensors recorded in its files)."""
    kind, differs = ALL[name]
    config = transformers.AutoConfig.for_model(kind, **{**SHAPE, **differs})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    facts = files.read_model(str(directory))
    assert facts["faults"] == []
    return model_families.read(json.loads((directory / "config.json").read_text())), facts["tensors"]


def shapes(tensors):
    counted = Counter()
    for tensor in tensors:
        counted[tensor.name, tensor.shape] += tensor.count
    return counted


@pytest.mark.parametrize("name", ALL)
def test_the_formula_names_the_tensors_of_a_checkpoint(tmp_path, name):
    model, recorded = save(name, tmp_path)
    assert shapes(model_families.tensors_of(model)) == shapes(model_families.tensors_of(model, recorded))


def test_every_family_of_the_planner_is_compared():
    # V2 is V3 without a bias, and this transformers has no class of it.
    assert {kind for kind, _ in ALL.values()} | {"deepseek_v2"} == set(model_families.FAMILIES)


@pytest.mark.parametrize("name", model_families.FAMILIES)
def test_the_engine_knows_the_architectures(name):
    from vllm.model_executor.models import ModelRegistry

    assert set(model_families.FAMILIES[name].architectures) <= set(ModelRegistry.get_supported_archs())


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", "float32"), ("gpt2", "float32"), ("qwen3-moe", "float32"), ("llama", "half"), ("gpt2", "half"),
     ("mixtral", "half")],
)
def test_weights_are_those_that_the_engine_keeps(engine, tiny, family, dtype):
    """One die: parameters and the table of the rotary embedding, byte for byte."""
    made = tiny(family)
    llm = engine(made, dtype=dtype)
    model = llm.llm_engine.model_executor.driver_worker.model_runner.model
    kept = {
        tensor.data_ptr(): tensor.numel() * tensor.element_size()
        for tensor in [*model.parameters(), *model.buffers()] if tensor.dim()  # but for a factor that Gemma keeps
    }
    config = model_families.read(json.loads((made.directory / "config.json").read_text()))
    planned = weight_bytes(config, model_families.tensors_of(config), 1, storage_of(dtype, None))
    assert planned == sum(kept.values()), {
        name: tuple(tensor.shape) for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    kinds = {"float32": {torch.float32}, "half": {torch.float32, torch.float16}}
    assert {tensor.dtype for tensor in model.parameters()} == kinds[dtype]


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("dtype", ["float32", "half"])
def test_quantized_weights_are_counted_as_engine_keeps_them(engine, tmp_path, seed, name, dtype):
    """Codes, scales and zero points as planned from the headers of the files, byte for byte."""
    family = "mixtral" if name.startswith("experts") else "llama"
    made = quantized_model(family, tmp_path, seed, QUANTIZED[name], ASKED)
    model = engine(made, dtype=dtype).llm_engine.model_executor.driver_worker.model_runner.model
    held = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        packed = [getattr(module, own) for own in ("packed", "w13_packed", "w2_packed") if hasattr(module, own)]
        tensors = [tensor for weights in packed for tensor in (weights.codes, weights.scales, weights.zeros)]
        held += [tensor for tensor in tensors if tensor is not None]
    kept = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in held}
    facts = files.read_model(str(tmp_path))
    config = model_families.read(facts["config"])
    tensors = model_families.tensors_of(config, facts["tensors"])
    assert weight_bytes(config, tensors, 1, storage_of(dtype, config.quantization)) == sum(kept.values())


def peak_bytes(run):
    """The most bytes that `run` holds at once, beside those that were there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    # Newer releases of PyTorch count finer.
    start = "start_ns" if hasattr(events[0], "start_ns") else "start_us"
    for event in sorted(events, key=lambda event: getattr(event, start)()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("name", PEAKS)
def test_activations_are_those_that_the_engine_holds(engine, tmp_path, monkeypatch, name):
    """One prompt as when the memory is measured: without a cache, and attention in no memory of its own."""
    from vllm import SamplingParams, TokensPrompt
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm_kepler.attention import backend

    def silu_and_mul(self, x):
        """In no more memory than the kernel takes: that of its result."""
        gate, up = x.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate, inplace=True) * up

    config, reference_rows = PEAKS[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    llm = engine(TinyModel(tmp_path, [], [], [], 0.0, CONTEXT), load_format="dummy")
    forward, no_cache = backend.KeplerImpl.forward, torch.tensor([])
    monkeypatch.setattr(
        backend.KeplerImpl, "forward",
        lambda self, layer, query, key, value, kv_cache, metadata: forward(
            self, layer, query, key, value, no_cache, metadata
        ),
    )
    monkeypatch.setattr(backend.paged, "prefill", lambda *arguments: None)
    monkeypatch.setattr(SiluAndMul, "forward", silu_and_mul)
    prompt = TokensPrompt(prompt_token_ids=torch.randint(3, 300, (TOKENS,)).tolist())
    sampling = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)

    def run():
        llm.generate([prompt], sampling, use_tqdm=False)

    run()
    found = peak_bytes(run)
    model = model_families.read(config)
    planned = activation_bytes(
        model, 1, CONTEXT, Options(memory=0, bandwidth=0, max_num_seqs=1, max_num_batched_tokens=TOKENS, workspace=0)
    ) + 4 * TOKENS * reference_rows * model.intermediate
    print(f"{name}: found {found}, planned {planned}")
    assert planned == pytest.approx(found, rel=0.03)


def test_adapters_are_planned_where_vllm_has_them():
    found = {
        name: supports_lora(ModelRegistry.resolve_model_cls(list(family.architectures))[0])
        for name, family in model_families.FAMILIES.items()
    }
    assert found == {name: family.adapters for name, family in model_families.FAMILIES.items()}
