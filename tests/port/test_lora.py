"""LoRA adapters: a batch of base and adapters answers what transformers answers with each adapter merged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from lora_models import ONE, TWO, with_adapters
from quantized_models import Kind, fresh_model, stored_as_half, write
from safetensors.torch import load_file, save_file
from serve_once import adapter_requests, serve
from tiny_models import assert_same
from vllm.lora.request import LoRARequest
from vllm_kepler.lora import groups_of

FUSED = {"r": 8, "lora_alpha": 4, "target_modules": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")}
ENABLED = {"enable_lora": True, "max_loras": 2, "max_cpu_loras": 3, "max_lora_rank": 16}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, seed):
    """Function from a family and adapters to the base on disk with their answers, and which prompt has which."""

    def get(family, *adapters):
        directory = tmp_path_factory.mktemp(f"{family}-adapted")
        model = fresh_model(family, seed)
        model.save_pretrained(directory)
        return with_adapters(model, directory, adapters)

    return get


def answers(llm, made, used):
    from vllm import SamplingParams, TokensPrompt

    sampling = SamplingParams(temperature=0, max_tokens=len(made.answers[0]), ignore_eos=True, detokenize=False)
    done = llm.generate([TokensPrompt(prompt_token_ids=prompt) for prompt in made.prompts], sampling, use_tqdm=False,
                        lora_request=adapter_requests(used))
    return [list(output.outputs[0].token_ids) for output in done]


# What an adapter's config says, or what its tensors are; what the refusal names.
REFUSED = [
    ({"use_dora": True}, "DoRA"), ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"), ({"rank_pattern": {"q_proj": 3}}, "rank_pattern"),
    ({"bias": "all"}, "bias all"), ({"peft_type": "IA3"}, "IA3"), ({"r": "4"}, "r '4'"),
    ({"init_lora_weights": "pissa"}, "pissa"), ({"r": 32}, "rank 32; expected at most 16"),
]
# Tensors of an adapter that its base has no place for: what is renamed or cut, and what the refusal names.
MISPLACED = [
    ("q_proj", "router", None, "an adapter of model.layers.0.self_attn.router"),
    ("lora_B", "lora_magnitude_vector", None, "lora_magnitude_vector"),
    ("q_proj", "q_proj", 64, "of another model does not fit"),
]


def test_a_batch_of_base_and_adapters(adapted, engine, tmp_path):
    """Three adapters in turn in two slots. Those that are refused leave the engine as it was.

    The second time prompts come from the cache, where each adapter has blocks of its own.
    """
    made, used = adapted("llama", ONE, TWO, {**ONE, "target_modules": ("k_proj", "down_proj")})
    llm = engine(made, enable_prefix_caching=True, **ENABLED)
    assert_same(made, answers(llm, made, used))
    good = Path(next(filter(None, used)))
    for number, (differs, named) in enumerate(REFUSED):
        bad = shutil.copytree(good, tmp_path / f"config-{number}")
        said = json.loads((bad / "adapter_config.json").read_text())
        (bad / "adapter_config.json").write_text(json.dumps({**said, **differs}))
        refuse(llm, bad, named)
    for number, (old, new, columns, named) in enumerate(MISPLACED):
        bad = shutil.copytree(good, tmp_path / f"tensors-{number}")
        tensors = load_file(bad / "adapter_model.safetensors")
        save_file({name.replace(old, new): tensor[..., :columns].contiguous() for name, tensor in tensors.items()},
                  bad / "adapter_model.safetensors")
        refuse(llm, bad, named)
    refuse(llm, tmp_path / "absent", "No such file")
    cut = shutil.copytree(good, tmp_path / "cut") / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    refuse(llm, cut.parent, "bytes in ")
    assert_same(made, answers(llm, made, used))


def refuse(llm, directory, named):
    with pytest.raises(ValueError, match=r"adapter bad in .*: found .*; expected .*Choose another adapter") as refused:
        llm.llm_engine.add_lora(LoRARequest("bad", 99, str(directory)))
    assert named in str(refused.value)


@pytest.mark.parametrize("family", ["qwen2", "phi3"])
def test_two_ranks_share_adapters(adapted, family):
    made, used = adapted(family, *([FUSED] if family == "phi3" else [ONE, TWO]))
    served = serve(made, adapters=used, tensor_parallel_size=2, **ENABLED)
    assert served.ids, served.printed
    assert_same(made, served.ids)


def test_base_in_four_bits_and_half_takes_adapters(engine, tmp_path, seed):
    """Adapters stay float32 beside layers of codes and of float16."""
    model = fresh_model("llama", seed)
    quantized = write(model, tmp_path, Kind("gptq", group=64, kept=("o_proj", "layers.1.mlp")))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if stored_as_half(name, parameter) and name not in quantized:
                parameter.copy_(parameter.half())
    made, used = with_adapters(model, tmp_path, [ONE, TWO], half_cache=True)
    assert_same(made, answers(engine(made, dtype="half", **ENABLED), made, used))


def test_groups_leave_out_tokens_without_an_adapter():
    slots = [-1, 1, 1, 0, 1, -1]
    runs = [(slot, list(range(6))[rows]) for slot, rows in groups_of(slots, True, "cpu")]
    assert runs == [(1, [1, 2]), (0, [3]), (1, [4])]
    whole = {slot: torch.arange(6)[rows].tolist() for slot, rows in groups_of(slots, False, "cpu")}
    assert whole == {1: [1, 2, 4], 0: [3]}
