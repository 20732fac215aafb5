"""What is refused of LoRA adapters before anything is loaded."""

import pytest
from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint import adapters, files
from checkpoints import write

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "use_rslora": True}
LAYER = "model.layers.0.self_attn.q_proj"
TENSORS = {f"base_model.model.{LAYER}.lora_A.weight": [4, 32], f"base_model.model.{LAYER}.lora_B.weight": [64, 4]}
LAYERS = {LAYER: (64, 32)}


def test_a_plain_adapter_has_no_findings():
    assert adapters.unserved(CONFIG) == []
    assert adapters.unserved({**CONFIG, "init_lora_weights": "gaussian", "rank_pattern": {}}, room=8) == []
    assert adapters.misfits(TENSORS, 4, LAYERS) == []


@pytest.mark.parametrize(("said", "room", "named"), [
    ({"use_dora": True}, 512, "DoRA"), ({"modules_to_save": ["lm_head"]}, 512, "modules_to_save"),
    ({"alpha_pattern": {"q_proj": 3}}, 512, "alpha_pattern"), ({"rank_pattern": {"q_proj": 3}}, 512, "rank_pattern"),
    ({"bias": "all"}, 512, "bias all"), ({"peft_type": "IA3"}, 512, "IA3"), ({"r": "4"}, 512, "r '4'"),
    ({"r": True}, 512, "r True"), ({"lora_alpha": None}, 512, "lora_alpha None"), ({"r": 0}, 512, "r 0"),
    ({"lora_alpha": float("nan")}, 512, "lora_alpha nan"), ({"lora_alpha": 10**400}, 512, "lora_alpha 1000"),
    ({"alora_invocation_tokens": [7]}, 512, "switch it on"), ({"context_length": 4096}, 512, "longer context"),
    ({"init_lora_weights": "pissa_niter_4"}, 512, "pissa"), ({"r": 32}, 16, "rank 32"), ({"r": 513}, 512, "rank 513"),
])
def test_what_the_engine_would_get_wrong_is_refused(said, room, named):
    (found,) = adapters.unserved({**CONFIG, **said}, room)
    assert named in found[0]


@pytest.mark.parametrize(("tensors", "named"), [
    ({}, "no tensors"),
    ({name.replace("q_proj", "router"): shape for name, shape in TENSORS.items()}, "an adapter of model.layers.0"),
    ({name.replace("lora_B", "lora_embedding_B"): shape for name, shape in TENSORS.items()}, "lora_embedding_B"),
    ({name: [*shape[:1], 16] for name, shape in TENSORS.items()}, "[4, 16] (lora_A)"),
    (dict([next(iter(TENSORS.items()))]), "[4, 32] (lora_A)"),
])
def test_tensors_without_a_place_in_the_base_are_refused(tensors, named):
    ((found, _),) = adapters.misfits(tensors, 4, LAYERS)
    assert named in found


@pytest.mark.parametrize(("ranks", "room"), [([], 8), ([8], 8), ([9, 2], 16), ([257], 320), ([600], 512)])
def test_room_is_that_of_the_largest_rank(ranks, room):
    assert adapters.room_for(ranks) == room


def test_an_adapters_files_are_read(tmp_path):
    found = files.read_adapter(str(tmp_path))
    assert [fault["file"].rpartition("/")[2] for fault in found["faults"]] == [adapters.CONFIG, adapters.WEIGHTS]
    (tmp_path / adapters.CONFIG).write_text('{"r": 4}')
    write(tmp_path, {"a": [4, 2]}, adapters.WEIGHTS)
    assert files.read_adapter(str(tmp_path)) == {"config": {"r": 4}, "tensors": {"a": [4, 2]}, "faults": []}


@pytest.mark.parametrize(("base", "model", "other"), [
    ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct", False), ("/srv/base/model", "Qwen/Qwen3-8B", False),
    ("Qwen/Qwen3-8B", "/srv/models/Qwen3-8B-AWQ", False), ("./base", "Qwen/Qwen3-8B", False),
    ("unsloth/qwen3-8b-unsloth-bnb-4bit", "Qwen/Qwen3-8B", False),
    ("Qwen/Qwen3-8B", "bartowski/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf", False), (None, "Qwen/Qwen3-8B", False),
    ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.2-3B", True), ("Qwen/Qwen2.5-7B", "Qwen/Qwen3-8B", True),
])
def test_base_of_another_name_is_noticed(base, model, other):
    assert bool(adapters.other_base({"base_model_name_or_path": base}, model)) is other
