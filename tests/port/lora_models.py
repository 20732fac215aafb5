"""LoRA adapters as peft writes them, and the greedy answers of a model with each merged into it. Shares nothing with
the port.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from quantized_models import expected
from safetensors.torch import save_file
from tiny_models import TinyModel

LENGTHS, TOKENS = (3, 30), 8
ATTENTION, ALL = ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Adapters of one model: what its config says, with target_modules as the choice of layers.
ONE: Mapping[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ALL}
TWO: Mapping[str, Any] = {"r": 16, "lora_alpha": 8, "target_modules": ATTENTION, "use_rslora": True}


def write_adapter(model: Any, directory: Path, config: Mapping[str, Any]) -> Any:
    """Write an adapter with random matrices for a model of transformers; return a copy of the model with it merged."""
    merged, tensors, rank = copy.deepcopy(model), {}, config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    for name, module in merged.named_modules():
        if isinstance(module, torch.nn.Linear) and name.split(".")[-1] in config["target_modules"]:
            rows, columns = module.weight.shape
            a, b = torch.randn(rank, columns) * 0.15, torch.randn(rows, rank) * 0.15
            module.weight.data += scale * (b @ a).to(module.weight.dtype)
            tensors.update({f"base_model.model.{name}.lora_{half}.weight": matrix.contiguous()
                            for half, matrix in (("A", a), ("B", b))})
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "use_dora": False, "modules_to_save": None,
            "rank_pattern": {}, "alpha_pattern": {}, "init_lora_weights": True, **config}
    (directory / "adapter_config.json").write_text(json.dumps(said))
    return merged


def with_adapters(
    model: Any, directory: Path, adapters: Sequence[Mapping[str, Any]], half_cache: bool = False
) -> tuple[TinyModel, list[str | None]]:
    """Answers of a model on disk without an adapter and with each of `adapters`, as one batch, mixed.

    Returns the batch, and for each of its prompts the adapter's directory or None.
    """
    used: list[str | None] = [None]
    asked = {"half_cache": half_cache, "lengths": LENGTHS, "tokens": TOKENS}
    made = [expected(copy.deepcopy(model), directory, **asked)]
    for number, config in enumerate(adapters):
        path = directory / f"adapter-{number}"
        made.append(expected(write_adapter(model, path, config), directory, **asked))
        used.append(str(path))
    assert len({str(one.answers) for one in made}) == len(made)
    # Each has prompts of its own: `expected` draws them.
    order = [(which, prompt) for prompt in range(len(LENGTHS)) for which in range(len(made))]

    def mixed(name: str) -> list[Any]:
        return [getattr(made[which], name)[prompt] for which, prompt in order]

    batch = replace(made[0], prompts=mixed("prompts"), answers=mixed("answers"), margins=mixed("margins"),
                    bound=max(one.bound for one in made))
    return batch, [used[which] for which, _ in order]
